"""The errors of the modeling package, beside the plain ones of ``andon.errors``.

FailedPreconditionError
└── UnsupportedArchitectureError   UNSUPPORTED_ARCHITECTURE: the model computes what packed rows cannot
express
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError


class UnsupportedArchitectureError(FailedPreconditionError):
    """The model mixes tokens in a way that cannot be kept apart in one packed row."""

    default_reason = "UNSUPPORTED_ARCHITECTURE"

    def __init__(self, message: str, *, architecture: str) -> None:
        super().__init__(message, architecture=architecture)
        self.architecture = architecture
