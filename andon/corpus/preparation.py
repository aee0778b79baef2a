"""Turns a file of rows into a filtered file, or into the sides of a split, each with its manifest.

What ``andon data`` does, without a screen. Rows pass one by one. Nothing appears under its name before all of
it is written; the manifest comes last. A row that cannot be read is counted and left out, or ends the work
when ``strict``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from andon.corpus.errors import (
    MalformedRowError,
    RowError,
    SourceNotFoundError,
    UnknownFormatError,
)
from andon.corpus.filters import FilterChain, FilterSettings
from andon.corpus.json_lines import RowReader, RowWriter
from andon.corpus.manifest import (
    InputReport,
    Json,
    Manifest,
    OutputReport,
    RefusalTally,
    manifest_path,
    write_manifest,
)
from andon.corpus.prepared_rows import PreparedRow, prepare_row, user_of
from andon.corpus.splits import Split
from andon.corpus.token_counts import TokenCounter
from andon.errors import InvalidArgumentError

OnRow = Callable[[], None]


class SplitBy(StrEnum):
    """What stands on one side only."""

    USER = "user"
    DOCUMENT = "document"


def filter_file(
    source: Path,
    destination: Path,
    *,
    settings: FilterSettings,
    counter: TokenCounter | None = None,
    strict: bool = False,
    on_row: OnRow = lambda: None,
) -> Manifest:
    """Writes the rows that the filters keep to ``destination``, in their order, and the manifest beside it.

    Raises SourceNotFoundError, UnknownFormatError, InvalidArgumentError and, when ``strict``,
    MalformedRowError.
    """
    if destination.exists() and destination.samefile(source):
        raise InvalidArgumentError("the output is the input", reason="SAME_FILE")
    chain = FilterChain(settings, counter)
    reading = _Reading(source, strict=strict, on_row=on_row)
    with RowWriter(destination) as writer:
        for row in reading.rows():
            kept = chain.apply(row)
            if kept is not None:
                writer.write(kept.row)
        writer.finish()
        manifest = Manifest(
            command="andon data filter",
            parameters=_parameters(settings, strict=strict),
            inputs=[reading.report()],
            outputs=[OutputReport(path=destination.name, sha256=writer.sha256, row_count=writer.row_count)],
            filters=chain.reports(),
        )
        writer.publish()
        write_manifest(manifest, manifest_path(destination))
    return manifest


def split_file(
    source: Path,
    folder: Path,
    *,
    split: Split,
    by: SplitBy,
    user_key: str | None = None,
    strict: bool = False,
    on_row: OnRow = lambda: None,
) -> Manifest:
    """Writes ``folder/NAME.jsonl`` (``.gz`` as the source) for each side, and ``folder/manifest.json``.

    By user, all rows of a user stand on one side; a row without a user goes by its document. By document, all
    rows with the same document do. Raises as filter_file, and InvalidArgumentError when no row names a user.
    """
    if (by is SplitBy.USER) != (user_key is not None):
        raise InvalidArgumentError(
            "a split by user needs a user key, and no other split has a use for one", reason="USER_KEY"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ending = ".jsonl.gz" if source.suffix == ".gz" else ".jsonl"
    reading = _Reading(source, strict=strict, on_row=on_row)
    users: dict[str, set[bytes]] = {name: set() for name in split.shares}
    without_user = dict.fromkeys(split.shares, 0)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(RowWriter(folder / f"{name}{ending}")) for name in split.shares}
        for writer in writers.values():
            if writer.path.exists() and writer.path.samefile(source):
                raise InvalidArgumentError("an output is the input", reason="SAME_FILE")
        for row in reading.rows():
            user = None if user_key is None else user_of(row.row, user_key)
            # Marked by what they are, so that a user called like a document is another key.
            side = split.side(f"document\n{row.document}" if user is None else f"user\n{user}")
            if user is None:
                without_user[side] += 1
            else:
                users[side].add(sha256(user.encode("utf-8", "surrogatepass")).digest()[:16])
            writers[side].write(row.row)
        if by is SplitBy.USER and not any(users.values()):
            raise InvalidArgumentError(f"no row names a user under {user_key!r}", reason="NO_USER")
        for writer in writers.values():
            writer.finish()
        manifest = Manifest(
            command="andon data split",
            parameters={
                "by": by.value,
                "user_key": user_key,
                "shares": dict(split.shares),
                "seed": split.seed,
                "strict": strict,
            },
            inputs=[reading.report()],
            outputs=[
                OutputReport(
                    path=writer.path.name,
                    sha256=writer.sha256,
                    row_count=writer.row_count,
                    counts=(
                        {"users": len(users[name]), "rows_without_user": without_user[name]}
                        if by is SplitBy.USER
                        else {}
                    ),
                )
                for name, writer in writers.items()
            ],
            filters=[],
        )
        for writer in writers.values():
            writer.publish()
        write_manifest(manifest, folder / "manifest.json")
    return manifest


class _Reading:
    """Reads the rows of a file and counts those that cannot be."""

    def __init__(self, path: Path, *, strict: bool, on_row: OnRow) -> None:
        if not path.exists() or path.is_dir():  # a pipe will do: it is read once
            raise SourceNotFoundError(str(path), "no such file")
        self._path = path
        self._strict = strict
        self._on_row = on_row
        self._reader = RowReader(path)
        self._refused = RefusalTally()

    def rows(self) -> Iterator[PreparedRow]:
        for number, row in self._reader.rows():
            self._on_row()
            try:
                if isinstance(row, RowError):
                    raise row
                yield prepare_row(row, number)
            except RowError as error:
                if self._strict:
                    raise MalformedRowError(str(self._path), number, str(error)) from error
                self._refused.refused(number, error.reason)
        if self._refused.count == self._reader.row_count > 0:
            reasons = ", ".join(self._refused.by_reason)
            raise UnknownFormatError(
                str(self._path), "rows of documents or comparisons", f"none that can be read ({reasons})"
            )

    def report(self) -> InputReport:
        return self._refused.report(
            str(self._path), sha256=self._reader.sha256, row_count=self._reader.row_count
        )


def _parameters(settings: FilterSettings, *, strict: bool) -> dict[str, Json]:
    return {
        **{name: value for name, value in asdict(settings).items() if name != "phone_regions"},
        "phone_regions": list(settings.phone_regions),
        "strict": strict,
    }
