"""Keeps a model store in a folder that all processes mount.

A version becomes visible by the rename of a finished, synced folder, so a writer killed at any moment leaves
no half version. Numbers are drawn under a file lock, which the kernel frees when its holder dies. Beside the
versions, ``.incoming/`` holds folders being written, each held by a lock of its writer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from andon.errors import DataLossError, InvalidArgumentError
from andon.modeling.errors import StoreRefusedError
from andon.modeling.manifest import StoredFile
from andon.modeling.stores.files import MANIFEST_NAME, Pointer, describe_folder
from andon.modeling.stores.reservations import read_reservation
from andon.modeling.versions import is_family


class FolderFiles:
    """A ``files.StoreFiles``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    def check_readable(self) -> None:
        """Raises InvalidArgumentError NO_STORE where there is no folder."""
        if not self.root.is_dir():
            raise InvalidArgumentError(f"store: there is no folder {self.root}", reason="NO_STORE")

    def check_writable(self) -> None:
        """Take the lock once. Raises StoreRefusedError STORE_NOT_WRITABLE."""
        try:
            with self.exclusive():
                pass
        except OSError as error:
            raise StoreRefusedError(
                f"the store {self.root} cannot be written: {error}",
                reason="STORE_NOT_WRITABLE",
                store=self.root,
            ) from error

    # --- reading -------------------------------------------------------------------------------------------

    def families(self) -> Sequence[str]:
        """Folders that may be families."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and is_family(path.name))

    def manifests(self, family: str) -> Iterator[tuple[int, bytes]]:
        """One folder after the other."""
        for number in self._numbers(family):
            manifest = self.manifest(family, number)
            if manifest is not None:
                yield number, manifest

    def manifest(self, family: str, number: int) -> bytes | None:
        """Whoever made the folder put a manifest into it."""
        path = self._version_path(family, number)
        if not path.is_dir():
            return None
        return read_manifest(path)

    def version_location(self, family: str, number: int) -> str:
        """The version's folder."""
        return str(self._version_path(family, number))

    def describe(self, family: str, number: int) -> Iterator[StoredFile]:
        """Reads where it lies."""
        return describe_folder(self._version_path(family, number))

    def fetch(self, family: str, number: int, manifest: bytes, files: Sequence[StoredFile]) -> Path:
        """Everything is at hand already."""
        return self._version_path(family, number)

    def alias(self, name: str) -> Pointer | None:
        """The file's text."""
        path = self._alias_path(name)
        return Pointer(text=path.read_text().strip()) if path.is_file() else None

    def aliases(self) -> dict[str, str]:
        """Every file of the folder."""
        folder = self.root / "aliases"
        if not folder.is_dir():
            return {}
        return {path.name: path.read_text().strip() for path in sorted(folder.iterdir())}

    def reservation(self, family: str, run_id: str) -> bytes | None:
        """The run's file."""
        path = self._reservation_path(family, run_id)
        return path.read_bytes() if path.is_file() else None

    def reservations(self, family: str) -> Iterator[bytes]:
        """File by file."""
        folder = self.root / "reservations" / family
        if folder.is_dir():
            for path in sorted(folder.glob("*.json")):
                yield path.read_bytes()

    # --- writing -------------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One writer at a time draws numbers and renames."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """In the store's own file system; what dead writers left is removed on the way."""
        incoming = self.root / ".incoming"
        with self.exclusive():
            incoming.mkdir(exist_ok=True)
            _remove_leftovers(incoming)
            folder = incoming / uuid.uuid4().hex
            (folder / "model").mkdir(parents=True)
            held = (folder / "writer.lock").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder / "model"
        finally:
            # Under the lock: half removed, the folder would look like a dead writer's to the next one.
            with self.exclusive():
                shutil.rmtree(folder)
            held.close()

    def draw(self, family: str, count: int) -> int:
        """After all versions and all reservations."""
        taken = [read_reservation(text).numbers[-1] for text in self.reservations(family)]
        return max([0, *self._numbers(family), *taken]) + 1

    def add_version(self, family: str, number: int, folder: Path) -> bool:
        """Sync and rename."""
        target = self._version_path(family, number)
        if target.exists():
            return False
        _sync_tree(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)  # fails when the target exists: a version is never empty
        _sync_folder(target.parent)
        _sync_folder(self.root)
        return True

    def set_alias(self, name: str, text: str) -> None:
        """Replace the file."""
        self._replace_file(self._alias_path(name), f"{text}\n".encode())

    def move_alias(self, name: str, text: str, *, over: Pointer | None) -> bool:
        """The lock is held since ``over`` was read."""
        self.set_alias(name, text)
        return True

    def add_reservation(self, family: str, run_id: str, text: bytes) -> bytes:
        """The lock is held: there was none."""
        self._replace_file(self._reservation_path(family, run_id), text)
        return text

    # --- paths ---------------------------------------------------------------------------------------------

    def _version_path(self, family: str, number: int) -> Path:
        return self.root / family / f"{number:06d}"

    def _alias_path(self, name: str) -> Path:
        return self.root / "aliases" / name

    def _reservation_path(self, family: str, run_id: str) -> Path:
        return self.root / "reservations" / family / f"{run_id}.json"

    def _numbers(self, family: str) -> list[int]:
        folder = self.root / family
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())

    def _replace_file(self, path: Path, content: bytes) -> None:
        """Write a small file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = self.root / ".incoming" / f"{uuid.uuid4().hex}.file"
        incoming.parent.mkdir(exist_ok=True)
        try:
            with incoming.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            incoming.rename(path)
        finally:
            incoming.unlink(missing_ok=True)
        _sync_folder(path.parent)


def read_manifest(folder: Path) -> bytes:
    """The manifest in a version's folder. Raises DataLossError MODEL_DAMAGED."""
    try:
        return (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise DataLossError(
            f"the manifest of {folder.parent.name}/{folder.name} cannot be read",
            reason="MODEL_DAMAGED",
            file=MANIFEST_NAME,
        ) from error


def _remove_leftovers(incoming: Path) -> None:
    """Remove what dead writers left, whose locks the kernel has freed; call with the store locked."""
    for path in incoming.iterdir():
        if path.is_file():  # small files are written and renamed under the store's lock, which we hold
            path.unlink()
            continue
        lock = path / "writer.lock"
        if lock.exists():
            with lock.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
        shutil.rmtree(path, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Bring every file and folder to the disk and make the files read-only, for versions never change."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
