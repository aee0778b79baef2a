"""An export as bytes that go out while answers are read: bounded in memory whatever the size of the data.

Lines are made by ``andon.corpus.writers``, which works with plain iterators, in a thread of the export's own;
it asks the event loop for the next page of answers, and the loop asks a database thread. An archive holds the
rows and the manifest that names what was left out; rows alone go without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import zipfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from andon.corpus.json_lines import line_from_row
from andon.corpus.manifest import MANIFEST_SUFFIX, Json, Manifest, OutputReport
from andon.corpus.records import ComparisonRecord
from andon.corpus.writers import ComparisonExport, ExportOptions
from services.labeling.answers import Comparison
from services.labeling.demonstration_store import Demonstration
from services.labeling.export_records import record_of

_LINES_AT_A_TIME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAbout:
    """What the manifest says of an export beside what was left out."""

    command: str
    parameters: Mapping[str, Json]
    file_name: str  # of the rows


async def comparison_lines(
    pages: AsyncIterator[list[Comparison]], options: ExportOptions
) -> AsyncIterator[bytes]:
    """The rows alone, as JSON Lines."""
    export = ComparisonExport(options)
    async for chunk in _in_thread(lambda records: _lines(export, records), pages):
        yield chunk


async def comparison_archive(
    pages: AsyncIterator[list[Comparison]], options: ExportOptions, about: ExportAbout
) -> AsyncIterator[bytes]:
    """A ZIP archive with the rows and their manifest."""
    export = ComparisonExport(options)
    async for chunk in _in_thread(lambda records: _archive(export, records, about), pages):
        yield chunk


async def demonstration_lines(pages: AsyncIterator[list[Demonstration]]) -> AsyncIterator[bytes]:
    """Written texts as documents with their summary, which supervised fine-tuning reads."""
    async for page in pages:
        rows = [line_from_row(demonstration_row(text)) for text in page]
        yield "".join(f"{row}\n" for row in rows).encode()


def demonstration_row(text: Demonstration) -> dict[str, Any]:
    """A text that somebody wrote, as a row of documents."""
    return {
        "document_id": text.document_id,
        "document": text.document,
        "summaries": [text.text],
        "kind": text.kind.value,
        "labeler_id": text.labeler_id,
        "note": text.note,
        "project": text.project,
        "batch": text.batch,
        "demonstration_id": str(text.demonstration_id),
        "task_id": str(text.task_id),
    }


def _lines(export: ComparisonExport, records: Iterator[ComparisonRecord]) -> Generator[bytes, None, None]:
    lines = export.lines(records)
    while chunk := list(itertools.islice(lines, _LINES_AT_A_TIME)):
        yield "".join(f"{line.text}\n" for line in chunk).encode()


def _archive(
    export: ComparisonExport, records: Iterator[ComparisonRecord], about: ExportAbout
) -> Generator[bytes, None, None]:
    sink = _Sink()
    digest = hashlib.sha256()
    num_rows = 0
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        # The size is known at the end only, so the archive must be able to hold a large one.
        with archive.open(about.file_name, "w", force_zip64=True) as file:
            for chunk in _lines(export, records):
                num_rows += chunk.count(b"\n")
                digest.update(chunk)
                file.write(chunk)
                if sink.size >= 1 << 15:
                    yield sink.take()
        manifest = Manifest(
            command=about.command,
            parameters={**about.parameters, "comparison_count": export.comparison_count},
            inputs=[],
            outputs=[OutputReport(path=about.file_name, sha256=digest.hexdigest(), row_count=num_rows)],
            filters=export.filters(),
        )
        archive.writestr(about.file_name + MANIFEST_SUFFIX, manifest.to_json())
    yield sink.take()


class _Sink(io.RawIOBase):
    """Keeps what an archive writes until it is taken. It cannot be sought, so nothing is written twice."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # any buffer
        self._chunks.append(bytes(data))
        self.size += len(self._chunks[-1])
        return len(self._chunks[-1])

    def take(self) -> bytes:
        """Everything since the last time."""
        taken = b"".join(self._chunks)
        self._chunks, self.size = [], 0
        return taken


async def _in_thread(
    make: Callable[[Iterator[ComparisonRecord]], Generator[bytes, None, None]],
    pages: AsyncIterator[list[Comparison]],
) -> AsyncIterator[bytes]:
    """What an iterator over records makes, each step in one thread that is the export's own."""
    loop = asyncio.get_running_loop()

    async def next_page() -> list[Comparison]:
        return await anext(pages, [])

    def records() -> Iterator[ComparisonRecord]:
        # A page without answers ends the stream: pages_of_comparisons gives none.
        while page := asyncio.run_coroutine_threadsafe(next_page(), loop).result():
            for comparison in page:
                yield record_of(comparison)

    made = make(records())
    thread = ThreadPoolExecutor(1, thread_name_prefix="export")
    try:
        while (chunk := await loop.run_in_executor(thread, next, made, b"")) != b"":
            yield chunk
    finally:
        # After the step that may still run, when the reader has gone.
        thread.submit(made.close)
        thread.shutdown(wait=False)
