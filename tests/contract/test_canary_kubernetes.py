"""A rollout's steps on a fake Kubernetes, by controllers that are killed, compete, and meet faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from andon.errors import AndonError, NotFoundError
from andon.modeling.store import ModelStore
from services.canary.cluster_errors import NotLeaderError, RevisionConflictError
from services.canary.kubernetes_cluster import Cluster, ClusterNames, EventText
from services.canary.kubernetes_writes import Patience
from services.canary.lease import LeaseLeadership, LeaseTimes
from tests.canary_cluster import Killed, MortalClient, fill_store
from tests.kubernetes_api import FakeKubernetes
from tests.kubernetes_objects import EVENTS, LEASES
from tests.kubernetes_workloads import CANARY, STABLE, Workloads, role_rules

PATIENCE = Patience(total_s=5.0, first_pause_s=0.001, longest_pause_s=0.01)
LEASE = "andon-canary"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """One cluster and the controllers in it."""

    def __init__(self, api: FakeKubernetes, folder: Path) -> None:
        self.api, self._folder = api, folder
        self.workloads = Workloads(api)
        self.store: ModelStore = fill_store(folder / "store")
        self.clock = Clock()
        self._count = 0

    def controller(self, *, dies_after: int | None = None) -> Controller:
        self._count += 1
        mortal = MortalClient(self.api, self._folder, name=f"controller-{self._count}", dies_after=dies_after)
        return Controller(self, mortal, identity=f"controller-{self._count}")

    def events(self) -> list[str]:
        return sorted(event["message"] for event in self.api.objects.list(EVENTS)[0])


class Controller:
    """A controller of the simplest kind: one step of a fixed plan after the other, each saved when done.

    It has what the real one has to have: it acts only while it leads, begins each term by loading, and does
    a step again when it does not know whether it was done.
    """

    def __init__(self, world: World, mortal: MortalClient, *, identity: str) -> None:
        calls = mortal.calls()
        self.mortal = mortal
        self.lease = LeaseLeadership(
            calls, name=LEASE, times=LeaseTimes(), identity=identity, clock=world.clock
        )
        self.cluster = Cluster(
            calls,
            self.lease,
            names=ClusterNames(),
            store=world.store,
            canary_replicas=1,
            patience=PATIENCE,
        )
        self.plan: tuple[tuple[str, Callable[[], None]], ...] = (
            ("deployed", lambda: self.cluster.deploy("policy/2")),
            ("at 5 percent", lambda: self.cluster.route(5)),
            ("at 50 percent", lambda: self.cluster.route(50)),
            ("promoted", lambda: self.cluster.set_stable("policy/2")),
            ("routed back", lambda: self.cluster.route(0)),
            ("removed", self.cluster.remove),
        )

    def act(self) -> bool:
        """One step; whether the plan is done. NotLeaderError and RevisionConflictError mean: begin anew."""
        stored = self.cluster.load_state()
        if not self.lease.is_leader():
            raise NotLeaderError(holder="another")
        revision = 0 if stored is None else stored.revision
        done = 0 if stored is None else int(stored.rollout["done"])
        if done == len(self.plan):
            return True
        word, step = self.plan[done]
        step()
        event = EventText(reason="RolloutAdvanced", message=word, warning=False)
        self.cluster.add_decision({"word": word}, key=f"r1/{done}", event=event)
        self.cluster.save_state({"done": done + 1}, revision=revision)
        return done + 1 == len(self.plan)

    def run(self, world: World) -> None:
        """To the end."""
        for _ in range(1000):
            if not self.lease.step():
                world.clock.now_s += 2
                continue
            if self.act():
                return
        raise AssertionError("it does not end")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with FakeKubernetes(rules=role_rules()) as api:
        yield World(api, tmp_path)


WORDS = ["at 5 percent", "at 50 percent", "deployed", "promoted", "removed", "routed back"]


def _check_ended_right(world: World, controller: Controller) -> None:
    """The cluster is as it should be, and each effect came once, whoever caused it."""
    workloads = world.workloads
    assert workloads.model(STABLE) == "policy/2"
    assert workloads.models_served(STABLE) == ["policy/2", "policy/2"]
    assert workloads.replicas(CANARY) == 0
    assert workloads.models_served(CANARY) == []
    assert workloads.weights() == (100, 0)
    assert workloads.rolled == [
        (STABLE, "policy/1", 2),
        (CANARY, "policy@canary", 0),
        (CANARY, "policy/2", 1),
        (STABLE, "policy/2", 2),
        (CANARY, "policy/2", 0),
    ]
    aliases = world.store.aliases()
    assert (str(aliases["policy@stable"]), str(aliases["policy@canary"])) == ("policy/2", "policy/2")
    plan = [word for word, _ in controller.plan]
    assert [one["word"] for one in controller.cluster.decisions()] == plan
    assert world.events() == WORDS
    assert {event["count"] for event in world.api.objects.list(EVENTS)[0]} == {1}
    stored = controller.cluster.load_state()
    assert stored is not None
    assert (stored.revision, stored.rollout) == (len(plan), {"done": len(plan)})


def _count_of_calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    with FakeKubernetes(rules=role_rules()) as api:
        world = World(api, tmp_path_factory.mktemp("whole"))
        controller = world.controller()
        controller.run(world)
        return controller.mortal.count


def test_a_rollout_without_trouble(world: World) -> None:
    controller = world.controller()
    controller.run(world)
    _check_ended_right(world, controller)


def test_killed_after_each_single_request_it_ends_right(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Kill points are counted, not listed: all that there are."""
    count = _count_of_calls(tmp_path_factory)
    assert count > 60
    for dies_after in range(1, count + 1):
        with FakeKubernetes(rules=role_rules()) as api:
            world = World(api, tmp_path_factory.mktemp("killed"))
            first = world.controller(dies_after=dies_after)
            try:
                first.run(world)
            except Killed:
                world.clock.now_s += 60
            second = world.controller()
            second.run(world)
            _check_ended_right(world, second)


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_with_faults_all_the_time(world: World, seed: int) -> None:
    draws = random.Random(seed)
    kinds = ["other_writer", "throttled", "server_error", "unavailable", "reset_before", "reset_after"]
    for _ in range(200):
        plural = draws.choice(["deployments", "configmaps", "grpcroutes", "events", "pods"])
        world.api.inject(draws.choice(kinds), plural=plural)  # type: ignore[arg-type]
        controller = world.controller(dies_after=draws.randint(3, 25))
        try:
            controller.run(world)
            break
        except Killed:
            world.clock.now_s += 60
    last = world.controller()
    last.run(world)
    _check_ended_right(world, last)


@pytest.mark.parametrize("seed", range(4))
def test_two_controllers_that_take_turns_at_every_request_do_each_step_once(world: World, seed: int) -> None:
    """Leads are lost in the middle of steps: a clock that jumps between the requests of one controller."""
    draws = random.Random(seed)
    both = [world.controller(), world.controller()]
    for one in both:
        one.mortal.before = lambda: _jump(world, draws)
    ended: set[int] = set()
    for _ in range(2000):
        number = draws.randrange(2)
        world.clock.now_s += draws.choice([0, 2, 16])
        try:
            if both[number].lease.step() and both[number].act():
                ended.add(number)
        except (NotLeaderError, RevisionConflictError):
            continue
        if len(ended) == 2:
            break
    assert len(ended) == 2
    transitions = world.api.objects.get(LEASES, LEASE)["spec"]["leaseTransitions"]
    assert transitions > 2
    world.clock.now_s += 60
    last = world.controller()
    last.run(world)
    _check_ended_right(world, last)


def _jump(world: World, draws: random.Random) -> None:
    if draws.random() < 0.1:
        world.clock.now_s += 11


def test_a_controller_that_does_not_lead_reads_and_changes_nothing(world: World) -> None:
    leader, other = world.controller(), world.controller()
    assert leader.lease.step()
    leader.act()
    assert not other.lease.step()
    stored = other.cluster.load_state()
    assert stored is not None
    assert stored.rollout == {"done": 1}
    for change in (
        lambda: other.cluster.route(50),
        lambda: other.cluster.deploy("policy/3"),
        lambda: other.cluster.set_stable("policy/3"),
        other.cluster.remove,
        lambda: other.cluster.save_state({"done": 2}, revision=stored.revision),
    ):
        with pytest.raises(NotLeaderError):
            change()
    assert not any(call.writes for call in world.api.calls if call.caller == "controller-2")
    assert str(world.store.aliases()["policy@stable"]) == "policy/1"


def test_a_record_of_another_revision_is_not_overwritten(world: World) -> None:
    controller = world.controller()
    controller.lease.step()
    assert controller.cluster.load_state() is None
    assert controller.cluster.save_state({"done": 0}, revision=0) == 1
    assert controller.cluster.save_state({"done": 0}, revision=0) == 1  # the same call, repeated
    for rollout, revision in (({"done": 9}, 0), ({"done": 9}, 2)):
        with pytest.raises(RevisionConflictError):
            controller.cluster.save_state(rollout, revision=revision)
    assert controller.cluster.save_state({"done": 9}, revision=1) == 2


def test_a_version_that_is_not_stored_is_refused_before_anything_changes(world: World) -> None:
    controller = world.controller()
    controller.lease.step()
    controller.cluster.load_state()
    before = len(world.workloads.rolled)
    for change in (controller.cluster.deploy, controller.cluster.set_stable):
        with pytest.raises(NotFoundError):
            change("policy/9")
    assert len(world.workloads.rolled) == before


def test_replicas_and_readiness_follow_the_pods(world: World) -> None:
    controller = world.controller()
    controller.lease.step()
    cluster = controller.cluster
    cluster.load_state()
    assert [one.target for one in cluster.addresses("stable")] == ["10.0.0.1:50051", "10.0.0.2:50051"]
    assert cluster.addresses("canary") == []
    assert str(cluster.model("stable")) == "policy/1"

    world.workloads.set_behaviour("policy/2", "waiting")
    cluster.deploy("policy/2")
    state = cluster.readiness("canary")
    assert (state.wanted, state.ready) == (1, 0)
    assert cluster.addresses("canary") == []

    world.workloads.set_behaviour("policy/2", "crashing")
    assert "CrashLoopBackOff" in cluster.readiness("canary").message

    world.workloads.set_behaviour("policy/2", "ready")
    state = cluster.readiness("canary")
    assert (state.wanted, state.ready, state.message) == (1, 1, "")
    assert [one.metrics_url for one in cluster.addresses("canary")] == ["http://10.0.0.3:9101/metrics"]
    assert str(cluster.model("canary")) == "policy/2"

    world.workloads.set_behaviour("policy/2", "waiting")
    cluster.set_stable("policy/2")
    state = cluster.readiness("stable")  # the old ones serve until the new ones are ready
    assert (state.wanted, state.ready) == (2, 0)
    assert world.workloads.models_served(STABLE) == ["policy/1", "policy/1"]


def test_an_api_that_is_away_leaves_everything_as_it_was(world: World) -> None:
    controller = world.controller()
    controller.lease.step()
    controller.cluster.load_state()
    world.api.inject("unavailable", times=1_000_000)
    with pytest.raises(AndonError) as away:
        controller.cluster.route(50)
    assert away.value.code == "UNAVAILABLE"
    assert world.workloads.weights() == (100, 0)
