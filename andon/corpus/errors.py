"""What can be wrong with a data source.

AndonError
├── NotFoundError
│   └── SourceNotFoundError     nothing is there
└── InvalidArgumentError
    ├── UnknownFormatError      the rows are of no known shape
    └── MalformedRowError       one row breaks the shape of the others

ValueError
└── RowError                    one row, before anybody knows where it stood
"""

from __future__ import annotations

from andon.errors import InvalidArgumentError, NotFoundError


class SourceNotFoundError(NotFoundError):
    """Nothing is there under the name of the source."""

    default_reason = "DATA_SOURCE_NOT_FOUND"

    def __init__(self, source: str, detail: str = "no such file or folder") -> None:
        super().__init__(f"data source {source!r}: {detail}", source=source)
        self.source = source


class UnknownFormatError(InvalidArgumentError):
    """The rows of a source are of no known shape."""

    default_reason = "DATA_FORMAT_UNKNOWN"

    def __init__(self, source: str, wanted: str, found: str) -> None:
        super().__init__(f"data source {source!r}: expected {wanted}, found {found}", source=source)
        self.source = source


class MalformedRowError(InvalidArgumentError):
    """One row breaks the shape of its source."""

    default_reason = "DATA_ROW_MALFORMED"

    def __init__(self, source: str, row: int, problem: str) -> None:
        super().__init__(f"data source {source!r}, row {row}: {problem}", source=source, row=row)
        self.source = source
        self.row = row
        self.problem = problem


class RowError(ValueError):
    """A row cannot be read. ``reason`` is a word that a program may test."""

    def __init__(self, problem: str, reason: str = "MALFORMED_ROW") -> None:
        super().__init__(problem)
        self.reason = reason
