"""The errors of the policy service.

    AndonError
    ├── InvalidArgumentError
    │   └── InvalidSampleRequestError   EMPTY_REQUEST, SEQUENCE_TOO_LONG, INVALID_SAMPLING_PARAMETER,
    │                                   TOO_MANY_SAMPLES, UNSUPPORTED_BY_BACKEND
    ├── FailedPreconditionError
    │   ├── ModelNotLoadedError         MODEL_NOT_LOADED
    │   ├── ModelReplacedError          MODEL_VERSION_MISMATCH
    │   ├── ModelVersionConflictError   MODEL_VERSION_CONFLICT
    │   ├── WeightsBaseMismatchError    WEIGHTS_BASE_MISMATCH
    │   ├── WeightsNotCommittedError    WEIGHTS_NOT_COMMITTED
    │   ├── WeightsOvertakenError       WEIGHTS_OVERTAKEN
    │   ├── NotALanguageModelError      NOT_A_LANGUAGE_MODEL
    │   ├── UnsupportedByBackendError   UNSUPPORTED_BY_BACKEND
    │   ├── BackendServesOtherModelError BACKEND_SERVES_OTHER_MODEL
    │   └── BackendRefusedError         BACKEND_REFUSED
    ├── ResourceExhaustedError
    │   ├── QueueFullError              QUEUE_FULL
    │   └── BackendOverloadedError      BACKEND_OVERLOADED
    ├── UnavailableError
    │   ├── ShuttingDownError           SHUTTING_DOWN
    │   └── BackendUnavailableError     BACKEND_UNAVAILABLE
    ├── DeadlineExceededError
    │   └── BackendTimeoutError         BACKEND_TIMEOUT
    ├── DataLossError
    │   └── LoadedWeightsNotFiniteError WEIGHTS_NOT_FINITE
    └── InternalError
        ├── LogitsNotFiniteError        LOGITS_NOT_FINITE
        ├── BackendAnswerInvalidError   BACKEND_ANSWER_INVALID
        └── SamplingFailedError         SAMPLING_FAILED

A version other than the required one raises the error of ``andon.rpc.convert``; malformed, truncated, altered
or unfitting weights raise those of ``andon.modeling.weight_codec``; memory that is not seen raises that of
``andon.modeling.shared_memory``.
"""

from __future__ import annotations

from andon.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from andon.modeling.versions import ModelVersion
from andon.rpc.limits import RETRY_AFTER


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


class WeightsBaseMismatchError(FailedPreconditionError):
    """A delta is to other weights than those in use; the sender must send all of them."""

    default_reason = "WEIGHTS_BASE_MISMATCH"

    def __init__(self, *, active: ModelVersion, base: str) -> None:
        super().__init__(
            f"the delta is to {base}, which is not what is in use here",
            base=base,
            active=active,
            active_sha256=active.weights_sha256,
        )


class WeightsNotCommittedError(FailedPreconditionError):
    """A stream that announced a commit ended without it."""

    default_reason = "WEIGHTS_NOT_COMMITTED"

    def __init__(self, *, model: ModelVersion) -> None:
        super().__init__(f"{model} came without a commit; it is not used", model=model)


class WeightsOvertakenError(FailedPreconditionError):
    """Weights that waited for their commit were given up for others that came."""

    default_reason = "WEIGHTS_OVERTAKEN"

    def __init__(self, *, model: ModelVersion) -> None:
        super().__init__(f"{model} was not committed before another update came", model=model)


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


class UnsupportedByBackendError(FailedPreconditionError):
    """What writes the samples cannot do this, whatever its state."""

    default_reason = "UNSUPPORTED_BY_BACKEND"

    def __init__(self, *, backend: str, problem: str) -> None:
        super().__init__(f"backend {backend}: {problem}", backend=backend)


class BackendServesOtherModelError(FailedPreconditionError):
    """The server serves another model than this service was told to speak for."""

    default_reason = "BACKEND_SERVES_OTHER_MODEL"

    def __init__(self, *, backend: str, expected: str, serves: str) -> None:
        super().__init__(
            f"backend {backend} serves {serves}, not {expected}",
            backend=backend,
            expected=expected,
            serves=serves,
        )


class BackendRefusedError(FailedPreconditionError):
    """The server does not accept our request: its token, its address or its limits do not fit."""

    default_reason = "BACKEND_REFUSED"

    def __init__(self, *, backend: str, status: int, message: str) -> None:
        super().__init__(
            f"backend {backend} refused the request with {status}: {message}", backend=backend, status=status
        )


class BackendOverloadedError(ResourceExhaustedError):
    """The server has more work than it takes; ``retry_after_s`` says when to come back."""

    default_reason = "BACKEND_OVERLOADED"

    def __init__(self, *, backend: str, status: int, retry_after_s: float) -> None:
        super().__init__(
            f"backend {backend} is overloaded; repeat later",
            backend=backend,
            status=status,
            **{RETRY_AFTER: f"{retry_after_s:.3f}"},
        )


class BackendUnavailableError(UnavailableError):
    """The server cannot be reached, is not ready, or failed while it worked on this."""

    default_reason = "BACKEND_UNAVAILABLE"

    def __init__(self, *, backend: str, problem: str, retry_after_s: float | None = None) -> None:
        hint = {} if retry_after_s is None else {RETRY_AFTER: f"{retry_after_s:.3f}"}
        super().__init__(f"backend {backend} is unavailable: {problem}", backend=backend, **hint)


class BackendTimeoutError(DeadlineExceededError):
    """The server did not answer within ``backend_timeout_s``."""

    default_reason = "BACKEND_TIMEOUT"

    def __init__(self, *, backend: str, timeout_s: float) -> None:
        super().__init__(
            f"backend {backend} did not answer within {timeout_s:g} s", backend=backend, timeout_s=timeout_s
        )


class BackendAnswerInvalidError(InternalError):
    """The server's answer cannot be what was asked for; nothing of it is passed on."""

    default_reason = "BACKEND_ANSWER_INVALID"

    def __init__(self, *, backend: str, problem: str) -> None:
        super().__init__(f"the answer of backend {backend} is invalid: {problem}", backend=backend)
