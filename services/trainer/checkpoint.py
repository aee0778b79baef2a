"""Where a run's checkpoints lie and which of them can be trusted.

A checkpoint is one file whose name carries its number and the SHA-256 of its bytes; it appears under that
name in one rename, after its bytes are on the disk, so a cut-off write leaves nothing visible. Reading checks
the digest, and a damaged file is passed over for the one before it. Called by ``services.trainer.runner``;
what is inside a checkpoint is the stage's affair, as long as ``torch.load(weights_only=True)`` reads it back.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.trainer.errors import CheckpointsUnreadableError

_NAME = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{64})\.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """The newest good checkpoint."""

    number: int
    state: dict[str, Any]  # whatever the stage saved
    passed_over: tuple[str, ...]  # names of newer files that were damaged


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """``keep``: how many of the newest checkpoints stay; at least 1."""
        self._folder = folder
        self._keep = max(1, keep)

    def save(self, state: dict[str, Any]) -> Path:
        """Write a new checkpoint, then delete those beyond ``keep``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        existing = self._newest_first()
        number = existing[0][0] + 1 if existing else 1
        unfinished = self._folder / f".unfinished-{number:06d}"
        with unfinished.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        with unfinished.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        path = self._folder / f"checkpoint-{number:06d}-{digest}.pt"
        unfinished.replace(path)
        sync_folder(self._folder)
        for _, old in existing[self._keep - 1 :]:
            old.unlink()
        return path

    def load_newest(self) -> LoadedCheckpoint | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises CheckpointsUnreadableError when there are some but all are damaged: beginning again from
        nothing would silently throw the run away.
        """
        passed_over: list[str] = []
        for number, path in self._newest_first():
            state = _read_if_whole(path)
            if state is not None:
                return LoadedCheckpoint(number=number, state=state, passed_over=tuple(passed_over))
            passed_over.append(path.name)
        if passed_over:
            raise CheckpointsUnreadableError(folder=self._folder, damaged=passed_over)
        return None

    def _newest_first(self) -> list[tuple[int, Path]]:
        if not self._folder.is_dir():
            return []
        found = [
            (int(match.group(1)), path)
            for path in self._folder.iterdir()
            if (match := _NAME.fullmatch(path.name)) is not None
        ]
        return sorted(found, reverse=True)


def _read_if_whole(path: Path) -> dict[str, Any] | None:
    match = _NAME.fullmatch(path.name)
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if match is None or digest != match.group(2):
                return None
            stream.seek(0)
            state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return state


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
