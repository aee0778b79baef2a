"""The errors of the modeling package, beside the plain ones of ``andon.errors``.

FailedPreconditionError
├── UnsupportedArchitectureError   UNSUPPORTED_ARCHITECTURE: the model computes what packed rows cannot
│                                  express
└── StoreRefusedError              STORE_DENIED: no credentials, or the server denies them this
                                   STORE_BUCKET_MISSING, STORE_REFUSED: what the server says to a request
                                   STORE_WITHOUT_CONDITIONS: it does not honour conditional writes
                                   STORE_NOT_WRITABLE: the folder's permissions, or its disk
                                   STORE_CACHE_UNUSABLE: this machine's folder for loaded models
                                   STORE_NOT_ENCRYPTED: its address begins with http://
                                   STORE_SUPPORT_MISSING: the library for it is not installed
UnavailableError
└── StoreUnreachableError          STORE_UNREACHABLE: no answer, or none but "later"
                                   STORE_BUSY: other writers were faster each time
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError, UnavailableError


class UnsupportedArchitectureError(FailedPreconditionError):
    """The model mixes tokens in a way that cannot be kept apart in one packed row."""

    default_reason = "UNSUPPORTED_ARCHITECTURE"

    def __init__(self, message: str, *, architecture: str) -> None:
        super().__init__(message, architecture=architecture)
        self.architecture = architecture


class StoreRefusedError(FailedPreconditionError):
    """The server of the model store refuses; repeating is no use before somebody changes its settings."""

    default_reason = "STORE_REFUSED"


class StoreUnreachableError(UnavailableError):
    """The server of the model store does not answer; repeat."""

    default_reason = "STORE_UNREACHABLE"
