"""The errors of the policy service.

    AndonError
    ├── InvalidArgumentError
    │   └── InvalidSampleRequestError   EMPTY_REQUEST, SEQUENCE_TOO_LONG, INVALID_SAMPLING_PARAMETER,
    │                                   TOO_MANY_SAMPLES
    ├── FailedPreconditionError
    │   ├── ModelNotLoadedError         MODEL_NOT_LOADED
    │   ├── ModelReplacedError          MODEL_VERSION_MISMATCH
    │   ├── ModelVersionConflictError   MODEL_VERSION_CONFLICT
    │   └── NotALanguageModelError      NOT_A_LANGUAGE_MODEL
    ├── ResourceExhaustedError
    │   └── QueueFullError              QUEUE_FULL
    ├── UnavailableError
    │   └── ShuttingDownError           SHUTTING_DOWN
    ├── DataLossError
    │   └── LoadedWeightsNotFiniteError WEIGHTS_NOT_FINITE
    └── InternalError
        ├── LogitsNotFiniteError        LOGITS_NOT_FINITE
        └── SamplingFailedError         SAMPLING_FAILED

A version other than the required one raises the error of ``andon.rpc.convert``; malformed, truncated, altered
or unfitting weights raise those of ``andon.modeling.weight_codec``.
"""

from __future__ import annotations

from andon.errors import (
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)


class InvalidSampleRequestError(InvalidArgumentError):
    """A call that no state of the service could serve; ``metadata['field']`` names what is wrong."""

    default_reason = "INVALID_SAMPLING_PARAMETER"


class ModelNotLoadedError(FailedPreconditionError):
    """The service runs without a model."""

    default_reason = "MODEL_NOT_LOADED"

    def __init__(self) -> None:
        super().__init__("no model is loaded; call LoadModel or start the service with one")


class ModelReplacedError(FailedPreconditionError):
    """While a call waited, LoadModel brought a model that reads or limits its prompts differently."""

    default_reason = "MODEL_VERSION_MISMATCH"

    def __init__(self, *, active: str) -> None:
        super().__init__(
            f"while the call waited, {active} replaced the model its prompts were made for", active=active
        )


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


class NotALanguageModelError(FailedPreconditionError):
    """The named version of the store cannot write."""

    default_reason = "NOT_A_LANGUAGE_MODEL"

    def __init__(self, *, model: str, kind: str) -> None:
        super().__init__(f"{model} is a {kind}, not a language model", model=model, kind=kind)


class ShuttingDownError(UnavailableError):
    """The service ends before the call could be served."""

    default_reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the service is shutting down")


class LoadedWeightsNotFiniteError(DataLossError):
    """A stored model holds NaN or infinity."""

    default_reason = "WEIGHTS_NOT_FINITE"

    def __init__(self, *, model: str, tensor: str) -> None:
        super().__init__(f"{tensor} of {model} holds NaN or infinity", model=model, tensor=tensor)


class QueueFullError(ResourceExhaustedError):
    """As many calls wait as may wait."""

    default_reason = "QUEUE_FULL"

    def __init__(self, *, waiting_calls: int) -> None:
        super().__init__(
            f"{waiting_calls} calls are waiting already; repeat later", waiting_calls=waiting_calls
        )


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
