"""Decides what the exit code of a command means."""

from __future__ import annotations

from andon.errors import AndonError, InvalidArgumentError, UnavailableError

EXIT_FAILED = 1
EXIT_INVALID = 2  # wrong usage or input; the same code that wrong options give
EXIT_UNREACHABLE = 3


def exit_code(error: AndonError) -> int:
    """The exit code for an error that ended a command."""
    if isinstance(error, UnavailableError):
        return EXIT_UNREACHABLE
    if isinstance(error, InvalidArgumentError):
        return EXIT_INVALID
    return EXIT_FAILED
