"""Decides what happens to services whose supervisor was killed: the next one ends them before it starts its
own.

Two trainers on one folder of runs would spoil it. The supervisor notes every process that it starts in
``processes.json``; a process is taken for one of those only when its whole command line is the noted one,
because process ids are used again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROCESSES_FILE = "processes.json"
DRAIN_S = 20.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedProcess:
    """A process as its supervisor started it."""

    process_id: int
    command: tuple[str, ...]


def note_processes(home: Path, started: Mapping[str, StartedProcess]) -> None:
    """Writes down which processes run now, by service."""
    temporary = home / f".{PROCESSES_FILE}"
    content = {
        service: {"process_id": process.process_id, "command": process.command}
        for service, process in started.items()
    }
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(home / PROCESSES_FILE)


def forget_processes(home: Path) -> None:
    """All of them have ended."""
    (home / PROCESSES_FILE).unlink(missing_ok=True)


def end_orphans(home: Path) -> list[str]:
    """Ends what an earlier supervisor of this home left running; returns the services' names."""
    orphans = {
        service: process for service, process in _noted_processes(home).items() if _is_running(process)
    }
    for process in orphans.values():
        _signal_group(process.process_id, signal.SIGTERM)
    deadline_s = time.monotonic() + DRAIN_S
    for process in orphans.values():
        while _is_running(process):
            if time.monotonic() > deadline_s:
                _signal_group(process.process_id, signal.SIGKILL)
            time.sleep(POLL_S)
    forget_processes(home)
    return sorted(orphans)


def _noted_processes(home: Path) -> dict[str, StartedProcess]:
    try:
        content = json.loads((home / PROCESSES_FILE).read_text(encoding="utf-8"))
        return {
            service: StartedProcess(process_id=int(entry["process_id"]), command=tuple(entry["command"]))
            for service, entry in content.items()
        }
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        # Nothing was noted, or by something that is not a supervisor: then there is nothing to recognise.
        return {}


def _is_running(process: StartedProcess) -> bool:
    """Whether the process lives and is still the one that was started. A zombie has no command line."""
    return _command_line(process.process_id).split() == " ".join(process.command).split()


def _command_line(process_id: int) -> str:
    """The arguments of a process, joined by blanks; empty when there is none."""
    if not Path("/proc/self/cmdline").exists():  # not Linux
        listed = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(process_id)], capture_output=True, text=True, check=False
        )
        return listed.stdout
    try:
        raw = Path(f"/proc/{process_id}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return raw.decode(errors="replace").replace("\0", " ")


def _signal_group(process_id: int, number: signal.Signals) -> None:
    try:
        os.killpg(process_id, number)
    except ProcessLookupError:
        # It ended by itself in the meantime.
        return
