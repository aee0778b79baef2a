"""What the model store asks of the place where its bytes are.

``store.ModelStore`` decides about names, numbers that may be published, lineage and manifests. A place keeps
these files, whatever it is made of::

    policy/000012/          a version in Hugging Face format with manifest.json; it never changes
    aliases/policy@stable   a movable name: the version's name as text
    reservations/policy/    numbers taken by runs, one JSON file for each run
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from andon.modeling.manifest import StoredFile

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """What an alias said when it was read; ``tag`` tells the place whether it still says so."""

    text: str
    tag: str = ""


class StoreFiles(Protocol):
    """A place. Families, aliases and run ids are checked before they come here."""

    @property
    def location(self) -> str:
        """The place as a person writes it."""

    def check_readable(self) -> None:
        """Find out now whether reads can work. Raises the place's errors."""

    def check_writable(self) -> None:
        """Find out now whether all writes can work. Raises the place's errors."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Held while numbers are drawn and versions added.

        Whether others are kept out is the place's own affair; that no write of theirs is lost is its duty.
        """

    def workspace(self) -> AbstractContextManager[Path]:
        """An empty folder on this machine for a version in the making; it is gone afterwards."""

    def families(self) -> Sequence[str]:
        """In order, also those with reservations only left out."""

    def manifests(self, family: str) -> Iterator[tuple[int, bytes]]:
        """Number and manifest.json of every version, by number."""

    def manifest(self, family: str, number: int) -> bytes | None:
        """The version's manifest.json; None where there is no such version.

        Raises DataLossError MODEL_DAMAGED where the version is there and its manifest is not.
        """

    def version_location(self, family: str, number: int) -> str:
        """Where the version is, for people."""

    def describe(self, family: str, number: int) -> Iterator[StoredFile]:
        """Read every file of a version but its manifest, in order, and say what was found."""

    def fetch(self, family: str, number: int, manifest: bytes, files: Sequence[StoredFile]) -> Path:
        """A folder of this machine with at least these files of a version, as the manifest describes them.

        Raises DataLossError MODEL_DAMAGED.
        """

    def draw(self, family: str, count: int) -> int:
        """The first of ``count`` consecutive numbers; call it inside ``exclusive`` and use them there."""

    def add_version(self, family: str, number: int, folder: Path) -> bool:
        """Make what lies in ``folder`` visible as a version, all at once; False where it already is one."""

    def alias(self, name: str) -> Pointer | None:
        """What an alias says."""

    def aliases(self) -> dict[str, str]:
        """All of them, by name."""

    def set_alias(self, name: str, text: str) -> None:
        """Write an alias, whatever it says now."""

    def move_alias(self, name: str, text: str, *, over: Pointer | None) -> bool:
        """Write an alias only if it still says ``over``; None: if there is none yet."""

    def reservation(self, family: str, run_id: str) -> bytes | None:
        """What a run reserved."""

    def reservations(self, family: str) -> Iterator[bytes]:
        """What all runs reserved, by run id."""

    def add_reservation(self, family: str, run_id: str, text: bytes) -> bytes:
        """Record it unless there is one; returns what is recorded."""


def describe_file(folder: Path, path: str) -> StoredFile:
    """Size and digest of one file, read now."""
    with (folder / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256)


def describe_folder(folder: Path) -> Iterator[StoredFile]:
    """All files below a version's folder but its manifest, in order."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for path in sorted(paths):
        if path != MANIFEST_NAME:
            yield describe_file(folder, path)
