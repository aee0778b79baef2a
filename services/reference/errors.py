"""The errors of the reference service.

AndonError
├── InvalidArgumentError        from ``requests`` and ``andon.rpc.sequences``: EMPTY_REQUEST, EMPTY_PROMPT,
│                               EMPTY_RESPONSE, TOKEN_OUT_OF_VOCABULARY, SEQUENCE_TOO_LONG
│   └── InvalidTemperatureError     INVALID_TEMPERATURE
├── FailedPreconditionError     from ``andon.rpc.convert``: MODEL_VERSION_MISMATCH
│   ├── ModelNotLoadedError         MODEL_NOT_LOADED
│   └── NotALanguageModelError      NOT_A_LANGUAGE_MODEL
└── DataLossError
    ├── WeightsNotFiniteError       WEIGHTS_NOT_FINITE
    └── LogProbsNotFiniteError      LOGPROBS_NOT_FINITE
"""

from __future__ import annotations

from andon.errors import DataLossError, FailedPreconditionError, InvalidArgumentError


class InvalidTemperatureError(InvalidArgumentError):
    """A temperature that is no number, not above 0, or so extreme that float32 cannot carry the quotient."""

    default_reason = "INVALID_TEMPERATURE"

    def __init__(self, *, temperature: float, lowest: float, highest: float) -> None:
        super().__init__(
            f"temperature {temperature} is outside of [{lowest:g}, {highest:g}]",
            field="temperature",
            temperature=temperature,
            lowest=lowest,
            highest=highest,
        )


class ModelNotLoadedError(FailedPreconditionError):
    """The service was started without a model and none has been loaded since."""

    default_reason = "MODEL_NOT_LOADED"

    def __init__(self) -> None:
        super().__init__("no model is loaded; call LoadModel first")


class NotALanguageModelError(FailedPreconditionError):
    """A version of the store that gives no log-probabilities, such as a reward model."""

    default_reason = "NOT_A_LANGUAGE_MODEL"

    def __init__(self, *, model: str, kind: str) -> None:
        super().__init__(f"{model} is a {kind}, not a language model", model=model, kind=kind)


class WeightsNotFiniteError(DataLossError):
    """A model whose weights hold NaN or infinity. It is not taken into use."""

    default_reason = "WEIGHTS_NOT_FINITE"

    def __init__(self, *, model: str, tensor: str) -> None:
        super().__init__(f"{model}: {tensor} holds NaN or infinity", model=model, tensor=tensor)


class LogProbsNotFiniteError(DataLossError):
    """The model gave a log-probability that is no finite number. Nothing of the call is answered."""

    default_reason = "LOGPROBS_NOT_FINITE"

    def __init__(self, *, model: str, item: int, response: int) -> None:
        super().__init__(
            f"{model} gave no finite log-probability for a token of items[{item}].responses[{response}]",
            model=model,
            item=item,
            response=response,
        )
