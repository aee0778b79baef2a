"""Says beside every data set that Andon writes how it came to be: a file of JSON that names each filter.

A manifest holds the version of Andon, the command with its parameters, each input and output with SHA-256 and
number of rows, the rows that could not be read, and every filter in the order of use: what it left out or
changed, how often, why, and a few ids to look up. What is not named in a manifest was neither dropped nor
changed. It holds ids of rows and never their text. Filters count with a FilterTally; the ``andon data``
commands and the export of comparisons put the manifest together. It is published after its outputs, so a
manifest stands only beside whole files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import andon
from andon.corpus.atomic_file import AtomicFile

MANIFEST_SUFFIX = ".manifest.json"
MAX_EXAMPLES = 5
SCHEMA = "andon.data_manifest/1"

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """A file that was read."""

    path: str  # as it was given
    sha256: str
    row_count: int  # with the refused ones
    refused_count: int
    refused_by_reason: Mapping[str, int]
    refused_examples: Sequence[Mapping[str, Json]]  # row and reason


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport:
    """A file that was written."""

    path: str  # relative to the manifest
    sha256: str
    row_count: int
    counts: Mapping[str, int] = field(default_factory=dict)  # of what else is worth knowing, such as users


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterReport:
    """What one filter did."""

    name: str
    reason: str  # why it leaves out or changes what it does, in words
    unit: str  # what is counted: "row", "comparison", "pair" or "task"
    parameters: Mapping[str, Json]
    removed_count: int
    changed_count: int
    counts: Mapping[str, int]  # by kind, where the filter tells kinds apart
    example_ids: Sequence[str]  # of the first that were removed or changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """How a data set came to be."""

    schema: str = SCHEMA
    andon_version: str = andon.__version__
    created_time: str = field(default_factory=lambda: _now())
    command: str
    parameters: Mapping[str, Json]
    inputs: Sequence[InputReport]
    outputs: Sequence[OutputReport]
    filters: Sequence[FilterReport]  # in the order of use

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class FilterTally:
    """Counts what one filter leaves out or changes, and remembers the first few ids."""

    def __init__(
        self, name: str, *, reason: str, unit: str = "row", parameters: Mapping[str, Json] | None = None
    ) -> None:
        self.name = name
        self.removed_count = 0
        self.changed_count = 0
        self._reason = reason
        self._unit = unit
        self._parameters = dict(parameters or {})
        self._counts: Counter[str] = Counter()
        self._example_ids: list[str] = []

    def removed(self, row_id: str, *, kind: str | None = None, count: int = 1) -> None:
        """Something was left out."""
        self.removed_count += count
        self._remember(row_id, kind, count)

    def changed(self, row_id: str) -> None:
        """Something was written otherwise than it was read."""
        self.changed_count += 1
        self._remember(row_id, None, 0)

    def noticed(self, kind: str, count: int = 1) -> None:
        """Something of a kind was there; it says nothing about being left out."""
        self._counts[kind] += count

    def report(self) -> FilterReport:
        """What was counted so far."""
        return FilterReport(
            name=self.name,
            reason=self._reason,
            unit=self._unit,
            parameters=self._parameters,
            removed_count=self.removed_count,
            changed_count=self.changed_count,
            counts=dict(sorted(self._counts.items())),
            example_ids=tuple(self._example_ids),
        )

    def _remember(self, row_id: str, kind: str | None, count: int) -> None:
        if kind is not None:
            self._counts[kind] += count
        if len(self._example_ids) < MAX_EXAMPLES and row_id not in self._example_ids:
            self._example_ids.append(row_id)


class RefusalTally:
    """Counts the rows of an input that could not be read."""

    def __init__(self) -> None:
        self.count = 0
        self.by_reason: Counter[str] = Counter()
        self._examples: list[Mapping[str, Json]] = []

    def refused(self, row: int, reason: str) -> None:
        """A row, by its number, could not be read for this reason (a word)."""
        self.count += 1
        self.by_reason[reason] += 1
        if len(self._examples) < MAX_EXAMPLES:
            self._examples.append({"row": row, "reason": reason})

    def report(self, path: str, *, sha256: str, row_count: int) -> InputReport:
        """The input with what was refused of it."""
        return InputReport(
            path=path,
            sha256=sha256,
            row_count=row_count,
            refused_count=self.count,
            refused_by_reason=dict(sorted(self.by_reason.items())),
            refused_examples=tuple(self._examples),
        )


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output lies: beside it, under its whole name."""
    return output.with_name(output.name + MANIFEST_SUFFIX)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Puts the manifest on disk, whole or not at all."""
    with AtomicFile(path) as file:
        file.write(manifest.to_json().encode())
        file.finish()
        file.publish()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
