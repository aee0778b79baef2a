"""The errors that this service tells its callers about.

    AndonError
    ├── InvalidArgumentError
    │   └── InvalidFieldError           a field of the request breaks a rule; the reason names the rule
    ├── NotFoundError
    │   ├── LeaseNotFoundError          no lease has this id
    │   ├── ProjectNotFoundError        no project has this name
    │   ├── BatchNotFoundError          no batch has this name
    │   ├── AnswerNotFoundError         no answer of this labeler has this id
    │   ├── UserNotFoundError           no account has this name
    │   ├── TokenNotFoundError          no token that is still good has this name
    │   └── InvitationNotFoundError     unknown, used, withdrawn or too old
    ├── AlreadyExistsError
    │   ├── RequestIdReusedError        this request_id was used for other content
    │   ├── ProjectExistsError          a project of this name has other settings
    │   └── UserExistsError             an account has this name already
    ├── UnauthenticatedError
    │   └── SignInRefusedError          the name or the password is wrong, or the account is closed
    ├── PermissionDeniedError
    │   ├── LeaseOfAnotherLabelerError  the lease belongs to somebody else
    │   └── ActingForAnotherError       this caller may only act in their own name
    ├── FailedPreconditionError
    │   ├── LeaseExpiredError           the task went back to the pool
    │   ├── LeaseAlreadyAnsweredError   this lease has its answer
    │   ├── WrongKindError              the task asks for another kind of answer
    │   ├── AnswerSupersededError       this answer was corrected already; correct the newer one
    │   ├── AnswerExportedError         this answer has gone out and stands
    │   ├── BatchOfAnotherProjectError  the batch belongs to another project
    │   ├── BatchClosedError            the batch takes nothing more
    │   ├── NotAdmittedError            the labeler has not gone through the project's onboarding
    │   ├── CordNotPulledError          there is nothing to release
    │   └── LastAdminError              nobody could give out accounts any more
    ├── ResourceExhaustedError
    │   ├── QueueFullError              too many calls wait for the database
    │   └── TooManyFailuresError        sign-ins failed too often; wait
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
    UnauthenticatedError,
    UnavailableError,
)


class InvalidFieldError(InvalidArgumentError):
    """A field of the request breaks a rule."""

    def __init__(self, message: str, *, reason: str, field: str) -> None:
        super().__init__(f"{field}: {message}", reason=reason, field=field)
        self.field = field
        self.problem = message  # without the field, for a place beside it


class LeaseNotFoundError(NotFoundError):
    """No lease has this id."""

    default_reason = "LEASE_NOT_FOUND"

    def __init__(self, lease_id: str) -> None:
        super().__init__("there is no such lease", lease_id=lease_id)
        self.lease_id = lease_id


class ProjectNotFoundError(NotFoundError):
    """No project has this name."""

    default_reason = "PROJECT_NOT_FOUND"

    def __init__(self, project: str) -> None:
        super().__init__("there is no such project", project=project)
        self.project = project


class BatchNotFoundError(NotFoundError):
    """No batch has this name."""

    default_reason = "BATCH_NOT_FOUND"

    def __init__(self, batch: str) -> None:
        super().__init__("there is no such batch", batch=batch)
        self.batch = batch


class AnswerNotFoundError(NotFoundError):
    """No answer of this labeler has this id."""

    default_reason = "ANSWER_NOT_FOUND"

    def __init__(self, answer_id: int) -> None:
        super().__init__("there is no such answer", answer_id=answer_id)
        self.answer_id = answer_id


class ProjectExistsError(AlreadyExistsError):
    """A project of this name is there, with other settings."""

    default_reason = "PROJECT_EXISTS"

    def __init__(self, project: str) -> None:
        super().__init__("a project of this name has other settings", project=project)
        self.project = project


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


class ActingForAnotherError(PermissionDeniedError):
    """This caller may only act in their own name."""

    default_reason = "ANOTHER_LABELER"

    def __init__(self, name: str) -> None:
        super().__init__("you may only act in your own name", name=name)
        self.name = name


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


class WrongKindError(FailedPreconditionError):
    """The task asks for another kind of answer."""

    default_reason = "WRONG_KIND"

    def __init__(self, lease_id: str, kind: str) -> None:
        super().__init__(f"this task is to {kind}", lease_id=lease_id, kind=kind)
        self.lease_id = lease_id


class AnswerSupersededError(FailedPreconditionError):
    """This answer was corrected already."""

    default_reason = "ANSWER_SUPERSEDED"

    def __init__(self, answer_id: int) -> None:
        super().__init__("this answer was corrected already; correct the newer one", answer_id=answer_id)
        self.answer_id = answer_id


class AnswerExportedError(FailedPreconditionError):
    """This answer has been exported and stands."""

    default_reason = "ANSWER_EXPORTED"

    def __init__(self, answer_id: int) -> None:
        super().__init__("this answer has been exported and stands", answer_id=answer_id)
        self.answer_id = answer_id


class BatchOfAnotherProjectError(FailedPreconditionError):
    """The batch belongs to another project."""

    default_reason = "BATCH_OF_ANOTHER_PROJECT"

    def __init__(self, batch: str, project: str) -> None:
        super().__init__(f"this batch belongs to project {project}", batch=batch, project=project)
        self.batch = batch


class BatchClosedError(FailedPreconditionError):
    """The batch takes nothing more."""

    default_reason = "BATCH_CLOSED"

    def __init__(self, batch: str) -> None:
        super().__init__("this batch is closed", batch=batch)
        self.batch = batch


class NotAdmittedError(FailedPreconditionError):
    """The labeler has not gone through the project's onboarding."""

    default_reason = "NOT_ADMITTED"

    def __init__(self, project: str) -> None:
        super().__init__("go through the onboarding on the labeling site first", project=project)
        self.project = project


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


class SignInRefusedError(UnauthenticatedError):
    """The name or the password is wrong, or the account is closed; which of them is not told."""

    default_reason = "SIGN_IN_REFUSED"

    def __init__(self) -> None:
        super().__init__("the name or the password is wrong")


class UserNotFoundError(NotFoundError):
    """No account has this name."""

    default_reason = "USER_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("there is no account of this name", user=name)
        self.name = name


class TokenNotFoundError(NotFoundError):
    """No token that is still good has this name."""

    default_reason = "TOKEN_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("there is no token of this name", token_name=name)
        self.name = name


class InvitationNotFoundError(NotFoundError):
    """The invitation is unknown, used, withdrawn or too old; which of them is not told."""

    default_reason = "INVITATION_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("this invitation is not valid, or not any more; ask for a new one")


class UserExistsError(AlreadyExistsError):
    """An account has this name already."""

    default_reason = "USER_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__("there is an account of this name already", user=name)
        self.name = name


class LastAdminError(FailedPreconditionError):
    """Without this admin nobody could give out accounts any more."""

    default_reason = "LAST_ADMIN"

    def __init__(self, name: str) -> None:
        super().__init__("this is the last admin; make another one first", user=name)
        self.name = name


class TooManyFailuresError(ResourceExhaustedError):
    """Too many attempts failed; further ones are not looked at before the wait is over."""

    default_reason = "TOO_MANY_FAILURES"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many attempts failed; wait a while", retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s
