"""The trainer as its callers see it: runs, events, bad requests, pauses and ends."""

import grpc
import pytest

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.client.trainer import ModelPublished, RunState, StateChanged
from andon.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from andon.rpc.errors import error_from_rpc
from tests.counting_trainer import OUTPUT, TIMEOUT_S, Trainer, finish, is_step, refused, sums, wait_for


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
