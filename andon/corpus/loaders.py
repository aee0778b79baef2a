"""Reads documents and comparisons from where a user has them.

A source is one of

    path/to/rows.jsonl       a JSON Lines file, ``.gz`` or not
    path/to/folder           every such file in it whose rows have the wanted shape, and for documents
    ``*.txt`` too path/to/folder#train     only files whose name begins with the split's name
    hf:NAME  hf:NAME#train   a Hugging Face data set, by the ``datasets`` library

The training stages, the CLI and the labeling service's import call this. Shapes of rows are told apart by
``andon.corpus.formats``; how lines become rows is ``andon.corpus.json_lines``. ``load_*`` raise at the first
row that breaks the shape of its file; ``iter_comparisons`` reports such a row and goes on. One row at a time
is held in memory, however large the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from andon.corpus.errors import MalformedRowError, RowError, SourceNotFoundError, UnknownFormatError
from andon.corpus.formats import (
    NO_ANSWER,
    NO_COMPARISON,
    Row,
    comparison_reader,
    document_from_row,
    is_document_row,
)
from andon.corpus.json_lines import read_rows
from andon.corpus.records import ComparisonRecord, DocumentRecord

HUB_PREFIX = "hf:"
# Data sets name their second split in three ways.
_SPLIT_NAMES = {"validation": ("validation", "valid", "dev"), "valid": ("valid", "validation", "dev")}

Record = TypeVar("Record")
NumberedRow = tuple[int, Row | RowError]  # a line's number, counted from 1, and what it holds
OnRefused = Callable[[int, str, str], None]  # a row's number, a word for the reason, and the reason in words


def load_documents(source: str) -> list[DocumentRecord]:
    """All documents of a source, in its order.

    Raises SourceNotFoundError, UnknownFormatError or MalformedRowError.
    """
    documents = [
        record
        for origin, rows in _open_source(source, _holds_documents, "documents")
        for _, record in _read(
            origin, rows, lambda row, row_id: [document_from_row(row, row_id)], _raise_at(origin)
        )
    ]
    path, _ = _split_source(source)
    if not documents and Path(path).is_dir():
        documents = [
            DocumentRecord(document_id=file.stem, document=text)
            for file in sorted(Path(path).glob("*.txt"))
            if (text := file.read_text(encoding="utf-8").strip())
        ]
    if not documents:
        raise UnknownFormatError(source, "rows with a document", "none")
    return documents


def load_comparisons(source: str) -> list[ComparisonRecord]:
    """All comparisons of a source, in its order. A sound row in which nobody decided anything gives none.

    Raises SourceNotFoundError, UnknownFormatError or MalformedRowError.
    """
    comparisons = [
        record
        for origin, rows in _open_source(source, _holds_comparisons, "comparisons")
        for _, record in _read(origin, rows, _read_comparisons, _raise_at(origin))
    ]
    if not comparisons:
        raise UnknownFormatError(source, "rows with a comparison", "none")
    return comparisons


def iter_comparisons(source: str, *, on_refused: OnRefused) -> Iterator[tuple[int, ComparisonRecord]]:
    """The comparisons of a source with the number of the line each stands on; one line may hold several.

    A row that cannot be read is reported and passed over. The words for reasons are NOT_JSON, ROW_TOO_LONG,
    INVALID_TEXT, NO_COMPARISON (of no known shape), NO_ANSWER, EMPTY_DOCUMENT, INVALID_CANDIDATE,
    CANDIDATE_COUNT, INVALID_ANSWER, INVALID_CONFIDENCE, INVALID_RATING and MALFORMED_ROW for the rest. Lines
    of a folder are counted in each file anew, and the words name the file.

    Raises SourceNotFoundError where there is nothing, and UnknownFormatError for a damaged archive.
    """
    path, _ = _split_source(source)
    many = Path(path).is_dir()
    for origin, rows in _open_source(source, _holds_comparisons, "comparisons", tolerant=True):
        name = Path(origin).name

        def report(number: int, error: RowError, name: str = name) -> None:
            on_refused(number, error.reason, f"{name}: {error}" if many else str(error))

        yield from _read(origin, rows, _read_comparisons, report)


def _read_comparisons(row: Row, row_id: str) -> list[ComparisonRecord]:
    reader = comparison_reader(row)
    if reader is None:
        raise RowError(f"holds no comparison (keys: {_keys(row)})", NO_COMPARISON)
    return reader(row, row_id)


def _holds_comparisons(row: Row) -> bool:
    return comparison_reader(row) is not None


def _holds_documents(row: Row) -> bool:
    return is_document_row(row) and comparison_reader(row) is None


def _raise_at(origin: str) -> Callable[[int, RowError], None]:
    def refuse(number: int, error: RowError) -> None:
        if error.reason != NO_ANSWER:
            raise MalformedRowError(origin, number, str(error)) from error

    return refuse


def _read(
    origin: str,
    rows: Iterator[NumberedRow],
    read: Callable[[Row, str], list[Record]],
    refuse: Callable[[int, RowError], None],
) -> Iterator[tuple[int, Record]]:
    stem = Path(origin).name.split(".")[0]
    for number, row in rows:
        if isinstance(row, RowError):
            refuse(number, row)
            continue
        try:
            records = read(row, f"{stem}-{number}")
        except RowError as error:
            refuse(number, error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # Foreign rows break in every way a foreign value can; each is this one row's fault.
            refuse(number, RowError(f"{type(error).__name__}: {error}"))
        else:
            for record in records:
                yield number, record


def _open_source(
    source: str, wanted: Callable[[Row], bool], what: str, *, tolerant: bool = False
) -> Iterator[tuple[str, Iterator[NumberedRow]]]:
    """Yields (origin, numbered rows) for every part of the source whose first row is wanted; a single file
    is taken as it is when ``tolerant``.
    """
    path_or_name, split = _split_source(source)
    if path_or_name.startswith(HUB_PREFIX):
        yield source, _hub_rows(source, path_or_name.removeprefix(HUB_PREFIX), split or "train")
        return
    path = Path(path_or_name).expanduser()
    if path.is_file():
        first = None if tolerant else _first_row(path)
        if first is not None and not isinstance(first, RowError) and not wanted(first):
            raise UnknownFormatError(source, f"rows of {what}", f"keys {_keys(first)}")
        yield str(path), read_rows(path)
        return
    if not path.is_dir():
        raise SourceNotFoundError(source)
    prefixes = _SPLIT_NAMES.get(split, (split,)) if split else ("",)
    files = [
        file
        for file in sorted(path.iterdir())
        if file.name.endswith((".jsonl", ".jsonl.gz")) and file.name.startswith(prefixes)
    ]
    if split and not files:
        raise SourceNotFoundError(source, f"no JSON Lines file of split {split!r}")
    for file in files:
        first = _first_row(file)
        if first is not None and (isinstance(first, RowError) or wanted(first)):
            yield str(file), read_rows(file)


def _first_row(path: Path) -> Row | RowError | None:
    """The first sound row of a file, else what is wrong with its first line; None for an empty file."""
    problem: RowError | None = None
    with closing(read_rows(path)) as rows:
        for _, row in rows:
            if not isinstance(row, RowError):
                return row
            problem = problem or row
    return problem


def _split_source(source: str) -> tuple[str, str]:
    path, _, split = source.partition("#")
    return path, split


def _keys(row: Row) -> str:
    shown = sorted(str(key)[:40] for key in row)
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def _hub_rows(source: str, name: str, split: str) -> Iterator[NumberedRow]:
    import datasets  # imported late: it takes a second and only hub sources need it

    try:
        rows = datasets.load_dataset(name, split=split)
    except (FileNotFoundError, ValueError, ConnectionError, OSError) as error:
        raise SourceNotFoundError(source, str(error)) from error
    yield from enumerate(rows, 1)
