"""The trainer service as a client sees it: runs, their control, and their events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id
from andon.errors import DeadlineExceededError, UnavailableError
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import duration_to_seconds, model_version_from_proto, timestamp_to_datetime
from andon.rpc.structs import struct_from_values, values_from_struct

Stage = Literal["sft", "reward_model", "ppo"]


class RunState(StrEnum):
    """Where a run stands."""

    UNSPECIFIED = "unspecified"
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"  # its process ended before the run did; it can be resumed
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen unless somebody asks for it."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the trainer describes it."""

    run_id: str
    stage: str  # "sft", "reward_model" or "ppo"
    state: RunState
    step: int
    total_steps: int  # 0 while unknown
    config: dict[str, Any]  # JSON values, every default filled in
    status_message: str
    output_model: ModelVersion | None
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """The run moved to another state."""

    state: RunState
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step was done."""

    step: int
    total_steps: int  # 0 while unknown
    phase: str
    metrics: dict[str, float]
    remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPublished:
    """A version was written to the store, or only sent to the samplers."""

    model: ModelVersion
    stored: bool


class GuardAction(StrEnum):
    """What a guard's alarm leads to."""

    UNSPECIFIED = "unspecified"
    WARN = "warn"
    HOLD = "hold"  # the run stands still until it is resumed
    CORD = "cord"  # the cord is pulled


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardAlarm:
    """A guard found a sign of a defect; an alarm is a statistic above its threshold."""

    guard: str
    action: GuardAction
    statistic: float
    threshold: float
    message: str
    step: int  # the update that was looked at; 0 before the first


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened in a run."""

    sequence: int
    event_time: datetime
    event: StateChanged | Progress | ModelPublished | GuardAlarm


class TrainerClient(ServiceConnection):
    """Calls the trainer service."""

    def __init__(self, target: str, *, options: ChannelOptions | None = None) -> None:
        super().__init__(target, service_name="andon.api.trainer.v1.TrainerService", options=options)
        self._stub = trainer_grpc.TrainerServiceStub(self.channel)

    def start_run(
        self,
        stage: Stage,
        config: Mapping[str, Any],
        *,
        request_id: str | None = None,
        timeout_s: float = 60.0,
        wait_for_ready: bool = False,
    ) -> Run:
        """Starts a run. ``config`` holds JSON values; its keys are the stage's."""
        request = trainer_pb2.StartRunRequest(
            request_id=request_id or new_request_id(),
            stage=trainer_pb2.Stage.Value(f"STAGE_{stage.upper()}"),
            config=struct_from_values(config),
        )
        answer = self.unary(self._stub.StartRun, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
        return _run(answer.run)

    def pause(self, run_id: str, *, reason: str = "", timeout_s: float = 120.0) -> Run:
        """Stops a run within one optimizer step, with a checkpoint; returns when it stands."""
        request = trainer_pb2.PauseRunRequest(run_id=run_id, reason=reason)
        return _run(self.unary(self._stub.PauseRun, request, timeout_s=timeout_s).run)

    def resume(self, run_id: str, *, timeout_s: float = 120.0, wait_for_ready: bool = False) -> Run:
        """Continues a paused, interrupted or failed run from its last checkpoint."""
        request = trainer_pb2.ResumeRunRequest(run_id=run_id)
        answer = self.unary(self._stub.ResumeRun, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
        return _run(answer.run)

    def stop(self, run_id: str, *, reason: str = "", timeout_s: float = 120.0) -> Run:
        """Ends a run for good, with a checkpoint."""
        request = trainer_pb2.StopRunRequest(run_id=run_id, reason=reason)
        return _run(self.unary(self._stub.StopRun, request, timeout_s=timeout_s).run)

    def get(self, run_id: str, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> Run:
        """Describes a run."""
        request = trainer_pb2.GetRunRequest(run_id=run_id)
        answer = self.unary(self._stub.GetRun, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
        return _run(answer.run)

    def list(self, *, page_size: int = 50, timeout_s: float = 30.0) -> Iterator[Run]:
        """All runs, newest first, fetched page by page as they are read."""
        page_token = ""
        while True:
            request = trainer_pb2.ListRunsRequest(page_size=page_size, page_token=page_token)
            answer = self.unary(self._stub.ListRuns, request, timeout_s=timeout_s)
            for run in answer.runs:
                yield _run(run)
            page_token = answer.next_page_token
            if not page_token:
                return

    def watch_run(
        self,
        run_id: str,
        *,
        after_sequence: int = 0,
        stream_timeout_s: float = 3600.0,
        reconnect_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[RunEvent]:
        """The run's events from ``after_sequence`` on, until the run has ended.

        When the trainer goes away the stream is taken up again after the last event received, waiting up to
        ``reconnect_s`` for the service to come back; then UnavailableError is raised. A stream older than
        ``stream_timeout_s`` is replaced by a new one.
        """
        cursor = after_sequence
        lost_since: float | None = None
        while True:
            waiting_s = stream_timeout_s if lost_since is None else lost_since + reconnect_s - clock()
            if lost_since is not None:
                self._wait_until_answering(run_id, timeout_s=waiting_s)
            answers = self.stream(
                self._stub.WatchRun,
                trainer_pb2.WatchRunRequest(run_id=run_id, after_sequence=cursor),
                timeout_s=stream_timeout_s,
                wait_for_ready=False,
            )
            try:
                with closing(answers):
                    for answer in answers:
                        lost_since = None
                        cursor = answer.event.sequence
                        yield _event(answer.event)
                return
            except DeadlineExceededError:
                lost_since = None
            except UnavailableError:
                lost_since = clock() if lost_since is None else lost_since
                if clock() - lost_since > reconnect_s:
                    raise

    def _wait_until_answering(self, run_id: str, *, timeout_s: float) -> None:
        """Returns when the trainer answers again; UnavailableError when it does not in time."""
        try:
            self.get(run_id, timeout_s=max(timeout_s, 0.1), wait_for_ready=True)
        except DeadlineExceededError as error:
            raise UnavailableError(
                f"the trainer at {self.target} did not come back in time", target=self.target
            ) from error


def _run(run: trainer_pb2.Run) -> Run:
    return Run(
        run_id=run.run_id,
        stage=trainer_pb2.Stage.Name(run.stage).removeprefix("STAGE_").lower(),
        state=_state(run.state),
        step=run.step,
        total_steps=run.total_step_count,
        config=values_from_struct(run.config),
        status_message=run.status_message,
        output_model=model_version_from_proto(run.output_model) if run.HasField("output_model") else None,
        create_time=timestamp_to_datetime(run.create_time),
        update_time=timestamp_to_datetime(run.update_time),
    )


def _state(state: trainer_pb2.RunState.ValueType) -> RunState:
    return RunState(trainer_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower())


def _event(event: trainer_pb2.RunEvent) -> RunEvent:
    return RunEvent(
        sequence=event.sequence,
        event_time=timestamp_to_datetime(event.event_time),
        event=_event_body(event),
    )


def _event_body(event: trainer_pb2.RunEvent) -> StateChanged | Progress | ModelPublished | GuardAlarm:
    if event.HasField("progress"):
        progress = event.progress
        return Progress(
            step=progress.step,
            total_steps=progress.total_step_count,
            phase=progress.phase,
            metrics=dict(progress.metrics),
            remaining_s=(
                duration_to_seconds(progress.remaining_duration)
                if progress.HasField("remaining_duration")
                else None
            ),
        )
    if event.HasField("model_published"):
        published = event.model_published
        return ModelPublished(model=model_version_from_proto(published.model), stored=published.stored)
    if event.HasField("guard_alarm"):
        alarm = event.guard_alarm
        action = trainer_pb2.GuardAction.Name(alarm.action).removeprefix("GUARD_ACTION_").lower()
        return GuardAlarm(
            guard=alarm.guard,
            action=GuardAction(action),
            statistic=alarm.statistic,
            threshold=alarm.threshold,
            message=alarm.message,
            step=alarm.step,
        )
    return StateChanged(state=_state(event.state_changed.state), message=event.state_changed.message)
