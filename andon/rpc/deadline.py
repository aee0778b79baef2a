"""Decides until when a call is worth working on, and lets the work that a call causes ask.

The interceptor sets the deadline; the model worker looks at it before it starts queued work. The clock is
``time.monotonic``: it does not jump when somebody sets the machine's time.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

_call_deadline: ContextVar[float | None] = ContextVar("andon_call_deadline", default=None)


def set_call_deadline(remaining_s: float) -> None:
    """Note that the current call ends ``remaining_s`` seconds from now."""
    _call_deadline.set(time.monotonic() + remaining_s)


def call_deadline() -> float | None:
    """The current call's deadline on the monotonic clock, or None outside of a call."""
    return _call_deadline.get()
