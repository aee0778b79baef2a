"""Which run may start, go on or end: one at a time, each in one thread, all of them recorded.

The servicer calls the requests from the event loop's worker threads; they return as soon as the request is
recorded, and whoever wants to know when it is obeyed listens to the registry. ``recover`` and ``interrupt``
frame the life of the process. How a run is carried out is ``services.trainer.run_thread``'s affair.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from andon.modeling.store import ModelStore
from services.trainer.errors import (
    InvalidConfigError,
    InvalidRequestIdError,
    RunAlreadyEndedError,
    RunInProgressError,
    RunNotActiveError,
    RunNotResumableError,
    TrainerDrainingError,
)
from services.trainer.guards.cord import CordGuard
from services.trainer.metrics import TrainerMetrics
from services.trainer.run_records import RunRecord, RunState, StageName, StateChanged
from services.trainer.run_thread import OpenClients, RunSettings, RunThread
from services.trainer.runs import RunRegistry
from services.trainer.stages.catalogue import StageKind

_log = structlog.stdlib.get_logger(__name__)

MAX_REQUEST_ID_CHARACTERS = 200


class Runner:
    """The runs of this process."""

    def __init__(
        self,
        *,
        registry: RunRegistry,
        store: ModelStore,
        stages: Mapping[StageName, StageKind],
        settings: RunSettings,
        metrics: TrainerMetrics,
        open_clients: Callable[[], OpenClients],
        open_cord_guard: Callable[[Callable[[], None]], CordGuard] | None,
    ) -> None:
        """``open_cord_guard`` makes a guard that calls back on each word; None where no cord is obeyed."""
        self._registry = registry
        self._store = store
        self._stages = stages
        self._settings = settings
        self._metrics = metrics
        self._open_clients = open_clients
        self._open_cord_guard = open_cord_guard
        self._lock = threading.Lock()
        self._thread: RunThread | None = None
        self._closing = False

    def start(self, *, request_id: str, stage: StageName, config: Mapping[str, Any]) -> RunRecord:
        """Record a new run and begin it, or return the run that this request id began before."""
        if not 1 <= len(request_id) <= MAX_REQUEST_ID_CHARACTERS:
            raise InvalidRequestIdError(max_characters=MAX_REQUEST_ID_CHARACTERS)
        request_sha256 = _request_sha256(stage, config)
        with self._lock:
            known = self._registry.find_request(request_id=request_id, request_sha256=request_sha256)
            if known is not None:
                return known
            resolved = self._resolve(stage, config)
            self._refuse_a_second_run()
            record = self._registry.create(
                request_id=request_id,
                request_sha256=request_sha256,
                stage=stage,
                config=resolved.model_dump(mode="json"),
            )
            self._begin(record, resolved)
            return record

    def pause(self, run_id: str, reason: str) -> None:
        """Ask a run to stand still. It stands when its record says PAUSED."""
        with self._lock:
            self._active_thread(run_id).controls.pause(reason)

    def resume(self, run_id: str) -> RunRecord:
        """Let a paused run go on, or begin an interrupted or failed one again at its last checkpoint."""
        with self._lock:
            record = self._registry.get(run_id)
            if self._is_active(run_id):
                controls = self._active_thread(run_id).controls
                if not controls.resume():
                    why = controls.cord_hold() or "it is running"
                    raise RunNotResumableError(run_id=run_id, state=record.state.value, why=why)
                return record
            if record.state in (RunState.SUCCEEDED, RunState.STOPPED):
                raise RunNotResumableError(
                    run_id=run_id, state=record.state.value, why=f"it has {record.state.value}"
                )
            self._refuse_a_second_run()
            return self._begin_again(record)

    def stop(self, run_id: str, reason: str) -> None:
        """Ask a run to end for good. It has when its record says so."""
        with self._lock:
            record = self._registry.get(run_id)
            if self._is_active(run_id):
                self._active_thread(run_id).controls.stop(reason)
            elif record.state.has_ended:
                raise RunAlreadyEndedError(run_id=run_id, state=record.state.value)
            else:
                message = reason or "stopped"
                self._registry.update(
                    run_id,
                    StateChanged(state=RunState.STOPPED, message=message),
                    state=RunState.STOPPED,
                    status_message=message,
                )

    def recover(self, *, auto_resume: bool, limit: int) -> None:
        """Mark what a dead process left behind as interrupted; with ``auto_resume`` go on with the newest of
        it.

        A run that a person had paused stays, and so does one that was begun again ``limit`` times without
        reaching another checkpoint: it may be what kills the process.
        """
        with self._lock:
            left_behind = []
            for record in self._registry.newest_first():
                if record.state.is_active:
                    _log.warning("run_found_interrupted", run_id=record.run_id, state=record.state.value)
                    record = self._mark_interrupted(record)
                if record.state is RunState.INTERRUPTED:
                    left_behind.append(record)
            for record in left_behind:
                if not auto_resume or record.paused_by_person:
                    continue
                if record.unfruitful_starts >= limit:
                    _log.error("run_not_resumed_again", run_id=record.run_id, starts=record.unfruitful_starts)
                    continue
                self._registry.update(record.run_id, unfruitful_starts=record.unfruitful_starts + 1)
                self._begin_again(record)
                break

    def interrupt(self, *, grace_s: float) -> bool:
        """The process ends: have the running run save a checkpoint and leave, and begin no other.

        Returns whether it has left in time.
        """
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is None:
            return True
        thread.controls.interrupt()
        has_left = thread.join(grace_s)
        if not has_left:
            # The thread is a daemon and ends with the process; the next one marks the run interrupted.
            _log.error("run_did_not_leave_in_time", run_id=thread.run_id, grace_s=grace_s)
        return has_left

    def _resolve(self, stage: StageName, config: Mapping[str, Any]) -> BaseModel:
        try:
            return self._stages[stage].config_type.model_validate(dict(config))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "(whole)"
            problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
            raise InvalidConfigError(field=place, problem=problem) from error

    def _begin(self, record: RunRecord, config: BaseModel) -> None:
        kind = self._stages[record.stage]
        _log.info("run_begins", run_id=record.run_id, stage=record.stage.value, config=record.config)
        self._thread = RunThread(
            record,
            registry=self._registry,
            store=self._store,
            settings=self._settings,
            metrics=self._metrics,
            clients=self._open_clients(),
            open_cord_guard=self._open_cord_guard,
            build_stage=lambda context: kind.build(config, context),
            checkpoint_interval=kind.checkpoint_interval(config),
        )
        self._thread.start()

    def _begin_again(self, record: RunRecord) -> RunRecord:
        config = self._resolve(record.stage, record.config)
        record = self._registry.update(
            record.run_id,
            StateChanged(state=RunState.PENDING, message="resumed"),
            state=RunState.PENDING,
            status_message="",
            paused_by_person=False,
        )
        self._begin(record, config)
        return record

    def _mark_interrupted(self, record: RunRecord) -> RunRecord:
        progress = self._registry.last_progress(record.run_id)
        message = "its process ended before the run did"
        return self._registry.update(
            record.run_id,
            StateChanged(state=RunState.INTERRUPTED, message=message),
            state=RunState.INTERRUPTED,
            status_message=message,
            step=record.step if progress is None else progress.step,
            total_steps=record.total_steps if progress is None else progress.total_steps,
        )

    def _is_active(self, run_id: str) -> bool:
        """Whether this process works on the run. A thread's last act is to record the end of its run."""
        return (
            self._thread is not None
            and self._thread.run_id == run_id
            and self._registry.get(run_id).state.is_active
        )

    def _active_thread(self, run_id: str) -> RunThread:
        record = self._registry.get(run_id)
        if self._thread is None or not self._is_active(run_id):
            raise RunNotActiveError(run_id=run_id, state=record.state.value)
        return self._thread

    def _refuse_a_second_run(self) -> None:
        if self._thread is not None and self._is_active(self._thread.run_id):
            raise RunInProgressError(self._thread.run_id)
        if self._closing:
            raise TrainerDrainingError()


def _request_sha256(stage: StageName, config: Mapping[str, Any]) -> str:
    canonical = json.dumps([stage.value, dict(config)], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
