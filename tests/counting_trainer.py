"""A trainer whose stage only counts, one step per turn that a test gives; and short words for its events."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict

from andon.client.trainer import Progress, Run, RunEvent, RunState, StateChanged, TrainerClient
from andon.errors import AndonError
from andon.modeling.versions import ModelVersion
from andon.rpc.server import RunningServer
from services.trainer.config import TrainerConfig
from services.trainer.run_records import StageName
from services.trainer.service import TrainerService
from services.trainer.stages.catalogue import StageKind
from services.trainer.stages.context import StageContext, StageState

TIMEOUT_S = 30
OUTPUT = ModelVersion("sft", 1, "ab" * 32)


class CountingConfig(BaseModel):
    """Numbers to add up."""

    model_config = ConfigDict(extra="forbid")

    steps: int = 3
    checkpoint_interval: int = 1


class Gate:
    """Lets the stage do one step per turn; the test gives the turns and sees the steps."""

    def __init__(self) -> None:
        self.turns: queue.Queue[str] = queue.Queue()
        self.begun = threading.Event()

    def let(self, *turns: str) -> None:
        for turn in turns:
            self.turns.put(turn)


class CountingStage:
    """Adds up 1 + 2 + ... and reports the sum; between steps it waits for its turn, obeying the controls."""

    def __init__(self, config: CountingConfig, context: StageContext, gate: Gate) -> None:
        self._config = config
        self._context = context
        self._gate = gate
        self._step, self._sum = 0, 0

    def run(self) -> ModelVersion:
        restored = self._context.restored_state()
        if restored is not None:
            self._step, self._sum = restored["step"], restored["sum"]
        self._gate.begun.set()
        while self._step < self._config.steps:
            turn = self._next_turn()
            if turn == "break":
                raise RuntimeError("the stage broke")
            self._step += 1
            self._sum += self._step
            value = float("nan") if turn == "nan" else float(self._sum)
            self._context.step_done(
                step=self._step,
                total=self._config.steps,
                phase="train",
                metrics={"sum": value},
                state=self._state,
            )
        self._context.published(OUTPUT, stored=True)
        return OUTPUT

    def _next_turn(self) -> str:
        while True:
            self._context.obey(self._state)
            try:
                return self._gate.turns.get(timeout=0.01)
            except queue.Empty:
                continue

    def _state(self) -> StageState:
        return {"step": self._step, "sum": self._sum}


class Trainer:
    """A trainer process's life, and the next one's on the same folder."""

    def __init__(
        self,
        folder: Path,
        serve: Callable[..., RunningServer],
        loop: asyncio.AbstractEventLoop,
        clients: ExitStack,
    ) -> None:
        self.folder = folder
        self.gate = Gate()
        self._serve = serve
        self._loop = loop
        self._clients = clients

    def start(self, **settings: Any) -> TrainerClient:
        config = TrainerConfig(
            port=0,
            metrics_port=0,
            runs=self.folder / "runs",
            store=self.folder / "store",
            **{"threads": 1, "watch_cord": False, **settings},
        )
        kind = StageKind(
            config_type=CountingConfig,
            build=lambda config, context: CountingStage(config, context, self.gate),
            checkpoint_interval=lambda config: config.checkpoint_interval,
        )
        service = TrainerService(config, CollectorRegistry(), stages=dict.fromkeys(StageName, kind))
        self.running = self._serve(service, config)
        return self._clients.enter_context(TrainerClient(self.running.target))

    def stop(self) -> None:
        """SIGTERM's way: drain, then end."""
        stopping = self.running.stop(grace_s=5.0)
        asyncio.run_coroutine_threadsafe(stopping, self._loop).result(TIMEOUT_S)


def finish(client: TrainerClient, run: Run, *, after_sequence: int = 0) -> list[RunEvent]:
    """All events until the run has ended."""
    return list(client.watch_run(run.run_id, after_sequence=after_sequence, stream_timeout_s=TIMEOUT_S))


def wait_for(client: TrainerClient, run: Run, reached: Callable[[RunEvent], bool], after: int = 0) -> int:
    """The sequence number of the first event that ``reached`` is true of."""
    for event in client.watch_run(run.run_id, after_sequence=after, stream_timeout_s=TIMEOUT_S):
        if reached(event):
            return event.sequence
    pytest.fail("the run ended without it")


def is_state(state: RunState) -> Callable[[RunEvent], bool]:
    return lambda event: isinstance(event.event, StateChanged) and event.event.state is state


def is_step(step: int) -> Callable[[RunEvent], bool]:
    return lambda event: isinstance(event.event, Progress) and event.event.step == step


def sums(events: list[RunEvent]) -> list[float]:
    return [event.event.metrics["sum"] for event in events if isinstance(event.event, Progress)]


def refused(kind: type[AndonError], reason: str) -> Any:  # pytest's own type has no public name
    return pytest.raises(kind, check=lambda error: error.reason == reason)
