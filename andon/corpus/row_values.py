"""Decides what a value of a foreign row may be.

Each function takes a decoded JSON value and what to call it, and gives it back with its type or raises
RowError. Used by ``andon.corpus.formats`` and ``andon.corpus.export_format``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from andon.corpus.errors import RowError

MAX_CONFIDENCE = 9
MAX_RATING = 7


def text(value: object, what: str, *, reason: str = "MALFORMED_ROW") -> str:
    """A text that any encoding can hold; it may be empty."""
    if not isinstance(value, str):
        raise RowError(f"{what} must be a text, not {_kind(value)}", reason)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{what} holds half a character (U+{ord(value[error.start]):04X})", "INVALID_TEXT"
            ) from error
    return value


def document_text(value: object, what: str) -> str:
    """A document: a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{what} must be a text that is not empty", "EMPTY_DOCUMENT")
    return text(value, what)


def candidate_text(value: object) -> str:
    """A text that was compared. It may be empty: people judged that nothing, too."""
    return text(value, "a candidate", reason="INVALID_CANDIDATE").strip()


def identifier(value: object, what: str) -> str:
    """An id or a name: a text or a whole number; "" for null."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value, what)


def whole_number(value: object, what: str, *, low: int, high: int | None = None) -> int:
    """A whole number in a range; JSON's 3.0 is one, true is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    wanted = f"{low} or more" if high is None else f"{low}..{high}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"{what} must be a whole number, {wanted}, not {_kind(value)}")
    if value < low or (high is not None and value > high):
        raise RowError(f"{what} must be {wanted}, not {value}")
    return value


def scale_point(value: object, what: str, *, high: int, reason: str) -> int | None:
    """A point on a scale 1..high; None for null and for 0, which says "not asked"."""
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None
    try:
        return whole_number(value, what, low=1, high=high)
    except RowError as error:
        raise RowError(str(error), reason) from error


def seconds(value: object, what: str) -> float | None:
    """A span of time that is not negative; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"{what} must be a number of seconds, not {_kind(value)}")
    if not math.isfinite(value) or value < 0:
        raise RowError(f"{what} must be finite and not negative, not {value}")
    return float(value)


def moment(value: object, what: str) -> str | None:
    """A moment in ISO 8601 with a time zone, as UTC with a ``Z``; None for null.

    What ends in ``Z`` already is kept letter for letter, so that no digit of the seconds is lost.
    """
    if value is None:
        return None
    given = text(value, what)
    try:
        parsed = datetime.fromisoformat(given)
        if parsed.tzinfo is None:
            raise RowError(f"{what} has no time zone: {given[:40]!r}")
        utc = parsed.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"{what} is no moment in ISO 8601: {given[:40]!r}") from error
    return given if given.endswith("Z") else utc.isoformat().replace("+00:00", "Z")


def truth(value: object, what: str) -> bool:
    """True or false; null is false."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RowError(f"{what} must be true or false, not {_kind(value)}")
    return value


def entries(value: object, what: str) -> Sequence[object]:
    """A list; null is an empty one."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{what} must be a list, not {_kind(value)}")
    return value


def permutation(value: object, what: str, *, size: int) -> tuple[int, ...]:
    """A list with each of 0..size-1 once, or an empty one."""
    order = tuple(whole_number(entry, what, low=0) for entry in entries(value, what))
    if order and sorted(order) != list(range(size)):
        raise RowError(f"{what} must hold each of 0..{size - 1} exactly once", "INVALID_ANSWER")
    return order


def tiers_of_choice(choice: object, candidate_count: int) -> tuple[tuple[int, ...], ...]:
    """The decision "candidate ``choice`` is best" (null: all alike) as tiers."""
    everyone = range(candidate_count)
    if choice is None:
        return (tuple(everyone),)
    if not isinstance(choice, int) or isinstance(choice, bool) or choice not in everyone:
        raise RowError(
            f"choice must be null or 0..{candidate_count - 1}, not {choice!r}"[:200], "INVALID_ANSWER"
        )
    return ((choice,), tuple(index for index in everyone if index != choice))


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
