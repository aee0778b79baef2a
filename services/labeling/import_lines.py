"""Which lines of JSON hold answers that were given elsewhere, for those who paste them into a page.

A line may be of any shape that ``andon.corpus.formats`` knows, and may hold several answers. One that cannot
be read is refused with its reason; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from andon.corpus.errors import RowError
from andon.corpus.formats import NO_COMPARISON, comparison_reader
from andon.corpus.records import ComparisonRecord
from services.labeling.errors import InvalidFieldError
from services.labeling.export_records import import_row_of
from services.labeling.imports import MAX_REFUSED_TOLD, ImportRow, ImportTally, Refusal, check_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLines:
    """What stands in a text."""

    rows: tuple[ImportRow, ...]  # that can be recorded
    refused: ImportTally  # what became of the others
    num_lines: int  # that are not empty


def read_import_lines(text: str, *, max_text_chars: int) -> ImportLines:
    """Read JSON Lines; rows are numbered by their lines, from 1."""
    rows: list[ImportRow] = []
    unreadable: list[Refusal] = []
    num_lines = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        num_lines += 1
        try:
            rows += [import_row_of(record, row=number) for record in _records(line, number)]
        except (RowError, InvalidFieldError) as error:
            words = error.message if isinstance(error, InvalidFieldError) else str(error)
            unreadable.append(Refusal(row=number, reason=error.reason, message=words))
    kept, refused = check_rows(rows, max_text_chars=max_text_chars)
    found = (*unreadable, *refused.refused)
    return ImportLines(
        rows=tuple(kept),
        refused=ImportTally(
            num_refused=len(unreadable) + refused.num_refused,
            refused=tuple(sorted(found, key=lambda one: one.row)[:MAX_REFUSED_TOLD]),
        ),
        num_lines=num_lines,
    )


def _records(line: str, number: int) -> Iterator[ComparisonRecord]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise RowError("not JSON that can be read: nested too deeply", "NOT_JSON") from None
    except ValueError as error:  # JSONDecodeError, and numbers with thousands of digits
        raise RowError(f"not JSON: {error}", "NOT_JSON") from None
    if not isinstance(row, dict):
        raise RowError("not a JSON object", "NOT_JSON")
    reader = comparison_reader(row)
    if reader is None:
        keys = ", ".join(sorted(row)[:10]) or "none"
        raise RowError(f"holds no comparison (keys: {keys[:200]})", NO_COMPARISON)
    try:
        yield from reader(row, f"line-{number}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        # Foreign rows break in every way a foreign value can; each is this one line's fault.
        raise RowError(f"{type(error).__name__}: {error}"[:300]) from error
