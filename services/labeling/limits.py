"""Which texts and names this service takes in.

The rules for tasks, answers, leases and the cord call these; they know nothing of what the texts mean. A
text may not hold U+0000, because PostgreSQL cannot store it and both engines must take the same requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from services.labeling.errors import InvalidFieldError

Clock = Callable[[], int]  # microseconds since 1970 in UTC

MAX_REQUEST_ID_CHARS = 200
MAX_NOTE_CHARS = 10_000

_BATCH = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LABELER = re.compile(r"[A-Za-z0-9._@-]{1,200}")


def check_request_id(request_id: str) -> None:
    """A request_id is 1 to 200 printable characters, not only spaces."""
    if not request_id.strip() or len(request_id) > MAX_REQUEST_ID_CHARS or not request_id.isprintable():
        raise InvalidFieldError(
            f"1 to {MAX_REQUEST_ID_CHARS} printable characters, unique per request",
            reason="INVALID_REQUEST_ID",
            field="request_id",
        )


def check_batch(batch: str) -> None:
    """A batch name is 1 to 100 letters, digits, dots, underscores and hyphens."""
    if _BATCH.fullmatch(batch) is None:
        raise InvalidFieldError(
            "1 to 100 letters, digits, '.', '_' or '-'", reason="INVALID_BATCH", field="batch"
        )


def check_batch_filter(batch: str) -> None:
    """As :func:`check_batch`, but empty means every batch."""
    if batch:
        check_batch(batch)


def check_labeler(labeler_id: str) -> None:
    """A labeler's id is 1 to 200 letters, digits, dots, underscores, hyphens and at signs."""
    if _LABELER.fullmatch(labeler_id) is None:
        raise InvalidFieldError(
            "1 to 200 letters, digits, '.', '_', '-' or '@'", reason="INVALID_LABELER", field="labeler_id"
        )


def check_text(text: str, *, field: str, max_chars: int, reason: str | None = None) -> None:
    """A text is short enough and storable. ``reason`` replaces the two usual ones."""
    if len(text) > max_chars:
        raise InvalidFieldError(
            f"{len(text):,} characters; at most {max_chars:,}", reason=reason or "TEXT_TOO_LONG", field=field
        )
    if "\x00" in text:
        raise InvalidFieldError("holds the character U+0000", reason=reason or "INVALID_TEXT", field=field)
