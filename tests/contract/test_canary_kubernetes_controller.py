"""The controller on a fake Kubernetes: whole rollouts, killed after every request that they make."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from andon.errors import AndonError
from services.canary.controller import Controller
from services.canary.decisions import Kind
from services.canary.gates.gate import GateRule
from services.canary.kubernetes_cluster import Cluster, ClusterNames
from services.canary.kubernetes_platform import KubernetesPlatform
from services.canary.kubernetes_writes import Patience
from services.canary.lease import LeaseLeadership, LeaseTimes
from services.canary.observing import Observations
from services.canary.platform import RecordedDecision, Replica
from services.canary.rollout import Phase, Rollout, RolloutSpec
from tests.canary_cluster import Killed, MortalClient, fill_store
from tests.kubernetes_api import FakeKubernetes
from tests.kubernetes_objects import EVENTS
from tests.kubernetes_workloads import CANARY, STABLE, Behaviour, Workloads, role_rules

PATIENCE = Patience(total_s=5.0, first_pause_s=0.001, longest_pause_s=0.01)
TICK_S = 61.0
SPEC = RolloutSpec(
    candidate="policy/2",
    steps=(5, 50),
    gates=(GateRule(name="reward", boundary=-0.1, lowest=-1.0, highest=1.0, equal=0.0, least=5),),
    least_s=60.0,
    longest_s=1800.0,
    ready_s=300.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How a rollout goes, and how it ends."""

    name: str
    ends: Phase
    decisions: tuple[tuple[str, int, Kind], ...]  # phase, step, kind
    routed: tuple[int, ...]
    stable: str
    rolled: tuple[tuple[str, str, int], ...]  # Deployment, model, replicas: what was changed, in order
    rewards: tuple[float, ...] = (0.5, 0.5)  # by step
    pods: Behaviour = "ready"
    lies_on_stable: bool = False
    is_aborted: bool = False  # at its first step


_UP = (CANARY, "policy/2", 1)
_GONE = (CANARY, "policy/2", 0)
_PROMOTED, _BACK = (STABLE, "policy/2", 2), (STABLE, "policy/1", 2)
CASES = (
    Case(
        name="better",
        ends=Phase.PROMOTED,
        decisions=(
            ("verifying", 0, Kind.ADVANCE),
            ("observing", 0, Kind.ADVANCE),
            ("observing", 1, Kind.PROMOTE),
        ),
        routed=(0, 5, 50, 0),
        stable="policy/2",
        rolled=(_UP, _PROMOTED, _GONE),
    ),
    Case(
        name="worse",
        rewards=(-0.5, -0.5),
        ends=Phase.ROLLED_BACK,
        decisions=(("verifying", 0, Kind.ADVANCE), ("observing", 0, Kind.ROLL_BACK)),
        routed=(0, 5, 0),
        stable="policy/1",
        rolled=(_UP, _GONE),
    ),
    Case(
        name="never ready",
        pods="crashing",
        ends=Phase.ROLLED_BACK,
        decisions=(("deploying", 0, Kind.ROLL_BACK),),
        routed=(0,),
        stable="policy/1",
        rolled=(_UP, _GONE),
    ),
    Case(
        name="lies after its promotion",
        lies_on_stable=True,
        ends=Phase.ROLLED_BACK,
        decisions=(
            ("verifying", 0, Kind.ADVANCE),
            ("observing", 0, Kind.ADVANCE),
            ("observing", 1, Kind.PROMOTE),
            ("promoting", 1, Kind.ROLL_BACK),
        ),
        routed=(0, 5, 50, 0),
        stable="policy/1",
        rolled=(_UP, _PROMOTED, _BACK, _GONE),
    ),
    Case(
        name="aborted",
        is_aborted=True,
        ends=Phase.ABORTED,
        decisions=(("verifying", 0, Kind.ADVANCE), ("observing", 0, Kind.ABORT)),
        routed=(0, 5, 0),
        stable="policy/1",
        rolled=(_UP, _GONE),
    ),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedEvidence:
    """Sees at each step what the case says. Replicas are asked, so their number counts."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def lie_of(self, version: str, replicas: Sequence[Replica]) -> str | None:
        on_stable = any(replica.name.startswith(f"{STABLE}-") for replica in replicas) and not any(
            replica.name.startswith(f"{CANARY}-") for replica in replicas
        )
        return "a replica lies" if on_stable and self._case.lies_on_stable else None

    def gather(
        self, rollout: Rollout, *, stable: Sequence[Replica], canary: Sequence[Replica]
    ) -> Observations:
        if not stable or not canary:
            return Observations()
        # Few and clear, so that what a crash loses is seen again with the same end.
        return Observations(values={"reward": [self._case.rewards[rollout.step]] * 100})


class Silence:
    def stands(self, rollout: Rollout) -> None:
        pass

    def decided(self, decision: RecordedDecision) -> None:
        pass


class Process:
    """One process with a controller, its lead and its connection."""

    def __init__(self, world: World, mortal: MortalClient, identity: str) -> None:
        calls = mortal.calls()
        self.mortal, self._world = mortal, world
        self.lease = LeaseLeadership(
            calls, name="andon-canary", times=LeaseTimes(), identity=identity, clock=world.lease_clock
        )
        cluster = Cluster(
            calls,
            self.lease,
            names=ClusterNames(),
            store=world.store,
            canary_replicas=1,
            patience=PATIENCE,
        )
        self.platform = KubernetesPlatform(cluster)
        self.controller = Controller(
            self.platform,
            ScriptedEvidence(world.case),
            is_leader=self.lease.is_leader,
            emergency=lambda: None,
            clock=world.clock,
            listener=Silence(),
        )

    def start_rollout(self) -> None:
        """What the service does when it is asked for one; again after a crash it finds it there."""
        if self.platform.load() is None:
            begun = Rollout.begin(
                SPEC, rollout_id="r1", stable=self.platform.stable_version(), now_s=self._world.clock()
            )
            self.platform.save(begun, revision=0)

    def ask_for_abort(self) -> None:
        stored = self.platform.load()
        assert stored is not None
        if stored.rollout.asked is None and stored.rollout.phase is Phase.OBSERVING:
            asked = replace(stored.rollout, asked="abort", asked_by="olga", asked_reason="I say so")
            self.platform.save(asked, revision=stored.revision)

    def tick(self) -> bool:
        """Whether the rollout has ended."""
        world = self._world
        world.clock.now_s += TICK_S
        world.lease_clock.now_s += 2
        if not self.lease.step():
            return False
        self.start_rollout()
        if world.case.is_aborted:
            self.ask_for_abort()
        self.controller.tick()
        stored = self.platform.load()
        return stored is not None and stored.rollout.phase.is_final

    def run(self) -> None:
        for _ in range(100):
            if self.tick():
                return
        raise AssertionError("the rollout does not end")


class World:
    """One cluster, and the processes in it."""

    def __init__(self, api: FakeKubernetes, folder: Path, case: Case) -> None:
        self.api, self._folder, self.case = api, folder, case
        self.workloads = Workloads(api, stable_model="policy@stable")
        self.workloads.behaviours["policy/2"] = case.pods
        self.store = fill_store(folder / "store")
        self.clock, self.lease_clock = Clock(), Clock()
        self.began_with = len(self.workloads.rolled)
        self._count = 0

    def process(self, *, dies_after: int | None = None) -> Process:
        self._count += 1
        name = f"process-{self._count}"
        return Process(self, MortalClient(self.api, self._folder, name=name, dies_after=dies_after), name)

    def check_ended_right(self) -> None:
        """The cluster is as the case says, and each effect came once, whoever caused it."""
        last = self.process()
        self.lease_clock.now_s += 60
        last.lease.step()
        self.lease_clock.now_s += 60
        assert last.lease.step()
        stored, case, workloads = last.platform.load(), self.case, self.workloads
        assert stored is not None
        assert stored.rollout.phase is case.ends, stored.rollout.reason
        decisions = last.platform.decisions()
        taken = [(one.phase, one.step, one.decision.kind) for one in decisions]
        assert taken == list(case.decisions)
        assert len(self.api.objects.list(EVENTS)[0]) == len(taken)
        assert workloads.routed == list(case.routed)
        assert workloads.weights() == (100, 0)
        assert workloads.rolled[self.began_with :] == list(case.rolled)
        assert workloads.models_served(CANARY) == []
        assert last.platform.stable_version() == case.stable
        assert str(self.store.aliases()["policy@stable"]) == case.stable
        assert len(workloads.models_served(STABLE)) == 2


@pytest.fixture
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExitStack, Case], World]:
    def make(stack: ExitStack, case: Case) -> World:
        api = stack.enter_context(FakeKubernetes(rules=role_rules()))
        return World(api, tmp_path_factory.mktemp("cluster"), case)

    return make


by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))


@by_case
def test_without_trouble(case: Case, make_world: Callable[[ExitStack, Case], World]) -> None:
    with ExitStack() as stack:
        world = make_world(stack, case)
        world.process().run()
        world.check_ended_right()


@pytest.mark.parametrize(
    "case",
    [
        # The one that does everything there is, up and back; the others take as long for less.
        pytest.param(
            case, id=case.name.replace(" ", "-"), marks=[] if case.lies_on_stable else pytest.mark.slow
        )
        for case in CASES
    ],
)
def test_killed_after_each_single_request(case: Case, make_world: Callable[[ExitStack, Case], World]) -> None:
    """Kill points are counted, not listed: all that there are. Another process takes over."""
    with ExitStack() as stack:
        whole = make_world(stack, case).process()
        whole.run()
        count = whole.mortal.count
    assert count > 40
    for dies_after in range(1, count + 1):
        with ExitStack() as stack:
            world = make_world(stack, case)
            with suppress(Killed):
                world.process(dies_after=dies_after).run()
            world.process().run()
            world.check_ended_right()


@by_case
def test_killed_again_and_again_among_faults(
    case: Case, make_world: Callable[[ExitStack, Case], World]
) -> None:
    draws = random.Random(7)
    kinds = ["other_writer", "throttled", "server_error", "unavailable", "reset_before", "reset_after"]
    with ExitStack() as stack:
        world = make_world(stack, case)
        for _ in range(12):
            for plural in ("deployments", "configmaps", "grpcroutes", "events", "pods", "leases"):
                world.api.inject(draws.choice(kinds), plural=plural)  # type: ignore[arg-type]
            process = world.process(dies_after=draws.randint(20, 45))
            try:
                process.run()
                break
            except Killed:
                world.lease_clock.now_s += 60
        world.process().run()
        world.check_ended_right()


@by_case
def test_two_that_compete(case: Case, make_world: Callable[[ExitStack, Case], World]) -> None:
    """The lead changes hands between and within ticks; the loser's tick fails, as it should."""
    draws = random.Random(11)
    with ExitStack() as stack:
        world = make_world(stack, case)
        both = [world.process(), world.process()]

        def jump() -> None:
            if draws.random() < 0.03:
                world.lease_clock.now_s += 11

        for one in both:
            one.mortal.before = jump
        reasons: set[str] = set()
        ended = False
        for _ in range(400):
            try:
                ended = draws.choice(both).tick() or ended
            except AndonError as error:
                reasons.add(error.reason)
            if ended:
                break
            world.lease_clock.now_s += draws.choice([0, 0, 16])
        assert ended
        assert {"NOT_LEADER"} <= reasons <= {"NOT_LEADER", "ROLLOUT_CONFLICT"}
        for one in both:
            one.mortal.before = None
        world.check_ended_right()
