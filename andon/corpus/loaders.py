"""Reads documents and comparisons from where a user has them.

A source is one of

    path/to/rows.jsonl       a JSON Lines file, ``.gz`` or not
    path/to/folder           every such file in it whose rows have the wanted shape, and for documents
    ``*.txt`` too path/to/folder#train     only files whose name begins with the split's name
    hf:NAME  hf:NAME#train   a Hugging Face data set, by the ``datasets`` library

The training stages and the CLI call this. Shapes of rows are told apart by ``andon.corpus.formats``. A row
that breaks the shape of its file is an error with its number, never skipped.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from andon.corpus.errors import MalformedRowError, SourceNotFoundError, UnknownFormatError
from andon.corpus.formats import Row, RowError, comparison_reader, document_from_row, is_document_row
from andon.corpus.records import ComparisonRecord, DocumentRecord

HUB_PREFIX = "hf:"
# Data sets name their second split in three ways.
_SPLIT_NAMES = {"validation": ("validation", "valid", "dev"), "valid": ("valid", "validation", "dev")}

Record = TypeVar("Record")


def load_documents(source: str) -> list[DocumentRecord]:
    """All documents of a source, in its order.

    Raises SourceNotFoundError, UnknownFormatError or MalformedRowError.
    """
    documents = [
        record
        for origin, rows in _open_source(source, _holds_documents, "documents")
        for record in _read(origin, rows, lambda row, row_id: [document_from_row(row, row_id)])
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
    """All comparisons of a source, in its order.

    Raises SourceNotFoundError, UnknownFormatError or MalformedRowError.
    """

    def read(row: Row, row_id: str) -> list[ComparisonRecord]:
        reader = comparison_reader(row)
        if reader is None:
            raise RowError(f"holds no comparison (keys: {', '.join(sorted(row))})")
        return reader(row, row_id)

    comparisons = [
        record
        for origin, rows in _open_source(
            source, lambda row: comparison_reader(row) is not None, "comparisons"
        )
        for record in _read(origin, rows, read)
    ]
    if not comparisons:
        raise UnknownFormatError(source, "rows with a comparison", "none")
    return comparisons


def _holds_documents(row: Row) -> bool:
    return is_document_row(row) and comparison_reader(row) is None


def _read(
    origin: str, rows: Iterator[tuple[int, Row]], read: Callable[[Row, str], list[Record]]
) -> Iterator[Record]:
    stem = Path(origin).name.split(".")[0]
    for number, row in rows:
        try:
            yield from read(row, f"{stem}-{number}")
        except (RowError, KeyError, TypeError, AttributeError, ValueError) as error:
            # Foreign rows break in every way a foreign value can; each is this one row's fault.
            raise MalformedRowError(origin, number, str(error) or type(error).__name__) from error


def _open_source(
    source: str, wanted: Callable[[Row], bool], what: str
) -> Iterator[tuple[str, Iterator[tuple[int, Row]]]]:
    """Yields (origin, numbered rows) for every part of the source whose first row is wanted."""
    path_or_name, split = _split_source(source)
    if path_or_name.startswith(HUB_PREFIX):
        yield source, _hub_rows(source, path_or_name.removeprefix(HUB_PREFIX), split or "train")
        return
    path = Path(path_or_name).expanduser()
    if path.is_file():
        first = next(_file_rows(path), None)
        if first is not None and not wanted(first[1]):
            raise UnknownFormatError(source, f"rows of {what}", f"keys {', '.join(sorted(first[1]))}")
        yield str(path), _file_rows(path)
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
        first = next(_file_rows(file), None)
        if first is not None and wanted(first[1]):
            yield str(file), _file_rows(file)


def _split_source(source: str) -> tuple[str, str]:
    path, _, split = source.partition("#")
    return path, split


def _file_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Numbered JSON objects of a JSON Lines file, counted from 1; blank lines are passed over."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise MalformedRowError(str(path), number, f"not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise MalformedRowError(str(path), number, f"not a JSON object but {type(row).__name__}")
                yield number, row
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise UnknownFormatError(str(path), "JSON Lines in UTF-8", str(error)) from error


def _hub_rows(source: str, name: str, split: str) -> Iterator[tuple[int, Row]]:
    import datasets  # imported late: it takes a second and only hub sources need it

    try:
        rows = datasets.load_dataset(name, split=split)
    except (FileNotFoundError, ValueError, ConnectionError, OSError) as error:
        raise SourceNotFoundError(source, str(error)) from error
    yield from enumerate(rows, 1)
