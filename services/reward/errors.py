"""The errors of the reward service.

AndonError
├── InvalidArgumentError        from ``requests`` and ``andon.rpc.sequences``: EMPTY_REQUEST, EMPTY_PROMPT,
│                               EMPTY_RESPONSE, TOKEN_OUT_OF_VOCABULARY, SEQUENCE_TOO_LONG
├── FailedPreconditionError     from ``andon.rpc.convert`` and ``andon.modeling.loading``:
│   │                           MODEL_VERSION_MISMATCH, NOT_A_REWARD_MODEL, WEIGHTS_MISSING
│   └── ModelNotLoadedError         MODEL_NOT_LOADED
└── DataLossError
    ├── WeightsNotFiniteError       WEIGHTS_NOT_FINITE
    └── ScoresNotFiniteError        SCORES_NOT_FINITE
"""

from __future__ import annotations

from andon.errors import DataLossError, FailedPreconditionError


class ModelNotLoadedError(FailedPreconditionError):
    """The service was started without a model and none has been loaded since."""

    default_reason = "MODEL_NOT_LOADED"

    def __init__(self) -> None:
        super().__init__("no reward model is loaded; call LoadModel first")


class WeightsNotFiniteError(DataLossError):
    """A model whose weights hold NaN or infinity. It is not taken into use."""

    default_reason = "WEIGHTS_NOT_FINITE"

    def __init__(self, *, model: str, tensor: str) -> None:
        super().__init__(f"{model}: {tensor} holds NaN or infinity", model=model, tensor=tensor)


class ScoresNotFiniteError(DataLossError):
    """The model gave a score that is no finite number. Nothing of the call is answered."""

    default_reason = "SCORES_NOT_FINITE"

    def __init__(self, *, model: str, item: int, summary: int) -> None:
        super().__init__(
            f"{model} gave no finite score for items[{item}].summaries[{summary}]",
            model=model,
            item=item,
            summary=summary,
        )
