"""The record of runs: it survives the process, also one that was killed in the middle of a line."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from andon.modeling.versions import ModelVersion
from services.trainer.errors import RequestIdReusedError, RunNotFoundError
from services.trainer.run_records import (
    ModelPublished,
    Progress,
    RunRecord,
    RunState,
    StageName,
    StateChanged,
)
from services.trainer.runs import RunRegistry


class Clock:
    """A minute passes at every look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


def new_run(registry: RunRegistry, request_id: str = "request-1") -> RunRecord:
    return registry.create(
        request_id=request_id, request_sha256="content", stage=StageName.PPO, config={"updates": 2}
    )


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=9, phase="update", metrics={"kl_nats": 0.5}, remaining_s=None)


def test_everything_survives_the_process(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path, clock=Clock())
    run_id = new_run(registry).run_id
    model = ModelVersion("policy", 3, "ab" * 32)
    registry.update(run_id, StateChanged(state=RunState.RUNNING), state=RunState.RUNNING)
    registry.report(run_id, progress(1))
    written = registry.update(run_id, ModelPublished(model=model, stored=True), output_model=model)

    again = RunRegistry(tmp_path)

    assert again.get(run_id) == written
    assert again.get(run_id).config == {"updates": 2}
    assert again.events_after(run_id, 0) == registry.events_after(run_id, 0)
    assert [event.sequence for event in again.events_after(run_id, 0)] == [1, 2, 3]


def test_events_go_on_after_a_sequence_number(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    run_id = new_run(registry).run_id
    for step in range(1, 6):
        registry.report(run_id, progress(step))

    assert [event.happening.step for event in registry.events_after(run_id, 3)] == [4, 5]  # type: ignore[union-attr]
    assert registry.events_after(run_id, 5) == []
    assert registry.events_after(run_id, 99) == []


def test_a_half_written_event_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    run_id = new_run(registry).run_id
    registry.report(run_id, progress(1))
    with (tmp_path / run_id / "events.jsonl").open("a") as stream:
        stream.write('{"sequence": 2, "time": "2026-01')

    again = RunRegistry(tmp_path)
    assert len(again.events_after(run_id, 0)) == 1
    again.report(run_id, progress(2))

    lines = (tmp_path / run_id / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]


def test_progress_is_known_after_a_kill_that_left_run_json_behind(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    run_id = new_run(registry).run_id
    registry.report(run_id, progress(7))

    last = RunRegistry(tmp_path).last_progress(run_id)

    assert last is not None
    assert last.step == 7


def test_a_request_finds_its_run_and_refuses_other_content(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    record = new_run(registry)

    assert registry.find_request(request_id="request-1", request_sha256="content") == record
    assert registry.find_request(request_id="request-2", request_sha256="content") is None
    with pytest.raises(RequestIdReusedError):
        RunRegistry(tmp_path).find_request(request_id="request-1", request_sha256="other")


def test_newest_first(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path, clock=Clock())
    ids = [new_run(registry, f"request-{number}").run_id for number in range(4)]

    assert [record.run_id for record in registry.newest_first()] == ids[::-1]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    good, bad = (new_run(registry, name).run_id for name in ("good", "bad"))
    (tmp_path / bad / "run.json").write_text("{")

    again = RunRegistry(tmp_path)

    assert again.get(good).run_id == good
    with pytest.raises(RunNotFoundError):
        again.get(bad)
    assert (tmp_path / bad).is_dir()


def test_a_run_that_was_half_created_is_no_run(tmp_path: Path) -> None:
    RunRegistry(tmp_path)
    (tmp_path / ".unfinished-ppo-1").mkdir()

    assert RunRegistry(tmp_path).newest_first() == []


def test_listeners_hear_every_change_until_they_leave(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    run_id = new_run(registry).run_id
    heard: list[int] = []
    with (
        registry.listening(run_id, lambda: heard.append(1)),
        registry.listening(run_id, lambda: heard.append(2)),
    ):
        registry.report(run_id, progress(1))
        registry.notify_all_listeners()
    registry.report(run_id, progress(2))

    assert heard == [1, 2, 1, 2]
