"""The errors of the policy service.

    AndonError
    ├── InvalidArgumentError
    │   └── InvalidSampleRequestError   EMPTY_REQUEST, EMPTY_PROMPT, TOKEN_OUT_OF_VOCABULARY, SEQUENCE_TOO_LONG,
    │                                   INVALID_SAMPLING_PARAMETER, TOO_MANY_SEQUENCES
    ├── FailedPreconditionError
    │   ├── ModelNotLoadedError         MODEL_NOT_LOADED
    │   ├── ModelVersionMismatchError   MODEL_VERSION_MISMATCH
    │   ├── ModelVersionConflictError   MODEL_VERSION_CONFLICT
    │   └── WeightsShapeMismatchError   WEIGHTS_SHAPE_MISMATCH
    ├── ResourceExhaustedError
    │   └── QueueFullError              QUEUE_FULL
    └── InternalError
        ├── LogitsNotFiniteError        LOGITS_NOT_FINITE
        └── SamplingFailedError         SAMPLING_FAILED

Malformed, truncated or altered weights raise the errors of ``andon.modeling.weight_codec``.
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError, InternalError, InvalidArgumentError, ResourceExhaustedError


class InvalidSampleRequestError(InvalidArgumentError):
    """A call that no state of the service could serve; ``metadata['field']`` names what is wrong."""

    default_reason = "INVALID_SAMPLING_PARAMETER"


class ModelNotLoadedError(FailedPreconditionError):
    """The service runs without a model."""

    default_reason = "MODEL_NOT_LOADED"

    def __init__(self) -> None:
        super().__init__("no model is loaded; call LoadModel or start the service with one")


class ModelVersionMismatchError(FailedPreconditionError):
    """The version in use is not the one that the call requires."""

    default_reason = "MODEL_VERSION_MISMATCH"

    def __init__(self, *, required: str, active: str) -> None:
        super().__init__(f"the call requires {required}, in use is {active}", required=required, active=active)


class ModelVersionConflictError(FailedPreconditionError):
    """An update would give the active version's number to other weights."""

    default_reason = "MODEL_VERSION_CONFLICT"

    def __init__(self, *, model: str, active_sha256: str, offered_sha256: str) -> None:
        super().__init__(
            f"{model} is in use with other weights",
            model=model,
            active_sha256=active_sha256,
            offered_sha256=offered_sha256,
        )


class WeightsShapeMismatchError(FailedPreconditionError):
    """An update does not fit the model in use; ``metadata['tensor']`` names the first tensor that differs."""

    default_reason = "WEIGHTS_SHAPE_MISMATCH"


class QueueFullError(ResourceExhaustedError):
    """As many calls wait as may wait."""

    default_reason = "QUEUE_FULL"

    def __init__(self, *, waiting_calls: int) -> None:
        super().__init__(f"{waiting_calls} calls are waiting already; repeat later", waiting_calls=waiting_calls)


class LogitsNotFiniteError(InternalError):
    """The model produced NaN for a sequence."""

    default_reason = "LOGITS_NOT_FINITE"

    def __init__(self, *, model: str) -> None:
        super().__init__(f"{model} computed logits that are not numbers", model=model)


class SamplingFailedError(InternalError):
    """A forward pass failed; every call that was in progress is told so."""

    default_reason = "SAMPLING_FAILED"

    def __init__(self) -> None:
        super().__init__("the model failed while it was writing this sample; the service's log says why")
