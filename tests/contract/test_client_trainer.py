"""The clients of a run, the trainer's and the cord's, against small fakes on loopback: watches, pages."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.client.cord import CordClient
from andon.client.trainer import Progress, RunState, StateChanged, TrainerClient
from andon.errors import UnavailableError
from tests.client_servers import FAST, serving


class FakeTrainer(trainer_grpc.TrainerServiceServicer):
    """A run of five events, of which each stream sends at most two before the process seems to die."""

    def __init__(self) -> None:
        self.watches: list[int] = []
        self.configs: list[dict[str, Any]] = []

    def GetRun(
        self, request: trainer_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.GetRunResponse:
        return trainer_pb2.GetRunResponse(run=trainer_pb2.Run(run_id=request.run_id))

    def StartRun(
        self, request: trainer_pb2.StartRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.StartRunResponse:
        run = trainer_pb2.Run(run_id="r", stage=request.stage, state=trainer_pb2.RUN_STATE_PENDING)
        run.config.CopyFrom(request.config)
        return trainer_pb2.StartRunResponse(run=run)

    def ListRuns(
        self, request: trainer_pb2.ListRunsRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.ListRunsResponse:
        start = int(request.page_token or 0)
        runs = [trainer_pb2.Run(run_id=str(number)) for number in range(start, min(start + 2, 5))]
        return trainer_pb2.ListRunsResponse(
            runs=runs, next_page_token=str(start + 2) if start + 2 < 5 else ""
        )

    def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[trainer_pb2.WatchRunResponse]:
        self.watches.append(request.after_sequence)
        for sent, sequence in enumerate(range(request.after_sequence + 1, 6)):
            if sent == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            event = trainer_pb2.RunEvent(sequence=sequence)
            if sequence == 5:
                event.state_changed.state = trainer_pb2.RUN_STATE_SUCCEEDED
            else:
                event.progress.step = sequence
                event.progress.metrics["loss"] = 1 / sequence
            yield trainer_pb2.WatchRunResponse(event=event)


@pytest.fixture
def fake_trainer() -> Iterator[tuple[FakeTrainer, TrainerClient]]:
    fake = FakeTrainer()
    with (
        serving(lambda server: trainer_grpc.add_TrainerServiceServicer_to_server(fake, server)) as port,
        TrainerClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        yield fake, client


def test_a_watch_goes_on_after_the_last_event_received(
    fake_trainer: tuple[FakeTrainer, TrainerClient],
) -> None:
    fake, client = fake_trainer
    events = list(client.watch_run("r"))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].event == StateChanged(state=RunState.SUCCEEDED, message="")
    first = events[0].event
    assert isinstance(first, Progress)
    assert first.metrics == {"loss": 1.0}
    assert fake.watches == [0, 2, 4]


def test_a_watch_gives_up_when_the_trainer_stays_away() -> None:
    with serving(lambda server: None) as port:
        target = f"127.0.0.1:{port}"
    with TrainerClient(target, options=FAST) as client, pytest.raises(UnavailableError):
        list(client.watch_run("r", reconnect_s=0.5))


def test_whole_numbers_of_a_configuration_come_back_whole(
    fake_trainer: tuple[FakeTrainer, TrainerClient],
) -> None:
    config = {"layers": 2, "rate": 0.5, "nested": {"sizes": [1, 2.5]}, "name": "x", "none": None, "on": True}
    run = fake_trainer[1].start_run("reward_model", config)
    assert run.config == config
    assert isinstance(run.config["layers"], int)
    assert (run.stage, run.state) == ("reward_model", RunState.PENDING)


def test_all_pages_are_read(fake_trainer: tuple[FakeTrainer, TrainerClient]) -> None:
    assert [run.run_id for run in fake_trainer[1].list(page_size=2)] == ["0", "1", "2", "3", "4"]


class FakeCord(cord_grpc.CordServiceServicer):
    """Sends two states and then waits for the watcher to leave."""

    def __init__(self) -> None:
        self.watcher_left = threading.Event()

    def WatchCord(
        self, request: cord_pb2.WatchCordRequest, context: grpc.ServicerContext
    ) -> Iterator[cord_pb2.WatchCordResponse]:
        context.add_callback(self.watcher_left.set)
        yield cord_pb2.WatchCordResponse(cord=cord_pb2.Cord(state=cord_pb2.CORD_STATE_RELEASED))
        pulled = cord_pb2.Cord(state=cord_pb2.CORD_STATE_PULLED, event_number=1, actor="me", reason="bad")
        pulled.event_time.FromSeconds(1_700_000_000)
        yield cord_pb2.WatchCordResponse(cord=pulled)
        self.watcher_left.wait()


def test_leaving_a_watch_ends_its_stream() -> None:
    fake = FakeCord()
    with (
        serving(lambda server: cord_grpc.add_CordServiceServicer_to_server(fake, server)) as port,
        CordClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        watch = client.watch()
        untouched, pulled = next(watch), next(watch)
        watch.close()
        assert fake.watcher_left.wait(20)
    assert (untouched.pulled, untouched.event_time) == (False, None)
    assert (pulled.pulled, pulled.actor, pulled.event_number) == (True, "me", 1)
    assert pulled.event_time is not None
    assert pulled.event_time.timestamp() == 1_700_000_000
