"""The durable record of all runs: one folder per run, and everybody who waits for news of one.

    runs/<run_id>/run.json        where it stands; replaced atomically at every change of state
    runs/<run_id>/config.json     its configuration with every default filled in; never changes
    runs/<run_id>/events.jsonl    what happened, one line per event, only ever appended to
    runs/<run_id>/checkpoints/    see services.trainer.checkpoint

A run exists once its folder is in place, which is one rename. Called by the runner (which decides what state
a run is in) and by the servicer (which reads); all methods may be called from any thread. It does not run
anything.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from services.trainer.checkpoint import sync_folder
from services.trainer.errors import RequestIdReusedError, RunNotFoundError, RunRecordUnreadableError
from services.trainer.run_records import (
    Happening,
    Progress,
    RunEvent,
    RunRecord,
    RunState,
    StageName,
    event_from_json,
    event_to_json,
    record_from_json,
    record_to_json,
    utc_now,
)

_log = structlog.stdlib.get_logger(__name__)


class RunRegistry:
    """All runs under one folder. One process at a time may use a folder."""

    def __init__(self, root: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.RLock()
        self._records: dict[str, RunRecord] = {}
        self._events: dict[str, list[RunEvent]] = {}  # only of runs that were looked at in this process
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        root.mkdir(parents=True, exist_ok=True)
        for folder in sorted(root.iterdir()):
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            try:
                self._records[folder.name] = _read_record(folder)
            except RunRecordUnreadableError as error:
                # One damaged folder must not keep all other runs from being served; it stays to be looked at.
                _log.error("run_unreadable", path=str(folder), problem=error.message)

    def create(
        self,
        *,
        request_id: str,
        request_sha256: str,
        stage: StageName,
        config: Mapping[str, Any],
    ) -> RunRecord:
        """Record a new run in state PENDING. The caller has looked for its request with ``find_request``."""
        with self._lock:
            now = self._clock()
            run_id = self._new_run_id(stage, now)
            record = RunRecord(
                run_id=run_id,
                request_id=request_id,
                request_sha256=request_sha256,
                stage=stage,
                state=RunState.PENDING,
                create_time=now,
                update_time=now,
                config=dict(config),
            )
            unfinished = self._root / f".unfinished-{run_id}"
            unfinished.mkdir()
            _write_json(unfinished / "config.json", dict(config))
            _write_json(unfinished / "run.json", record_to_json(record))
            unfinished.rename(self.folder(run_id))
            sync_folder(self._root)
            self._records[run_id] = record
            return record

    def find_request(self, *, request_id: str, request_sha256: str) -> RunRecord | None:
        """The run that this request started before; RequestIdReusedError when its content was another."""
        with self._lock:
            for record in self._records.values():
                if record.request_id == request_id:
                    if record.request_sha256 != request_sha256:
                        raise RequestIdReusedError(request_id=request_id, run_id=record.run_id)
                    return record
            return None

    def get(self, run_id: str) -> RunRecord:
        """The run as it stands; RunNotFoundError when there is none."""
        with self._lock:
            record = self._records.get(run_id)
            if record is None:
                raise RunNotFoundError(run_id)
            return record

    def newest_first(self) -> list[RunRecord]:
        """All runs."""
        with self._lock:
            return sorted(
                self._records.values(), key=lambda record: (record.create_time, record.run_id), reverse=True
            )

    def folder(self, run_id: str) -> Path:
        """Where the run's files lie."""
        return self._root / run_id

    def update(self, run_id: str, happening: Happening | None = None, **changes: Any) -> RunRecord:
        """Change the record's fields (``changes`` by name) and append ``happening``; durable when it returns.

        The event is written first: a cut between the two leaves an event too many, which the next process's
        own state change follows, rather than a state that nobody was told of.
        """
        with self._lock:
            now = self._clock()
            record = self.get(run_id).changed(now, **changes)
            if happening is not None:
                self._append(run_id, happening, now, durable=True)
            _write_json(self.folder(run_id) / "run.json", record_to_json(record))
            self._records[run_id] = record
        self._notify(run_id)
        return record

    def report(self, run_id: str, progress: Progress) -> None:
        """Record a step that was done; survives the process, not a power cut: steps are too many for that."""
        with self._lock:
            now = self._clock()
            record = self.get(run_id).changed(now, step=progress.step, total_steps=progress.total_steps)
            self._append(run_id, progress, now, durable=False)
            self._records[run_id] = record
        self._notify(run_id)

    def last_progress(self, run_id: str) -> Progress | None:
        """The last step that was reported, if only by a process that was killed before it wrote run.json."""
        with self._lock:
            for event in reversed(self._loaded_events(run_id)):
                if isinstance(event.happening, Progress):
                    return event.happening
            return None

    def events_after(self, run_id: str, sequence: int) -> list[RunEvent]:
        """The run's events with a larger sequence number, in order."""
        with self._lock:
            return self._loaded_events(run_id)[max(sequence, 0) :]

    @contextmanager
    def listening(self, run_id: str, notify: Callable[[], None]) -> Iterator[None]:
        """Call ``notify`` after every change of the run, from the thread that changes it."""
        with self._lock:
            self.get(run_id)
            self._listeners.setdefault(run_id, []).append(notify)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[run_id].remove(notify)

    def notify_all_listeners(self) -> None:
        """Wake everybody who waits for news, because the process is about to end."""
        with self._lock:
            listeners = [notify for waiting in self._listeners.values() for notify in waiting]
        for notify in listeners:
            notify()

    def _notify(self, run_id: str) -> None:
        with self._lock:
            listeners = tuple(self._listeners.get(run_id, ()))
        for notify in listeners:
            notify()

    def _append(self, run_id: str, happening: Happening, now: datetime, *, durable: bool) -> None:
        events = self._loaded_events(run_id)
        event = RunEvent(sequence=len(events) + 1, time=now, happening=happening)
        with (self.folder(run_id) / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event_to_json(event), allow_nan=False) + "\n")
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        events.append(event)

    def _loaded_events(self, run_id: str) -> list[RunEvent]:
        self.get(run_id)
        if run_id not in self._events:
            self._events[run_id] = _read_events(self.folder(run_id) / "events.jsonl")
        return self._events[run_id]

    def _new_run_id(self, stage: StageName, now: datetime) -> str:
        return f"{stage.value.replace('_', '-')}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _read_record(folder: Path) -> RunRecord:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return record_from_json(json.loads((folder / "run.json").read_text(encoding="utf-8")), config)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunRecordUnreadableError(path=folder / "run.json", problem=str(error)) from error


def _read_events(path: Path) -> list[RunEvent]:
    """All whole lines. A last line that a killed process left half written is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        _log.warning("half_written_event_dropped", path=str(path), size_bytes=len(content) - len(whole))
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    try:
        return [event_from_json(json.loads(line)) for line in whole.splitlines()]
    except (KeyError, TypeError, ValueError) as error:
        raise RunRecordUnreadableError(path=path, problem=str(error)) from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a file in one step, after its bytes are on the disk."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        json.dump(values, stream, indent=2, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)
