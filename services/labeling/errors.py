"""The errors that this service tells its callers about.

    AndonError
    ├── InvalidArgumentError
    │   └── InvalidFieldError           a field of the request breaks a rule; the reason names the rule
    ├── NotFoundError
    │   └── LeaseNotFoundError          no lease has this id
    ├── AlreadyExistsError
    │   └── RequestIdReusedError        this request_id was used for other content
    ├── PermissionDeniedError
    │   └── LeaseOfAnotherLabelerError  the lease belongs to somebody else
    ├── FailedPreconditionError
    │   ├── LeaseExpiredError           the task went back to the pool
    │   ├── LeaseAlreadyAnsweredError   this lease has its answer
    │   └── CordNotPulledError          there is nothing to release
    ├── ResourceExhaustedError
    │   └── QueueFullError              too many calls wait for the database
    └── UnavailableError
        ├── DatabaseUnavailableError    locked, full, gone or broken; nothing was acknowledged
        └── DrainingError               this process is about to end; go on with the next one

The domain layer and the store raise them; ``andon.rpc`` turns them into a status.
"""

from __future__ import annotations

from andon.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)


class InvalidFieldError(InvalidArgumentError):
    """A field of the request breaks a rule."""

    def __init__(self, message: str, *, reason: str, field: str) -> None:
        super().__init__(f"{field}: {message}", reason=reason, field=field)
        self.field = field


class LeaseNotFoundError(NotFoundError):
    """No lease has this id."""

    default_reason = "LEASE_NOT_FOUND"

    def __init__(self, lease_id: str) -> None:
        super().__init__("there is no such lease", lease_id=lease_id)
        self.lease_id = lease_id


class RequestIdReusedError(AlreadyExistsError):
    """This request_id was used before, for other content."""

    default_reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "this request_id was used for other content; choose a new one", request_id=request_id
        )
        self.request_id = request_id


class LeaseOfAnotherLabelerError(PermissionDeniedError):
    """The lease belongs to somebody else."""

    default_reason = "LEASE_OF_ANOTHER_LABELER"

    def __init__(self, lease_id: str) -> None:
        super().__init__("this lease belongs to another labeler", lease_id=lease_id)
        self.lease_id = lease_id


class LeaseExpiredError(FailedPreconditionError):
    """The lease ran out, so its task went back to the pool."""

    default_reason = "LEASE_EXPIRED"

    def __init__(self, lease_id: str) -> None:
        super().__init__("this lease has expired; lease again", lease_id=lease_id)
        self.lease_id = lease_id


class LeaseAlreadyAnsweredError(FailedPreconditionError):
    """The lease has its answer already, recorded under another request_id."""

    default_reason = "LEASE_ALREADY_ANSWERED"

    def __init__(self, lease_id: str) -> None:
        super().__init__("this lease is answered already", lease_id=lease_id)
        self.lease_id = lease_id


class CordNotPulledError(FailedPreconditionError):
    """Nobody has pulled the cord, so there is nothing to release."""

    default_reason = "CORD_NOT_PULLED"

    def __init__(self) -> None:
        super().__init__("the cord is not pulled")


class QueueFullError(ResourceExhaustedError):
    """Too many calls wait for the database."""

    default_reason = "QUEUE_FULL"

    def __init__(self, max_queued_calls: int) -> None:
        super().__init__(
            "too many calls wait for the database; repeat later", max_queued_calls=max_queued_calls
        )
        self.max_queued_calls = max_queued_calls


class DatabaseUnavailableError(UnavailableError):
    """The database is locked, full, gone or broken. Whatever was asked is not acknowledged; repeat it."""

    default_reason = "DATABASE_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the database does not answer; repeat the request with the same request_id")


class DrainingError(UnavailableError):
    """This process is about to end."""

    default_reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("the service is shutting down; continue with the next one")
