"""Two ranks that are held, ended, killed or bereaved: the run goes on with the bits of a run left alone.

Every service is a process of its own, and the trainer's processes are started by torchrun.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from andon.client.cord import CordClient
from andon.client.trainer import (
    Run,
    RunEvent,
    RunState,
    StateChanged,
    TrainerClient,
)
from tests.cord import wait_until
from tests.integration.test_ppo_resume import TIMEOUT_S, World, follow, numbers, stored
from tests.tokens import TOKENS
from tests.torchrun import RANKS, Torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UPDATES = 5
STEPS_PER_UPDATE = 12


@dataclass(frozen=True)
class Undisturbed:
    """What a run of two ranks gives that is left alone."""

    numbers: dict[int, dict[str, float]]
    stored: list[str]


class Line:
    """Services for every test of this module, and the trainers on them."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        self.world = world
        self.cord = stack.enter_context(CordClient(world.labeling.target, token=TOKENS["admin"]))
        self._stack = stack

    def start(self, runs: str, **torchrun: Any) -> Torchrun:
        world = self.world
        trainer = Torchrun(
            f"--store={world.store.root}",
            f"--runs={world.folder / runs}",
            f"--policy-targets={json.dumps([world.policy.target])}",
            f"--reference-target={world.reference.target}",
            f"--reward-target={world.reward.target}",
            f"--labeling-target={world.labeling.target}",
            f"--labeling-token={TOKENS['service']}",
            "--cord-hold-s=60",
            log=world.folder / f"{runs}.log",
            **torchrun,
        )
        self._stack.callback(trainer.kill)
        trainer.start()
        return trainer

    def config(self, staleness: int = 0) -> dict[str, Any]:
        return {
            **self.world.config(),
            "updates": UPDATES,
            "minibatches": 4,
            "epochs": 3,
            "checkpoint_interval": 2,
            "store_interval": None,
            "max_staleness": staleness,
        }

    def folder(self, runs: str, run: Run) -> Path:
        return self.world.folder / runs / run.run_id


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(World(tmp_path_factory.mktemp("torchrun"), stack), stack)


@pytest.fixture(scope="module")
def alone(line: Line) -> dict[int, Undisturbed]:
    """By the staleness that is allowed."""
    trainer = line.start("alone")
    found: dict[int, Undisturbed] = {}
    with TrainerClient(trainer.target) as client:
        for staleness in (0, 1):
            events = follow(client, client.start_run("ppo", line.config(staleness)))
            assert list(numbers(events)) == list(range(1, UPDATES + 1))
            found[staleness] = Undisturbed(numbers=numbers(events), stored=stored(events))
    trainer.terminate()
    assert found[0].stored != found[1].stored
    return found


def assert_undisturbed(events: list[RunEvent], alone: Undisturbed) -> None:
    assert numbers(events) == alone.numbers
    assert stored(events) == alone.stored
    assert len(alone.stored) == 1


def states(events: list[RunEvent]) -> list[RunState]:
    return [event.event.state for event in events if isinstance(event.event, StateChanged)]


@pytest.mark.parametrize(
    ("ending", "staleness"),
    [("released", 0), ("terminated", 0), ("killed", 0), ("released", 1), ("killed", 1)],
)
def test_a_held_run_goes_on_with_the_same_bits(
    line: Line, alone: dict[int, Undisturbed], ending: str, staleness: int
) -> None:
    runs = f"{ending}-{staleness}"
    trainer = line.start(runs)
    folder = line.world.folder / runs
    with TrainerClient(trainer.target) as client:
        run = client.start_run("ppo", line.config(staleness))
        wait_until(lambda: trainer.steps_begun(0) > 2 * STEPS_PER_UPDATE + 4, timeout_s=TIMEOUT_S)
        line.cord.pull(actor="", reason="to see whether it stops")
        wait_until(lambda: client.get(run.run_id).state is RunState.PAUSED)
        done = trainer.steps_done(folder / run.run_id, STEPS_PER_UPDATE)
        assert 2 * STEPS_PER_UPDATE < done < UPDATES * STEPS_PER_UPDATE
        assert trainer.steps_begun(0) == trainer.steps_begun(1) == done
        assert max(trainer.steps_begun_since_heard()) <= 1

        if ending == "terminated":
            trainer.terminate()
            assert [word["rank"] for word in trainer.words("farewell")] == [1]
            trainer.start()
        elif ending == "killed":
            trainer.kill()
            trainer.start()
        if ending != "released":  # the pulled cord outlasts the processes
            wait_until(lambda: client.get(run.run_id).state is RunState.PAUSED)
            assert trainer.steps_begun(0) == trainer.steps_begun(1) == done
        line.cord.release(actor="", reason="it did")
        events = follow(client, run)

    assert_undisturbed(events, alone[staleness])
    assert RunState.PAUSED in states(events)
    assert (RunState.INTERRUPTED in states(events)) is (ending != "released")
    # No step was taken twice: the checkpoint of the hold is the point from which it went on.
    assert [trainer.steps_begun(rank) for rank in range(RANKS)] == [UPDATES * STEPS_PER_UPDATE] * RANKS
    trainer.terminate()


def test_a_dead_rank_interrupts_the_run_and_torchrun_takes_it_up_again(
    line: Line, alone: dict[int, Undisturbed]
) -> None:
    # torchrun looks seldom here, so that rank 0 is the first to miss the other.
    trainer = line.start("bereaved", max_restarts=1, monitor_interval_s=10.0)

    def kill_the_other(step: int) -> None:
        if step == 3:
            trainer.ranks()[1].kill()

    with TrainerClient(trainer.target) as client:
        events = follow(client, client.start_run("ppo", line.config()), kill_the_other)

    assert_undisturbed(events, alone[0])
    messages = [
        event.event.message
        for event in events
        if isinstance(event.event, StateChanged) and event.event.state is RunState.INTERRUPTED
    ]
    assert len(messages) == 1
    assert messages[0].startswith("RANK_LOST: another process of this trainer is lost")
    assert [word["rank"] for word in trainer.words("rank_lost")] == [0]
    trainer.terminate()


def test_no_rank_outlives_rank_0(line: Line) -> None:
    trainer = line.start("headless", monitor_interval_s=60.0)
    leader, other = trainer.ranks()
    leader.kill()
    other.wait(TIMEOUT_S)  # by itself: torchrun has not looked yet
    assert [word["reason"] for word in trainer.words("follower_failed")] == ["RANK_LOST"]
