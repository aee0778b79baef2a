"""A row of a data set as the ``andon data`` commands see it: whole, with its document and its user found.

The row itself is kept as it was read, so that what no filter knows of comes out unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from andon.corpus import row_values
from andon.corpus.errors import RowError
from andon.corpus.formats import Row, comparison_reader, document_from_row, is_document_row
from andon.errors import InvalidArgumentError

MAX_ID_CHARS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRow:
    """A sound row."""

    row: Row
    number: int  # of its line, from 1
    row_id: str  # its own id, else "row N"
    document: str
    summaries: tuple[str, ...]  # () for comparisons
    is_comparison: bool

    def with_row(self, row: Row) -> PreparedRow:
        """The same row with other texts."""
        return prepare_row(row, self.number)

    def require_document_row(self, filter_name: str) -> None:
        """Raises InvalidArgumentError for comparisons: many rows about one document are no duplicates there,
        and none has a reference.
        """
        if self.is_comparison:
            raise InvalidArgumentError(
                f"row {self.number} is a comparison; the filter {filter_name} is for documents",
                reason="FILTER_NOT_FOR_COMPARISONS",
            )


def prepare_row(row: Row, number: int) -> PreparedRow:
    """Finds the row's document. Raises RowError when the row is of no known shape or its values are not."""
    name = f"row {number}"
    try:
        reader = comparison_reader(row)
        if reader is not None:
            records = reader(row, name)
            return PreparedRow(
                row=row,
                number=number,
                row_id=_own_id(row) or name,
                document=records[0].document,
                summaries=(),
                is_comparison=True,
            )
        if not is_document_row(row):
            raise RowError("holds neither a document nor a comparison", "NO_DOCUMENT")
        record = document_from_row(row, name)
    except RowError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # Foreign rows break in every way a foreign value can.
        raise RowError(f"{type(error).__name__}: {error}") from error
    return PreparedRow(
        row=row,
        number=number,
        row_id=_own_id(row) or name,
        document=record.document,
        summaries=record.summaries,
        is_comparison=False,
    )


def user_of(row: Row, key: str) -> str | None:
    """The user that the row names under the key, ``info.author`` being ``author`` within ``info``; None where
    there is none.
    """
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)


def _own_id(row: Row) -> str:
    for key in ("id", "document_id", "item_id", "comparison_id"):
        value = row.get(key)
        if value is not None and value != "":
            own_id = row_values.identifier(value, key)[:MAX_ID_CHARS]
            return "" if "@" in own_id else own_id  # a mail address must not come into a manifest
    return ""
