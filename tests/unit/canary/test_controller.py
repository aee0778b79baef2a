"""A rollout from its beginning to its end, on a platform in memory: every way it may end, killed anywhere."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from andon.errors import FailedPreconditionError
from services.canary.controller import Controller
from services.canary.decisions import Kind
from services.canary.gates.gate import GateRule
from services.canary.platform import RecordedDecision
from services.canary.rollout import Phase, Rollout, RolloutSpec
from tests.canary_platform import Killed, MemoryPlatform, ScriptedEvidence

SCORE = GateRule(name="score", boundary=-0.25, lowest=-4.0, highest=4.0, equal=0.0, least=10)
CALLS = GateRule(name="calls", boundary=0.9, lowest=0.0, highest=1.0, least=10)
SPEC = RolloutSpec(
    candidate="policy/12", steps=(5, 50), gates=(SCORE, CALLS), least_s=10, longest_s=300, ready_s=60
)
WELL = {"calls": {1.0: 20}}
BETTER = ScriptedEvidence({"score": [0.9, 1.1] * 5}, WELL)
EQUAL = ScriptedEvidence({"score": [0.1, -0.1] * 20}, WELL)
WORSE = ScriptedEvidence({"score": [-1.0] * 10}, WELL)
SILENT = ScriptedEvidence({})


@dataclass
class Heard:
    """What a listener was told."""

    phases: list[Phase] = field(default_factory=list)
    decisions: list[RecordedDecision] = field(default_factory=list)

    def stands(self, rollout: Rollout) -> None:
        if not self.phases or self.phases[-1] is not rollout.phase:
            self.phases.append(rollout.phase)

    def decided(self, decision: RecordedDecision) -> None:
        self.decisions.append(decision)


class Line:
    """A controller and all it stands on; each tick takes 5 seconds."""

    def __init__(self, evidence: ScriptedEvidence, *, spec: RolloutSpec = SPEC, **platform: Any) -> None:
        self.platform = MemoryPlatform(**platform)
        self.evidence = evidence
        self.heard = Heard()
        self.now_s = 1000.0
        self.leads = True
        self.emergency: str | None = None
        rollout = Rollout.begin(spec, rollout_id="r1", stable="policy/11", now_s=self.now_s)
        self.platform.save(rollout, revision=0)

    def controller(self) -> Controller:
        """As a new process makes it."""
        return Controller(
            self.platform,
            self.evidence,
            is_leader=lambda: self.leads,
            emergency=lambda: self.emergency,
            clock=lambda: self.now_s,
            listener=self.heard,
        )

    @property
    def rollout(self) -> Rollout:
        assert self.platform.stored is not None
        return self.platform.stored.rollout

    def run(self, *, until: Phase | None = None, ticks: int = 200) -> Rollout:
        """Tick until the rollout is over or in a phase; a killed controller is replaced by a new one."""
        controller = self.controller()
        for _ in range(ticks):
            if self.rollout.phase is until or self.rollout.phase.is_final:
                return self.rollout
            try:
                controller.tick()
            except Killed:
                controller = self.controller()
            self.now_s += 5.0
        raise AssertionError(f"still {self.rollout.phase} after {ticks} ticks: {self.rollout.reason}")


def ended(line: Line) -> tuple[Any, ...]:
    """What is left of a rollout."""
    platform = line.platform
    return platform.stable, platform.alias, platform.canary, platform.percent, line.rollout.phase


PROMOTED = ("policy/12", "policy/12", None, 0, Phase.PROMOTED)
ROLLED_BACK = ("policy/11", "policy/11", None, 0, Phase.ROLLED_BACK)


def test_a_better_version_takes_the_place_of_stable_step_by_step() -> None:
    line = Line(BETTER)
    line.run()
    assert ended(line) == PROMOTED
    assert line.platform.percents == [5, 50, 0]
    assert line.heard.phases == [
        Phase.DEPLOYING,
        Phase.VERIFYING,
        Phase.OBSERVING,
        Phase.PROMOTING,
        Phase.PROMOTED,
    ]
    kinds = [decision.decision.kind for decision in line.platform.decisions()]
    assert kinds == [Kind.ADVANCE, Kind.ADVANCE, Kind.PROMOTE]
    assert "better: score" in line.rollout.reason
    assert line.platform.decisions()[-1].decision.numbers["score"]["mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("evidence", "platform", "why"),
    [
        (WORSE, {}, "worse than allowed: score"),
        (SILENT, {}, "too little was seen of score, calls"),
        (replace(BETTER, liars=frozenset({"policy/12"})), {}, "does not serve policy/12"),
        (BETTER, {"never_ready": True}, "0 of 2 replicas of canary are ready: CrashLoopBackOff, after 60 s"),
    ],
    ids=["worse", "silent", "lying", "crashing"],
)
def test_what_is_not_shown_to_be_good_goes_back(
    evidence: ScriptedEvidence, platform: dict[str, Any], why: str
) -> None:
    line = Line(evidence, **platform)
    line.run()
    assert ended(line) == ROLLED_BACK
    assert why in line.rollout.reason
    assert line.platform.decisions()[-1].decision.kind is Kind.ROLL_BACK
    assert ("set_stable", "policy/12") not in line.platform.calls  # it had never moved
    assert max(line.platform.percents, default=0) <= 5


@pytest.mark.parametrize(("when_equal", "phase"), [("promote", Phase.PROMOTED), ("hold", Phase.HELD)])
def test_an_equal_version_is_promoted_or_held_as_configured(when_equal: Any, phase: Phase) -> None:
    line = Line(EQUAL, spec=replace(SPEC, when_equal=when_equal))
    assert line.run(until=Phase.HELD).phase is phase


def test_a_held_version_keeps_its_share_until_a_person_decides() -> None:
    line = Line(EQUAL, spec=replace(SPEC, when_equal="hold"))
    line.run(until=Phase.HELD)
    for _ in range(5):
        line.controller().tick()
        line.now_s += 1e4
    assert (line.rollout.phase, line.platform.percent) == (Phase.HELD, 50)
    ask(line, "promote")
    line.run()
    assert ended(line) == PROMOTED
    assert line.rollout.reason == "policy/12 is stable; rita said so: looked at it"


def ask(line: Line, what: Any) -> None:
    stored = line.platform.stored
    assert stored is not None
    asked = replace(stored.rollout, asked=what, asked_by="rita", asked_reason="looked at it")
    line.platform.save(asked, revision=stored.revision)


@pytest.mark.parametrize(
    "phase", [Phase.DEPLOYING, Phase.VERIFYING, Phase.OBSERVING, Phase.HELD, Phase.PROMOTING]
)
@pytest.mark.parametrize("how", ["cord", "abort"])
def test_the_cord_and_a_person_stop_a_rollout_wherever_it_is(phase: Phase, how: str) -> None:
    line = Line(EQUAL, spec=replace(SPEC, when_equal="hold" if phase is Phase.HELD else "promote"), slow=2)
    line.run(until=phase)
    if phase is Phase.PROMOTING:
        line.controller().tick()  # stable has begun to move
        assert line.platform.stable == "policy/12"
    if how == "cord":
        line.emergency = "the cord is pulled by lara: rude"
    else:
        ask(line, "abort")
    line.controller().tick()
    assert line.platform.percent == 0  # at once
    assert line.rollout.phase is Phase.ROLLING_BACK
    line.emergency = None  # a released cord does not bring it back
    line.run()
    expected = Phase.ABORTED if how == "abort" else Phase.ROLLED_BACK
    assert ended(line) == (*ROLLED_BACK[:4], expected)
    assert ("rude" if how == "cord" else "rita said so: looked at it") in line.rollout.reason


def test_a_canary_that_begins_to_lie_goes_back() -> None:
    line = Line(EQUAL)
    line.run(until=Phase.OBSERVING)
    line.platform.canary = "policy/9"
    line.run()
    assert ended(line) == ROLLED_BACK
    assert "does not serve policy/12" in line.rollout.reason


def test_a_canary_that_dies_goes_back_by_its_failed_calls() -> None:
    line = Line(EQUAL)
    line.run(until=Phase.OBSERVING)
    line.platform.never_ready = True
    line.run()
    assert ended(line) == ROLLED_BACK
    assert "calls" in line.rollout.reason


def test_a_stable_side_that_does_not_come_up_with_the_new_version_goes_back() -> None:
    line = Line(BETTER)
    line.run(until=Phase.PROMOTING)
    line.platform.slow = 40
    line.run()
    assert ended(line) == ROLLED_BACK
    assert "replicas of stable are ready, after" in line.rollout.reason


def test_whoever_does_not_lead_does_nothing() -> None:
    line = Line(BETTER)
    line.leads = False
    before = list(line.platform.calls)
    assert line.controller().tick() is None
    assert line.platform.calls == before


def test_a_record_that_somebody_else_changed_is_not_overwritten() -> None:
    line = Line(EQUAL)
    line.run(until=Phase.OBSERVING)
    gather = line.evidence.gather

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        ask(line, "abort")
        return gather(*arguments, **options)

    controller = line.controller()
    line.evidence.gather = meanwhile  # type: ignore[method-assign]
    with pytest.raises(FailedPreconditionError, match="somebody else"):
        controller.tick()
    line.evidence.gather = gather  # type: ignore[method-assign]
    line.run()
    assert line.rollout.phase is Phase.ABORTED


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("evidence", "expected", "percents"),
    [(BETTER, PROMOTED, {0, 5, 50}), (WORSE, ROLLED_BACK, {0, 5})],
    ids=["better", "worse"],
)
def test_a_controller_that_is_killed_at_any_call_is_replaced_and_it_ends_the_same(
    evidence: ScriptedEvidence, expected: tuple[Any, ...], percents: set[int], before: bool
) -> None:
    undisturbed = Line(evidence)
    undisturbed.run()
    kinds = [decision.decision.kind for decision in undisturbed.platform.decisions()]
    for kill_at in itertools.count(2):  # the first call stored the rollout
        line = Line(evidence, kill_at=kill_at, kill_before=before)
        line.run()
        assert ended(line) == expected, kill_at
        assert set(line.platform.percents) | {0} == percents, kill_at
        assert [decision.decision.kind for decision in line.platform.decisions()] == kinds, kill_at
        if line.platform._count < kill_at:
            break
    assert kill_at > 10
