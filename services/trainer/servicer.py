"""The trainer's RPCs: protobuf in, protobuf out. What a run may do is decided in ``services.trainer.runner``.

The runner's requests return before they are obeyed; PauseRun, ResumeRun and StopRun wait here for the record
to say so. Everything that touches a disk runs in a worker thread, never in the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.rpc.convert import datetime_to_timestamp, model_version_to_proto, seconds_to_duration
from andon.rpc.structs import struct_from_values, values_from_struct
from services.trainer.errors import InvalidPageError, InvalidStageError, TrainerDrainingError
from services.trainer.guards.guard import Action, Alarm
from services.trainer.run_records import (
    ModelPublished,
    Progress,
    RunEvent,
    RunRecord,
    RunState,
    StageName,
    StateChanged,
)
from services.trainer.runner import Runner
from services.trainer.runs import RunRegistry

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_STAGES = {
    trainer_pb2.STAGE_SFT: StageName.SFT,
    trainer_pb2.STAGE_REWARD_MODEL: StageName.REWARD_MODEL,
    trainer_pb2.STAGE_PPO: StageName.PPO,
}
_STAGES_TO_PROTO = {name: number for number, name in _STAGES.items()}
_STATES_TO_PROTO = {
    RunState.PENDING: trainer_pb2.RUN_STATE_PENDING,
    RunState.RUNNING: trainer_pb2.RUN_STATE_RUNNING,
    RunState.PAUSED: trainer_pb2.RUN_STATE_PAUSED,
    RunState.INTERRUPTED: trainer_pb2.RUN_STATE_INTERRUPTED,
    RunState.SUCCEEDED: trainer_pb2.RUN_STATE_SUCCEEDED,
    RunState.FAILED: trainer_pb2.RUN_STATE_FAILED,
    RunState.STOPPED: trainer_pb2.RUN_STATE_STOPPED,
}

_ACTIONS_TO_PROTO = {
    Action.WARN: trainer_pb2.GUARD_ACTION_WARN,
    Action.HOLD: trainer_pb2.GUARD_ACTION_HOLD,
    Action.CORD: trainer_pb2.GUARD_ACTION_CORD,
}

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_grpc.TrainerServiceServicer):
    """Answers the calls of ``andon.api.trainer.v1.TrainerService``."""

    def __init__(self, runner: Runner, registry: RunRegistry) -> None:
        self._runner = runner
        self._registry = registry
        self._draining = False

    def end_streams(self) -> None:
        """The process ends: let every watcher go, so that it watches again at the next process."""
        self._draining = True
        self._registry.notify_all_listeners()

    async def StartRun(
        self, request: trainer_pb2.StartRunRequest, context: Context
    ) -> trainer_pb2.StartRunResponse:
        """Check, record and begin a run."""
        stage = _STAGES.get(request.stage)
        if stage is None:
            raise InvalidStageError(request.stage)
        config = values_from_struct(request.config)
        record = await asyncio.to_thread(
            self._runner.start, request_id=request.request_id, stage=stage, config=config
        )
        return trainer_pb2.StartRunResponse(run=run_to_proto(record))

    async def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchRunResponse]:
        """Stream events until the run has ended."""
        async with _News(self._registry, request.run_id) as news:
            sequence = max(request.after_sequence, 0)
            while True:
                ended = self._registry.get(request.run_id).state.has_ended
                events = await asyncio.to_thread(self._registry.events_after, request.run_id, sequence)
                for event in events:
                    yield trainer_pb2.WatchRunResponse(event=event_to_proto(event))
                    sequence = event.sequence
                if ended:
                    return
                if self._draining:
                    raise TrainerDrainingError()
                await news.wait()

    async def PauseRun(
        self, request: trainer_pb2.PauseRunRequest, context: Context
    ) -> trainer_pb2.PauseRunResponse:
        """Stop a run between two optimizer steps; answer when it stands."""
        async with _News(self._registry, request.run_id) as news:
            await asyncio.to_thread(self._runner.pause, request.run_id, request.reason)
            record = await self._wait_until(
                request.run_id, news, lambda record: record.paused_by_person or not record.state.is_active
            )
        return trainer_pb2.PauseRunResponse(run=run_to_proto(record))

    async def ResumeRun(
        self, request: trainer_pb2.ResumeRunRequest, context: Context
    ) -> trainer_pb2.ResumeRunResponse:
        """Let a run go on; answer when the pause is lifted or the run has begun again."""
        async with _News(self._registry, request.run_id) as news:
            await asyncio.to_thread(self._runner.resume, request.run_id)
            record = await self._wait_until(request.run_id, news, lambda record: not record.paused_by_person)
        return trainer_pb2.ResumeRunResponse(run=run_to_proto(record))

    async def StopRun(
        self, request: trainer_pb2.StopRunRequest, context: Context
    ) -> trainer_pb2.StopRunResponse:
        """End a run for good; answer when it has ended."""
        async with _News(self._registry, request.run_id) as news:
            await asyncio.to_thread(self._runner.stop, request.run_id, request.reason)
            record = await self._wait_until(request.run_id, news, lambda record: record.state.has_ended)
        return trainer_pb2.StopRunResponse(run=run_to_proto(record))

    async def GetRun(
        self, request: trainer_pb2.GetRunRequest, context: Context
    ) -> trainer_pb2.GetRunResponse:
        """Describe a run."""
        return trainer_pb2.GetRunResponse(run=run_to_proto(self._registry.get(request.run_id)))

    async def ListRuns(
        self, request: trainer_pb2.ListRunsRequest, context: Context
    ) -> trainer_pb2.ListRunsResponse:
        """List runs, newest first."""
        size = _page_size(request.page_size)
        runs = self._registry.newest_first()
        start = 0 if not request.page_token else _start_after(request.page_token, runs)
        page = runs[start : start + size]
        has_more = start + size < len(runs)
        return trainer_pb2.ListRunsResponse(
            runs=[run_to_proto(record) for record in page],
            next_page_token=_page_token(page[-1].run_id) if has_more else "",
        )

    async def _wait_until(self, run_id: str, news: _News, reached: Callable[[RunRecord], bool]) -> RunRecord:
        while True:
            record = self._registry.get(run_id)
            if reached(record):
                return record
            if self._draining:
                raise TrainerDrainingError()
            await news.wait()


class _News:
    """Wakes a coroutine whenever a run changes. Enter it before looking at the run: nothing is missed."""

    def __init__(self, registry: RunRegistry, run_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(self._woken.set)

        self._listening = registry.listening(run_id, wake)

    async def __aenter__(self) -> _News:
        self._listening.__enter__()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._listening.__exit__(None, None, None)

    async def wait(self) -> None:
        """Until something has changed since the last wait."""
        await self._woken.wait()
        self._woken.clear()


def run_to_proto(record: RunRecord) -> trainer_pb2.Run:
    """A run as a message."""
    return trainer_pb2.Run(
        run_id=record.run_id,
        stage=_STAGES_TO_PROTO[record.stage],
        state=_STATES_TO_PROTO[record.state],
        step=record.step,
        total_step_count=record.total_steps,
        config=struct_from_values(record.config),
        status_message=record.status_message,
        output_model=None if record.output_model is None else model_version_to_proto(record.output_model),
        create_time=datetime_to_timestamp(record.create_time),
        update_time=datetime_to_timestamp(record.update_time),
    )


def event_to_proto(event: RunEvent) -> trainer_pb2.RunEvent:
    """An event as a message."""
    message = trainer_pb2.RunEvent(sequence=event.sequence, event_time=datetime_to_timestamp(event.time))
    match event.happening:
        case StateChanged(state=state, message=text):
            message.state_changed.state = _STATES_TO_PROTO[state]
            message.state_changed.message = text
        case Progress() as progress:
            message.progress.step = progress.step
            message.progress.total_step_count = progress.total_steps
            message.progress.phase = progress.phase
            message.progress.metrics.update(progress.metrics)
            if progress.remaining_s is not None:
                message.progress.remaining_duration.CopyFrom(seconds_to_duration(progress.remaining_s))
        case ModelPublished(model=model, stored=stored):
            message.model_published.model.CopyFrom(model_version_to_proto(model))
            message.model_published.stored = stored
        case Alarm() as alarm:
            message.guard_alarm.guard = alarm.finding.guard.value
            message.guard_alarm.action = _ACTIONS_TO_PROTO[alarm.action]
            message.guard_alarm.statistic = alarm.finding.statistic
            message.guard_alarm.threshold = alarm.finding.threshold
            message.guard_alarm.message = alarm.finding.message
            message.guard_alarm.step = alarm.step
    return message


def _page_size(requested: int) -> int:
    if not 0 <= requested <= MAX_PAGE_SIZE:
        raise InvalidPageError(
            f"page_size must be 0 to {MAX_PAGE_SIZE}", reason="INVALID_PAGE_SIZE", page_size=requested
        )
    return requested or DEFAULT_PAGE_SIZE


def _page_token(last_run_id: str) -> str:
    return base64.urlsafe_b64encode(last_run_id.encode()).decode()


def _start_after(page_token: str, runs: list[RunRecord]) -> int:
    """Index of the first run of the next page. Runs are never deleted: the token's run is among them."""
    try:
        run_id = base64.urlsafe_b64decode(page_token.encode()).decode()
    except (binascii.Error, UnicodeError):
        run_id = ""
    for index, record in enumerate(runs):
        if record.run_id == run_id:
            return index + 1
    raise InvalidPageError("page_token is not one that was given out", reason="INVALID_PAGE_TOKEN")
