"""Decides what a demo remembers, so that the same command goes on where the last one was cut off.

``demo.json`` in the output folder names the demo, a digest of what it was asked for, and the results of the
phases that are done. Requests to the services carry ids made from the demo's name, so that repeating a phase
repeats nothing on the other side.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE_FILE = "demo.json"


@dataclass(slots=True)
class DemoState:
    """Where one demo stands. ``save`` writes it in one step."""

    path: Path
    demo_id: str
    digest: str
    finished: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    results: dict[str, str] = field(default_factory=dict)  # of finished phases, by name

    def save(self) -> None:
        """Makes the state durable."""
        temporary = self.path.with_suffix(".part")
        content = {
            "demo_id": self.demo_id,
            "digest": self.digest,
            "finished": self.finished,
            "seconds": self.seconds,
            "results": self.results,
        }
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def open_state(folder: Path, wanted: Mapping[str, Any]) -> tuple[DemoState, bool]:
    """The demo to go on with, and whether it was begun before.

    ``wanted`` is everything that a demo's results depend on. A demo that has finished, or that was asked for
    something else, is left as it is and a new one begins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE_FILE
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = DemoState(path=path, **content)
    except (FileNotFoundError, ValueError, TypeError):
        # No demo yet, or a file that no demo of this version wrote: it is replaced.
        known = None
    if known is not None and known.digest == digest and not known.finished:
        return known, True
    state = DemoState(path=path, demo_id=f"demo-{uuid.uuid4().hex[:8]}", digest=digest)
    state.save()
    return state, False
