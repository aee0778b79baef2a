"""The labeling service goes away under a PPO run: killed, hanging, and pulled while it was away.

The service is a process of its own, so that kill -9 is one. The run holds when it has not heard the cord for
``cord_hold_s``, and goes on when it hears that the cord is released; nothing else lets it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from andon.client.cord import CordClient
from andon.client.trainer import Progress, Run, RunState, StateChanged, TrainerClient
from andon.errors import FailedPreconditionError
from benchmarks.cord_parts import LabelingServer, Told
from benchmarks.labeling_processes import Holder
from services.labeling.cord import CordAction
from services.labeling.cord_store import CordStore
from services.labeling.database import Database
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from tests.contract.test_trainer_ppo import World
from tests.cord import wait_until
from tests.servers import Serve
from tests.tokens import ROLES, TOKENS

HOLD_S = 1.0
UNHEARD = "the cord service has not been heard for 1 s"
PEOPLE = [Holder(name=name, role=ROLES[name], token=token) for name, token in TOKENS.items()]


class Line:
    """A run at work, and the labeling process that it listens to."""

    def __init__(self, folder: Path, world: World, stack: ExitStack) -> None:
        self._world = world
        self.database_url = f"sqlite:///{folder}/labeling.sqlite3"
        self.labeling = LabelingServer(
            "labeling", self.database_url, folder, PEOPLE, "--cord-keepalive-s=0.2"
        )
        self.labeling.start()
        stack.callback(self.labeling.end)
        self.cord = stack.enter_context(CordClient(self.labeling.target, token=TOKENS["rita"]))
        self.client: TrainerClient = world.serve_trainer(
            watch_cord=True,
            labeling_target=self.labeling.target,
            labeling_token=TOKENS["service"],
            cord_hold_s=HOLD_S,
        )
        config = world.config(updates=1000, checkpoint_interval=1000, guards={"enabled": False})
        self.run: Run = self.client.start_run("ppo", config)
        stack.callback(self._stop)
        self.told = Told()
        self.told.follow(self._events)
        self.goes_on(after_s=0.0)

    def _stop(self) -> None:
        self.client.stop(self.run.run_id)

    def _events(self) -> Iterator[Any]:
        for event in self.client.watch_run(self.run.run_id, stream_timeout_s=600):
            yield event.event

    def holds(self, why: str, *, after_s: float) -> float:
        """When the run stood still for this reason."""

        def is_it(event: Any) -> bool:
            is_paused = isinstance(event, StateChanged) and event.state is RunState.PAUSED
            return is_paused and event.message == why

        return self.told.wait_for(is_it, after_s=after_s)

    def goes_on(self, *, after_s: float) -> float:
        """When the run had done two more updates."""
        for _ in range(2):
            after_s = self.told.wait_for(lambda event: isinstance(event, Progress), after_s=after_s)
            after_s += 1e-6
        return after_s

    def metric(self, name: str) -> float:
        """A metric of the trainer."""
        found = self._world.trainer._registry.get_sample_value(name)
        assert found is not None
        return found

    def unheard_for(self, seconds: float) -> None:
        """Return when the trainer has not heard the cord for so long."""
        wait_until(lambda: self.metric("andon_trainer_cord_unheard_seconds") >= seconds)

    def num_updates(self) -> int:
        return len(self.told.words(Progress))

    def pull_in_the_database(self, reason: str) -> None:
        """As another process of the service would, while this one is away."""
        database = Database(self.database_url, new_seed=lambda: "unused")
        database.open()
        request = RepeatableRequest(method="PullCord", request_id="elsewhere", digest="")
        CordStore(database, clock=now_us).act(request, CordAction.PULL, actor="ann", reason=reason)
        database.close()


@pytest.fixture
def line(tmp_path: Path, serve: Serve, server_loop: asyncio.AbstractEventLoop) -> Iterator[Line]:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        world = World(tmp_path, serve, server_loop, stack)
        world.serve_models()
        yield Line(tmp_path, world, stack)


def test_a_killed_service_holds_the_run_until_it_is_back(
    line: Line, record_property: Callable[[str, object], None]
) -> None:
    for number in range(2):
        killed_s = time.monotonic()
        line.labeling.kill()
        held_s = line.holds(UNHEARD, after_s=killed_s)
        record_property(f"seconds_to_holding_{number}", round(held_s - killed_s, 3))
        updates = line.num_updates()
        assert line.metric("andon_trainer_cord_unheard_seconds") >= HOLD_S
        assert line.metric("andon_trainer_cord_holding") == 1
        with pytest.raises(FailedPreconditionError, check=lambda error: error.reason == "RUN_NOT_RESUMABLE"):
            line.client.resume(line.run.run_id)
        line.unheard_for(2 * HOLD_S)
        assert line.num_updates() == updates

        line.labeling.start()
        ready_s = time.monotonic()
        on_s = line.goes_on(after_s=held_s)
        record_property(f"seconds_to_going_on_{number}", round(on_s - ready_s, 3))
        assert line.metric("andon_trainer_cord_holding") == 0
        assert line.client.get(line.run.run_id).status_message == ""


def test_a_service_that_hangs_is_as_good_as_dead(line: Line) -> None:
    stopped_s = time.monotonic()
    line.labeling.send_signal(signal.SIGSTOP)
    held_s = line.holds(UNHEARD, after_s=stopped_s)
    line.labeling.send_signal(signal.SIGCONT)
    line.goes_on(after_s=held_s)


def test_a_cord_that_was_pulled_while_it_was_unheard_goes_on_holding(line: Line) -> None:
    killed_s = time.monotonic()
    line.labeling.kill()
    held_s = line.holds(UNHEARD, after_s=killed_s)
    updates = line.num_updates()
    line.pull_in_the_database("it was rude all the while")
    line.labeling.start()
    pulled_s = line.holds("the cord is pulled by ann: it was rude all the while", after_s=held_s)
    for _word in zip(range(4), line.cord.watch(wait_for_ready=True), strict=False):
        pass
    assert line.num_updates() == updates
    line.cord.release(actor="", reason="looked at them")
    line.goes_on(after_s=pulled_s)


def test_a_pulled_cord_holds_whatever_becomes_of_its_service(line: Line) -> None:
    pulled_s = time.monotonic()
    line.cord.pull(actor="", reason="they are rude")
    why = "the cord is pulled by rita: they are rude"
    held_s = line.holds(why, after_s=pulled_s)
    updates = line.num_updates()
    line.labeling.kill()
    line.unheard_for(2 * HOLD_S)
    assert line.client.get(line.run.run_id).status_message == why
    line.labeling.start()
    wait_until(lambda: line.metric("andon_trainer_cord_unheard_seconds") < HOLD_S)
    assert line.client.get(line.run.run_id).status_message == why
    assert line.num_updates() == updates
    assert line.told.words(StateChanged)[-1].message == why
    line.cord.release(actor="", reason="looked at them")
    line.goes_on(after_s=held_s)
