"""The cord and a real PPO run, over all four ways to pull it: how soon it is heard, where the run stands
still, what it leaves, and who lets it go on. Times are measured and recorded; what happens is asserted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from andon.client.cord import Cord, CordClient
from andon.client.policy import PolicyClient
from andon.client.trainer import ModelPublished, Progress, Run, RunState, StateChanged, TrainerClient
from andon.errors import AndonError, FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from andon.modeling.versions import ModelVersion
from services.labeling.accounts import Role
from services.trainer.checkpoint import CheckpointFolder
from services.trainer.guards.cord import CordGuard
from services.trainer.stages.ppo_guards import PpoGuards
from tests import cord_doors
from tests.contract.test_trainer_ppo import World, finish, numbers
from tests.cord import TIMEOUT_S, wait_until
from tests.cord_doors import REASON, Pull
from tests.servers import Serve
from tests.site import SiteUnderTest
from tests.tokens import TOKENS

KEEPALIVE_S = 0.05
STEPS_PER_UPDATE = 12  # optimizer steps: 4 epochs of 3 minibatches
DOORS = ("page", "command", "rpc", "webhook")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One engine: what the trainer sees does not depend on it."""
    return f"sqlite:///{tmp_path}/labeling.sqlite3"


class Steps:
    """Counts optimizer steps of this process by torch's own hook, whoever makes them."""

    def __init__(self) -> None:
        self.count = 0
        self.at_pull: int | None = None  # steps done when the trainer heard of a pull

    def note(self, *_: object) -> None:
        self.count += 1


class Line:
    """A labeling site with the cord, and a trainer at work that listens to it."""

    def __init__(self, world: World, site: SiteUnderTest, stack: ExitStack, steps: Steps) -> None:
        self.world = world
        self.site = site
        self.steps = steps
        self._stack = stack
        self.target = site.running.target
        self.cord = stack.enter_context(CordClient(self.target, token=TOKENS["rita"]))
        self.heard: dict[int, float] = {}  # by event: when a watcher had word of it, monotonic
        self._watcher = stack.enter_context(CordClient(self.target, token=TOKENS["lara"]))
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        wait_until(lambda: 0 in self.heard)

    def _watch(self) -> None:
        try:
            for cord in self._watcher.watch():
                self.heard.setdefault(cord.event_number, time.monotonic())
        except (AndonError, ValueError):  # the test is over
            return

    def serve_trainer(self, runs: str = "runs", **settings: Any) -> TrainerClient:
        return self.world.serve_trainer(
            runs,
            **{
                "watch_cord": True,
                "labeling_target": self.target,
                "labeling_token": TOKENS["service"],
                **settings,
            },
        )

    def config(self, **changes: Any) -> dict[str, Any]:
        return self.world.config(
            **{
                "updates": 1000,
                "epochs": 4,
                "minibatches": 3,
                "checkpoint_interval": 1000,  # none but what the cord leaves
                "guards": {"enabled": False},
                **changes,
            }
        )

    def pull_by(self, door: str) -> Pull:
        if door == "page":
            return cord_doors.by_page(self.site.person("lara", Role.LABELER))
        if door == "command":
            return cord_doors.by_command(self.target, TOKENS["lara"])
        if door == "rpc":
            client = CordClient(self.target, token=TOKENS["lara"])
            return cord_doors.by_rpc(self._stack.enter_context(client))
        return cord_doors.by_webhook(self.site.stranger(), TOKENS["service"])

    def let_pass(self, words: int = 4) -> None:
        """Return after the cord has been heard a few more times: a while, by the cord's own clock."""
        for _word in zip(range(words), self.cord.watch(timeout_s=TIMEOUT_S), strict=False):
            pass

    def served(self) -> ModelVersion | None:
        """What the samplers serve."""
        with PolicyClient(self.world.policies[0].target) as policy:
            return policy.model_info().model

    def checkpoint(self, run: Run, runs: str = "runs") -> dict[str, Any]:
        folder = self.world.folder / runs / run.run_id / "checkpoints"
        found = CheckpointFolder(folder, keep=2).load_newest()
        assert found is not None
        assert not found.passed_over
        return found.state


@pytest.fixture
def line(
    tmp_path: Path,
    serve: Serve,
    server_loop: asyncio.AbstractEventLoop,
    start_site: Callable[..., SiteUnderTest],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Line]:
    torch.set_num_threads(1)
    steps = Steps()
    hear = CordGuard._hear

    def note_pull(guard: CordGuard, cord: Cord) -> None:
        hear(guard, cord)
        if cord.pulled and steps.at_pull is None:
            steps.at_pull = steps.count

    monkeypatch.setattr(CordGuard, "_hear", note_pull)
    hook = register_optimizer_step_post_hook(steps.note)
    with ExitStack() as stack:
        stack.callback(hook.remove)
        world = World(tmp_path, serve, server_loop, stack)
        world.serve_models()
        yield Line(world, start_site(cord_keepalive_s=KEEPALIVE_S), stack, steps)


class Follower:
    """Everything that a run has told, as it comes."""

    def __init__(self, client: TrainerClient, run: Run, stack: ExitStack) -> None:
        self.events: list[Any] = []
        self.at: list[float] = []
        self._client, self._run = client, run
        thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        thread.start()

    def _follow(self) -> None:
        try:
            for event in self._client.watch_run(self._run.run_id, stream_timeout_s=TIMEOUT_S * 4):
                self.at.append(time.monotonic())
                self.events.append(event.event)
        except (AndonError, ValueError):  # the trainer was stopped, or the test is over
            return

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in list(self.events))

    def wait_for(self, state: RunState) -> float:
        """Once the run is in this state: when it came into it, as its watchers hear it."""

        def last() -> tuple[float, StateChanged] | None:
            told = zip(list(self.at), list(self.events), strict=False)
            changes = [(at, event) for at, event in told if isinstance(event, StateChanged)]
            return changes[-1] if changes else None

        wait_until(lambda: (found := last()) is not None and found[1].state is state)
        found = last()
        assert found is not None
        return found[0]


def refused(kind: type[AndonError], reason: str) -> Any:  # pytest's own type has no public name
    return pytest.raises(kind, check=lambda error: error.reason == reason)


@pytest.mark.parametrize("door", DOORS)
def test_a_pull_stops_the_run_within_one_optimizer_step(
    line: Line, door: str, record_property: Callable[[str, object], None]
) -> None:
    client = line.serve_trainer()
    run = client.start_run("ppo", line.config())
    with ExitStack() as stack:
        follower = Follower(client, run, stack)
        wait_until(lambda: follower.count(Progress) >= 2)
        pull = line.pull_by(door)

        begin_s = time.monotonic()
        pull()
        still_s = follower.wait_for(RunState.PAUSED)
        wait_until(lambda: 1 in line.heard)
        record_property(f"{door}_seconds_to_the_watcher", round(line.heard[1] - begin_s, 4))
        record_property(f"{door}_seconds_to_standing_still", round(still_s - begin_s, 4))

        # At most the step that was under way when the trainer heard of it.
        assert line.steps.at_pull is not None
        assert 0 <= line.steps.count - line.steps.at_pull <= 1
        # Its checkpoint describes this very point, by torch's own count of steps.
        state = line.checkpoint(run)
        done = (state["in_progress"] or {"progress": {"steps_done": 0}})["progress"]["steps_done"]
        assert state["update"] * STEPS_PER_UPDATE + done == line.steps.count

        held = client.get(run.run_id)
        who = "alertmanager" if door == "webhook" else "lara"
        why = f"AndonRewardSpike: {REASON}" if door == "webhook" else REASON
        assert held.status_message == f"the cord is pulled by {who}: {why}"
        steps, served, published = line.steps.count, line.served(), follower.count(ModelPublished)
        line.let_pass()

        # Neither whoever pulled nor a program nor the trainer's own callers let it go on.
        with (
            CordClient(line.target, token=TOKENS["lara"]) as lara,
            refused(PermissionDeniedError, "ROLE_NOT_ALLOWED"),
        ):
            lara.release(actor="", reason="never mind")
        with (
            CordClient(line.target, token=TOKENS["service"]) as service,
            refused(PermissionDeniedError, "ROLE_NOT_ALLOWED"),
        ):
            service.release(actor="", reason="never mind")
        page = line.site.person("lara", Role.LABELER).submit("/cord/release", {"reason": "never mind"})
        assert page.status_code == 403
        with refused(FailedPreconditionError, "RUN_NOT_RESUMABLE"):
            client.resume(run.run_id)
        with refused(InvalidArgumentError, "EMPTY_REASON"):
            line.cord.release(actor="", reason=" ")
        line.let_pass()
        assert line.steps.count == steps
        assert line.served() == served
        assert follower.count(ModelPublished) == published
        assert client.get(run.run_id).state is RunState.PAUSED

        begin_s = time.monotonic()
        line.cord.release(actor="", reason="looked at them: they are fine")
        on_s = follower.wait_for(RunState.RUNNING)
        record_property(f"{door}_seconds_to_going_on", round(on_s - begin_s, 4))
        progress = follower.count(Progress)
        wait_until(lambda: follower.count(Progress) >= progress + 2)
        assert line.steps.count > steps
        client.stop(run.run_id)
    record = [(event.action, event.actor) for event in line.cord.events()]
    assert record == [("release", "rita"), ("pull", who)]


def test_a_run_that_was_stopped_by_the_cord_gives_the_numbers_of_one_that_was_not(line: Line) -> None:
    """Also when its process ends meanwhile: the checkpoint is all that the next one needs."""
    config = line.config(updates=6)
    client = line.serve_trainer("whole")
    whole = finish(client, client.start_run("ppo", config))
    expected = line.world.store.resolve("policy@latest").version.weights_sha256
    line.world.stop(line.world.trainer)

    client = line.serve_trainer("cut")
    run = client.start_run("ppo", config)
    for number in range(3):
        line.steps.at_pull = None
        target = line.steps.count + 1 + 4 * number  # at other places of an update each time
        wait_until(lambda target=target: line.steps.count >= target)
        line.cord.pull(actor="", reason=REASON)
        with ExitStack() as stack:
            Follower(client, run, stack).wait_for(RunState.PAUSED)
        line.world.stop(line.world.trainer)
        client = line.serve_trainer("cut")
        with ExitStack() as stack:
            Follower(client, run, stack).wait_for(RunState.PAUSED)  # the pulled cord outlasts the process
        steps = line.steps.count
        line.let_pass()
        assert line.steps.count == steps
        line.cord.release(actor="", reason="go on")
    cut = finish(client, run)

    reports = {step: {**report, "policy_version": 0} for step, report in numbers(cut).items()}
    assert reports == {step: {**report, "policy_version": 0} for step, report in numbers(whole).items()}
    assert line.world.store.resolve("policy@latest").version.weights_sha256 == expected


@pytest.mark.parametrize("guards", [{}, {"enabled": False}], ids=["guards", "no guards"])
def test_a_pull_after_the_last_step_keeps_the_new_weights_from_the_samplers(
    line: Line, guards: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment before a version goes out: when the steps are done, and the guards look at them."""
    look = PpoGuards.after_update
    heard = threading.Event()

    def pull_meanwhile(guards: PpoGuards, *arguments: Any, update: int, **keywords: Any) -> None:
        if update == 2 and not heard.is_set():
            line.cord.pull(actor="", reason=REASON)
            wait_until(lambda: line.steps.at_pull is not None)
            heard.set()
        look(guards, *arguments, update=update, **keywords)

    monkeypatch.setattr(PpoGuards, "after_update", pull_meanwhile)
    client = line.serve_trainer()
    run = client.start_run("ppo", line.config(updates=3, guards=guards))
    with ExitStack() as stack:
        follower = Follower(client, run, stack)
        follower.wait_for(RunState.PAUSED)
        assert heard.is_set()
        served = line.served()
        assert served is not None
        assert (served.family, served.version) == ("policy", 1)
        assert follower.count(ModelPublished) == 1
        line.let_pass()
        assert line.served() == served
        line.cord.release(actor="", reason="go on")
        finish(client, run)
    assert line.served() == line.world.store.resolve("policy/3").version


def test_samplers_go_back_to_the_stable_version_where_they_are_told_to(line: Line) -> None:
    stable = line.world.publish_policy(seed=5)
    line.world.store.publish(
        "policy",
        lambda folder: [
            (folder / file.name).write_bytes(file.read_bytes())
            for file in line.world.store.resolve(stable).path.iterdir()
            if file.is_file() and file.name != "manifest.json"
        ],
        manifest=line.world.store.resolve(stable).manifest.draft,
    )
    good = line.world.store.resolve("policy/1").version
    line.world.store.set_alias("policy@stable", good)
    client = line.serve_trainer()
    guards = {"enabled": False, "when_cord_pulled": "stable"}
    run = client.start_run("ppo", line.config(updates=4, guards=guards))
    with ExitStack() as stack:
        follower = Follower(client, run, stack)
        wait_until(lambda: follower.count(Progress) >= 1)
        line.cord.pull(actor="", reason=REASON)
        follower.wait_for(RunState.PAUSED)
        wait_until(lambda: line.served() == good)
        line.let_pass()
        assert line.served() == good
        line.cord.release(actor="", reason="go on")
        events = finish(client, run)
    # What the run samples afterwards comes from its own version again.
    assert all(report["sampler_logprob_max_error"] < 1e-4 for report in numbers(events).values())
