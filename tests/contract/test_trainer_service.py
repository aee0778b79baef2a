"""The trainer as its callers see it, with a stage that only counts: runs, events, controls, cord, restarts.

The labeling service, which holds the cord, is the real one.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.client.cord import CordClient
from andon.client.trainer import (
    ModelPublished,
    Progress,
    Run,
    RunEvent,
    RunState,
    StateChanged,
    TrainerClient,
)
from andon.errors import (
    AlreadyExistsError,
    AndonError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from andon.modeling.versions import ModelVersion
from andon.rpc.errors import error_from_rpc
from andon.rpc.server import RunningServer
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from services.trainer.config import TrainerConfig
from services.trainer.run_records import StageName
from services.trainer.service import TrainerService
from services.trainer.stages.catalogue import StageKind
from services.trainer.stages.context import StageContext, StageState
from tests.tokens import TOKENS, write_tokens

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


@pytest.fixture
def trainer(
    tmp_path: Path, serve: Callable[..., RunningServer], server_loop: asyncio.AbstractEventLoop
) -> Iterator[Trainer]:
    with ExitStack() as clients:
        yield Trainer(tmp_path, serve, server_loop, clients)


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


def test_a_run_from_start_to_end(trainer: Trainer) -> None:
    client = trainer.start()
    trainer.gate.let("go", "go", "go")

    run = client.start_run("sft", {"steps": 3})
    events = finish(client, run)

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert sums(events) == [1, 3, 6]
    states = [event.event.state for event in events if isinstance(event.event, StateChanged)]
    assert states == [RunState.RUNNING, RunState.SUCCEEDED]
    assert [event.event for event in events if isinstance(event.event, ModelPublished)] == [
        ModelPublished(model=OUTPUT, stored=True)
    ]
    described = client.get(run.run_id)
    assert (described.state, described.step, described.total_steps) == (RunState.SUCCEEDED, 3, 3)
    assert described.output_model == OUTPUT
    assert described.config == {"steps": 3, "checkpoint_interval": 1}


def test_watchers_see_the_same_from_wherever_they_begin(trainer: Trainer) -> None:
    client = trainer.start()
    trainer.gate.let("go", "go", "go")
    run = client.start_run("sft", {})
    events = finish(client, run)

    assert finish(client, run) == events
    assert finish(client, run, after_sequence=3) == events[3:]
    assert finish(client, run, after_sequence=len(events)) == []


def test_a_repeated_request_is_the_same_run(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 1}, request_id="once")
    assert client.start_run("sft", {"steps": 1}, request_id="once").run_id == run.run_id
    with refused(AlreadyExistsError, "REQUEST_ID_REUSED"):
        client.start_run("sft", {"steps": 2}, request_id="once")
    with refused(AlreadyExistsError, "REQUEST_ID_REUSED"):
        client.start_run("ppo", {"steps": 1}, request_id="once")
    trainer.gate.let("go")
    finish(client, run)
    assert client.start_run("sft", {"steps": 1}, request_id="once").state is RunState.SUCCEEDED


def test_bad_requests_are_refused_with_their_reason(trainer: Trainer) -> None:
    client = trainer.start()
    with refused(InvalidArgumentError, "INVALID_CONFIG") as caught:
        client.start_run("sft", {"stepps": 3})
    assert caught.value.metadata["field"] == "stepps"
    with refused(InvalidArgumentError, "INVALID_CONFIG") as caught:
        client.start_run("sft", {"steps": "many"})
    assert caught.value.metadata["field"] == "steps"
    with refused(InvalidArgumentError, "INVALID_REQUEST_ID"):
        client.start_run("sft", {}, request_id="x" * 201)
    for call in (client.get, client.pause, client.resume, client.stop):
        with refused(NotFoundError, "RUN_NOT_FOUND"):
            call("no-such-run")
    with refused(NotFoundError, "RUN_NOT_FOUND"):
        list(client.watch_run("no-such-run"))
    assert list(client.list()) == []


def test_what_the_client_would_not_send_is_refused_too(trainer: Trainer) -> None:
    trainer.start()
    with grpc.insecure_channel(trainer.running.target) as channel:
        stub = trainer_grpc.TrainerServiceStub(channel)
        for request, reason in [
            (trainer_pb2.StartRunRequest(request_id="", stage=trainer_pb2.STAGE_SFT), "INVALID_REQUEST_ID"),
            (trainer_pb2.StartRunRequest(request_id="a"), "INVALID_STAGE"),
            (trainer_pb2.StartRunRequest(request_id="a", stage=99), "INVALID_STAGE"),  # type: ignore[arg-type]
        ]:
            with pytest.raises(grpc.RpcError) as caught:
                stub.StartRun(request, timeout=TIMEOUT_S)
            assert error_from_rpc(caught.value).reason == reason
        for page, reason in [
            (trainer_pb2.ListRunsRequest(page_size=-1), "INVALID_PAGE_SIZE"),
            (trainer_pb2.ListRunsRequest(page_size=1001), "INVALID_PAGE_SIZE"),
            (trainer_pb2.ListRunsRequest(page_token="?"), "INVALID_PAGE_TOKEN"),
            (trainer_pb2.ListRunsRequest(page_token="bm9uZQ=="), "INVALID_PAGE_TOKEN"),
        ]:
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListRuns(page, timeout=TIMEOUT_S)
            assert error_from_rpc(caught.value).reason == reason


def test_one_run_at_a_time(trainer: Trainer) -> None:
    client = trainer.start()
    first = client.start_run("sft", {"steps": 1})
    with refused(FailedPreconditionError, "RUN_IN_PROGRESS"):
        client.start_run("ppo", {})
    trainer.gate.let("go", "go")
    finish(client, first)
    finish(client, client.start_run("ppo", {"steps": 1}))


def test_runs_are_listed_newest_first_in_pages(trainer: Trainer) -> None:
    client = trainer.start()
    trainer.gate.let(*["go"] * 5)
    runs = []
    for _ in range(5):
        runs.append(client.start_run("sft", {"steps": 1}))
        finish(client, runs[-1])

    listed = [run.run_id for run in client.list(page_size=2)]
    assert listed == [run.run_id for run in reversed(runs)]


def test_a_paused_run_stands_still_until_it_is_resumed(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go")
    seen = wait_for(client, run, is_step(1))

    paused = client.pause(run.run_id, reason="lunch")
    trainer.gate.let("go", "go")

    assert (paused.state, paused.status_message) == (RunState.PAUSED, "lunch")
    assert client.pause(run.run_id).state is RunState.PAUSED  # once more changes nothing
    assert trainer.gate.turns.qsize() == 2
    for _ in range(2):  # taken back, so that the run cannot be over before the answer is written
        trainer.gate.turns.get_nowait()
    assert client.resume(run.run_id).state is RunState.RUNNING
    trainer.gate.let("go", "go")
    assert sums(finish(client, run, after_sequence=seen)) == [3, 6]


def test_a_stopped_run_has_ended_for_good(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 3})
    stopped = client.stop(run.run_id, reason="wrong data")

    assert (stopped.state, stopped.status_message, stopped.output_model) == (
        RunState.STOPPED,
        "wrong data",
        None,
    )
    with refused(FailedPreconditionError, "RUN_NOT_RESUMABLE"):
        client.resume(run.run_id)
    with refused(FailedPreconditionError, "RUN_ALREADY_ENDED"):
        client.stop(run.run_id)
    with refused(FailedPreconditionError, "RUN_NOT_ACTIVE"):
        client.pause(run.run_id)


def test_a_paused_run_can_be_stopped(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {})
    client.pause(run.run_id)
    assert client.stop(run.run_id).state is RunState.STOPPED


def test_a_failed_run_says_why_and_resumes_at_its_checkpoint(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go", "go", "break")
    events = finish(client, run)
    failed = client.get(run.run_id)
    assert failed.state is RunState.FAILED
    assert "the stage broke" in failed.status_message

    trainer.gate.let("go")
    client.resume(run.run_id)
    assert sums(finish(client, run, after_sequence=events[-1].sequence)) == [6]


def test_a_number_that_is_not_finite_fails_the_run_before_it_is_saved(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go", "nan")
    events = finish(client, run)
    assert client.get(run.run_id).status_message.startswith("NOT_FINITE")

    trainer.gate.let("go", "go")
    client.resume(run.run_id)
    assert sums(finish(client, run, after_sequence=events[-1].sequence)) == [3, 6]


@pytest.mark.parametrize("auto_resume", [True, False])
def test_a_run_outlives_its_process(trainer: Trainer, auto_resume: bool) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 4, "checkpoint_interval": 2})
    trainer.gate.let("go", "go", "go")
    seen = wait_for(client, run, is_step(3))
    trainer.stop()
    assert trainer.gate.turns.empty()

    client = trainer.start(auto_resume=auto_resume)
    if not auto_resume:
        assert client.get(run.run_id).state is RunState.INTERRUPTED
        client.resume(run.run_id)
    trainer.gate.let("go")

    # Draining saved a checkpoint after step 3, between two that were due.
    assert sums(finish(client, run, after_sequence=seen)) == [10]


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(trainer: Trainer) -> None:
    client = trainer.start(interrupt_grace_s=0.0)
    run = client.start_run("sft", {"steps": 4, "checkpoint_interval": 2})
    trainer.gate.let("go", "go", "go")
    wait_for(client, run, is_step(3))
    # What kill -9 leaves: the record as it was while the run was at work, and the checkpoint of step 2.
    runs = trainer.folder / "runs"
    left = {path.relative_to(runs): path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    trainer.stop()
    # The first life may still be writing its farewell: the second one gets a folder and a gate of its own.
    trainer.folder, trainer.gate = trainer.folder / "second-life", Gate()
    for path, content in left.items():
        target = trainer.folder / "runs" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    client = trainer.start()
    trainer.gate.let("go", "go")
    events = finish(client, run)

    assert sums(events) == [1, 3, 6, 6, 10]
    states = [event.event.state for event in events if isinstance(event.event, StateChanged)]
    assert states == [
        RunState.RUNNING,
        RunState.INTERRUPTED,
        RunState.PENDING,
        RunState.RUNNING,
        RunState.SUCCEEDED,
    ]


def test_a_paused_run_stays_paused_over_a_restart(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 1})
    client.pause(run.run_id, reason="over night")
    trainer.stop()

    client = trainer.start()
    assert client.get(run.run_id).state is RunState.INTERRUPTED
    trainer.gate.let("go")
    client.resume(run.run_id)
    assert sums(finish(client, run)) == [1]


def test_a_damaged_checkpoint_is_passed_over_and_said(trainer: Trainer) -> None:
    client = trainer.start()
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go", "go")
    seen = wait_for(client, run, is_step(2))
    client.pause(run.run_id)
    trainer.stop()
    checkpoints = sorted((trainer.folder / "runs" / run.run_id / "checkpoints").glob("checkpoint-*.pt"))
    assert len(checkpoints) == 2
    for damaged in checkpoints[1:]:
        damaged.write_bytes(b"damaged")

    client = trainer.start()
    client.resume(run.run_id)
    trainer.gate.let("go", "go")
    events = finish(client, run, after_sequence=seen)

    said = [event.event.message for event in events if isinstance(event.event, StateChanged)]
    assert any("damaged and passed over" in message and checkpoints[1].name in message for message in said)
    assert sums(events)[-1] == 6


def test_a_pulled_cord_stops_training_and_only_a_release_lets_it_go_on(
    trainer: Trainer, serve: Callable[..., RunningServer]
) -> None:
    labeling = serve_labeling(trainer.folder, serve)
    client = trainer.start(watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"])
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go")
    seen = wait_for(client, run, is_step(1))
    with CordClient(labeling.target, token=TOKENS["admin"]) as cord:
        cord.pull(actor="ada", reason="the summaries turned rude")
        seen = wait_for(client, run, is_state(RunState.PAUSED), after=seen)
        trainer.gate.let("go", "go")

        held = client.get(run.run_id)
        assert held.status_message == "the cord is pulled by ada: the summaries turned rude"
        with refused(FailedPreconditionError, "RUN_NOT_RESUMABLE"):
            client.resume(run.run_id)
        assert trainer.gate.turns.qsize() == 2

        cord.release(actor="bob", reason="looked at them")
        assert sums(finish(client, run, after_sequence=seen)) == [3, 6]


def test_a_cord_pulled_before_the_run_lets_it_take_no_step(
    trainer: Trainer, serve: Callable[..., RunningServer]
) -> None:
    labeling = serve_labeling(trainer.folder, serve)
    with CordClient(labeling.target, token=TOKENS["admin"]) as cord:
        cord.pull(actor="ada", reason="not tonight")
        client = trainer.start(
            watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
        )
        trainer.gate.let("go")
        run = client.start_run("sft", {"steps": 1})
        wait_for(client, run, is_state(RunState.PAUSED))
        assert trainer.gate.turns.qsize() == 1
        cord.release(actor="bob", reason="morning")
        assert sums(finish(client, run)) == [1]


def test_a_cord_that_cannot_be_heard_holds_the_run(trainer: Trainer) -> None:
    client = trainer.start(watch_cord=True, labeling_target="127.0.0.1:1", cord_hold_s=0.3)
    trainer.gate.let("go")
    run = client.start_run("sft", {"steps": 1})
    wait_for(client, run, is_state(RunState.PAUSED))

    assert client.get(run.run_id).status_message == "the cord service has not been heard for 0.3 s"
    assert trainer.gate.turns.qsize() == 1
    assert client.stop(run.run_id).state is RunState.STOPPED


def serve_labeling(folder: Path, serve: Callable[..., RunningServer]) -> RunningServer:
    config = LabelingConfig(
        port=0,
        metrics_port=0,
        web_port=0,
        tokens_file=write_tokens(folder),
        database=f"sqlite:///{folder}/labeling.sqlite3",
    )
    return serve(LabelingService(config, CollectorRegistry()), config)
