"""Keeps versions of a bucket on this machine's disk: a file is whole and as its manifest says, or not there.

Below the root there is a folder for each manifest, named by its SHA-256, so that a version of another store,
or of a store that was made anew, is never taken for one that happens to have its name. Several processes may
share a cache: one of them downloads a version, the others wait for its lock, which the kernel frees when its
holder dies. Nothing is ever removed here; whoever needs the room deletes folders.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from andon.errors import DataLossError
from andon.modeling.errors import StoreRefusedError
from andon.modeling.manifest import StoredFile
from andon.modeling.stores.files import describe_file


def default_cache_folder() -> Path:
    """``andon/models`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andon" / "models"


class VersionCache:
    """A folder with downloaded versions."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(
        self,
        place: str,
        manifest: bytes,
        files: Sequence[StoredFile],
        download: Callable[[StoredFile, Path], None],
    ) -> Path:
        """The folder with at least these files of a version; ``place`` is "policy/000012".

        ``download`` is called for each file that is not here yet. Raises DataLossError MODEL_DAMAGED for one
        that comes in another shape than ``StoredFile`` says, and keeps nothing of it; StoreRefusedError
        STORE_CACHE_UNUSABLE where the folder cannot be written or is full.
        """
        try:
            return self._fetch(place, manifest, files, download)
        except OSError as error:
            raise StoreRefusedError(
                f"the cache {self.root} for models of the store cannot be used: {error}",
                reason="STORE_CACHE_UNUSABLE",
                folder=self.root,
            ) from error

    def _fetch(
        self,
        place: str,
        manifest: bytes,
        files: Sequence[StoredFile],
        download: Callable[[StoredFile, Path], None],
    ) -> Path:
        own = self.root / hashlib.sha256(manifest).hexdigest()[:32]
        folder = own / place
        if all(_is_here(folder, file) for file in files):
            return folder
        own.mkdir(parents=True, exist_ok=True)
        with _locked(own / ".lock"):
            for leftover in own.rglob(".*.partial"):  # of processes that died; the lock is ours
                leftover.unlink()
            for file in files:
                if not _is_here(folder, file):
                    _bring(folder, file, download)
        return folder


def _is_here(folder: Path, file: StoredFile) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes


def _bring(folder: Path, file: StoredFile, download: Callable[[StoredFile, Path], None]) -> None:
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        download(file, partial)
        found = describe_file(partial.parent, partial.name)
        if (found.size_bytes, found.sha256) != (file.size_bytes, file.sha256):
            raise DataLossError(
                f"{folder.parent.name}/{folder.name}: {file.path} is not as it was published",
                reason="MODEL_DAMAGED",
                model=f"{folder.parent.name}/{int(folder.name)}",
                file=file.path,
            )
        partial.chmod(0o444)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
