"""Runs that fail, and trainers that end or are killed: what the next one takes up, and from where."""

import pytest

from andon.client.trainer import RunState, StateChanged
from tests.counting_trainer import Gate, Trainer, finish, is_step, sums, wait_for


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
