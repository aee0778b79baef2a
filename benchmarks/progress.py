"""What a run of the benchmarks has measured so far, so that one that was interrupted goes on where it stood.

Kept in a file beside the results until the run is over. Measurements of other code, or of other peers'
scripts, are of no use: the file names a digest of both, and one with another digest counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The JSON line of one script in one round."""

    facts: Mapping[str, Any]
    seconds: float  # on the clock, the start of the process included


class Progress:
    """Measurements by round and script; every one is written as it comes."""

    def __init__(self, path: Path, *, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._done: dict[str, Measurement] = {}
        self.is_outdated = False  # whether there is a file, but of other code
        if path.is_file():
            kept = json.loads(path.read_text())
            self.is_outdated = kept["digest"] != digest
            if not self.is_outdated:
                self._done = {key: Measurement(**value) for key, value in kept["done"].items()}

    def __len__(self) -> int:
        """Measurements at hand."""
        return len(self._done)

    def find(self, round_number: int, script: str) -> Measurement | None:
        """What the script gave in that round, if it has run."""
        return self._done.get(f"{round_number} {script}")

    def add(self, round_number: int, script: str, measurement: Measurement) -> None:
        """Keep it, also if the next moment is the last."""
        self._done[f"{round_number} {script}"] = measurement
        done = {key: {"facts": kept.facts, "seconds": kept.seconds} for key, kept in self._done.items()}
        self._path.parent.mkdir(exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"digest": self._digest, "done": done}))
        fresh.replace(self._path)

    def seconds_by_script(self) -> dict[str, float]:
        """How long each script has taken, the median over rounds."""
        taken: dict[str, list[float]] = {}
        for key, kept in self._done.items():
            taken.setdefault(key.partition(" ")[2], []).append(kept.seconds)
        return {script: statistics.median(seconds) for script, seconds in taken.items()}

    def clear(self) -> None:
        """The run is over."""
        self._done = {}
        self._path.unlink(missing_ok=True)


def digest_of(folders: Iterable[Path]) -> str:
    """SHA-256, in hex, over all Python sources below the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
