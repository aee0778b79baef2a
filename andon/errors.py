"""The root of every error that a caller of Andon may be told about.

    AndonError
    ├── InvalidArgumentError      the request can never succeed as it stands
    ├── NotFoundError             something it names does not exist
    ├── AlreadyExistsError        it would make something a second time
    ├── UnauthenticatedError      who calls is not known; sign in, or send a valid token
    ├── PermissionDeniedError     this caller may not
    ├── FailedPreconditionError   not in the present state; no use repeating before the state changes
    ├── ResourceExhaustedError    a queue or a quota is full; repeat later
    ├── UnavailableError          a part is down; repeat
    ├── DeadlineExceededError     it took too long
    ├── DataLossError             bytes are missing or wrong
    └── InternalError             a defect of ours

Each package draws its own errors under these in its ``errors.py``. ``andon.rpc.errors`` turns them into a
gRPC status with ``google.rpc.ErrorInfo`` and back; nothing here knows of gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AndonError(Exception):
    """An error with a stable reason and facts about it.

    ``code`` is the name of the canonical gRPC status. ``reason`` is an UPPER_SNAKE_CASE word that a program
    may test. ``metadata`` holds further facts as text, for example the field that is wrong.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidArgumentError(AndonError):
    """The request can never succeed as it stands."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class NotFoundError(AndonError):
    """Something that the request names does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExistsError(AndonError):
    """The request would make something a second time."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class UnauthenticatedError(AndonError):
    """Who calls is not known."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(AndonError):
    """This caller may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class FailedPreconditionError(AndonError):
    """Not in the present state; repeating is no use before the state changes."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class ResourceExhaustedError(AndonError):
    """A queue or a quota is full; repeat later."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(AndonError):
    """A part is down; repeat."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class DeadlineExceededError(AndonError):
    """The work took longer than the caller was ready to wait."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class DataLossError(AndonError):
    """Bytes are missing or wrong."""

    code = "DATA_LOSS"
    default_reason = "DATA_LOSS"


class InternalError(AndonError):
    """A defect of ours."""

    code = "INTERNAL"
    default_reason = "INTERNAL"
