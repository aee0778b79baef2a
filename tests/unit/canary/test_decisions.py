"""What a rollout does next, case by case, and that a rollout survives JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.canary.decisions import Kind, decide
from services.canary.gates.gate import GateRule
from services.canary.rollout import Phase, Rollout, RolloutSpec

SCORE = GateRule(name="score", boundary=-0.25, lowest=-4.0, highest=4.0, equal=0.0, least=10)
CALLS = GateRule(name="calls", boundary=0.9, lowest=0.0, highest=1.0, least=10)
SPEC = RolloutSpec(candidate="policy/12", steps=(5, 50), gates=(SCORE, CALLS), least_s=60, longest_s=600)

GOOD, EQUAL, BAD = [1.0] * 60, [0.1, -0.1] * 400, [-1.5] * 60


def observed(
    score: list[float], calls: list[float] | None = None, *, step: int = 1, spec: RolloutSpec = SPEC
) -> Rollout:
    """A rollout that came to a step at second 0 and saw this in it."""
    rollout = Rollout.begin(spec, rollout_id="r", stable="policy/11", now_s=-100.0)
    rollout = rollout.at_step(step, reason="test", now_s=0.0)
    return rollout.after({"score": score, "calls": [1.0] * 60 if calls is None else calls})


@pytest.mark.parametrize(
    ("rollout", "now_s", "kind", "why"),
    [
        (observed(GOOD), 61, Kind.PROMOTE, "better: score"),
        (observed(EQUAL), 61, Kind.PROMOTE, "good enough"),
        (observed(EQUAL, spec=replace(SPEC, when_equal="hold")), 61, Kind.CONTINUE, "not shown to be better"),
        (observed(EQUAL, spec=replace(SPEC, when_equal="hold")), 600, Kind.HOLD, "not shown to be better"),
        (observed(GOOD, spec=replace(SPEC, when_equal="hold")), 61, Kind.PROMOTE, "better"),
        (observed(GOOD, step=0), 61, Kind.ADVANCE, "nothing looks worse than allowed at 5 %"),
        (observed(EQUAL[:20], step=0), 61, Kind.ADVANCE, "nothing looks worse"),  # not yet shown: no matter
        (observed([-0.3] * 20, step=0), 61, Kind.CONTINUE, "may be worse than allowed: score -0.3"),
        (observed([-0.3] * 20, step=0), 600, Kind.ROLL_BACK, "may be worse than allowed: score -0.3"),
        (observed(GOOD), 59, Kind.CONTINUE, "at least 60 s"),
        (observed(BAD), 1, Kind.ROLL_BACK, "score -1.5"),
        (observed(BAD, step=0), 1, Kind.ROLL_BACK, "worse than allowed"),
        (observed(GOOD, [0.0] * 30), 61, Kind.ROLL_BACK, "calls +0"),
        (observed(EQUAL[:20]), 61, Kind.CONTINUE, "not shown to be good enough: score"),
        (observed(EQUAL[:20]), 600, Kind.ROLL_BACK, "not shown to be good enough: score"),
        (observed([]), 61, Kind.CONTINUE, "too little was seen of score"),
        (observed([]), 600, Kind.ROLL_BACK, "too little was seen of score at 50 %"),
        (observed(GOOD, [], step=0), 599, Kind.CONTINUE, "too little was seen of calls at 5 %"),
        (observed([], [], step=0), 600, Kind.ROLL_BACK, "too little was seen of score, calls"),
    ],
)
def test_the_evidence_decides(rollout: Rollout, now_s: float, kind: Kind, why: str) -> None:
    decision = decide(rollout, now_s=now_s)
    assert decision.kind is kind
    assert why in decision.reason
    assert decision.numbers["score"]["count"] == rollout.gates[0].count


def test_each_step_wants_observations_of_its_own() -> None:
    rollout = observed(GOOD, step=0).at_step(1, reason="nothing got worse", now_s=100.0)
    decision = decide(rollout, now_s=200.0)
    assert decision.kind is Kind.CONTINUE
    assert "too little" in decision.reason
    more = rollout.after({"score": [1.0] * 10, "calls": [1.0] * 10})
    assert decide(more, now_s=200.0).kind is Kind.PROMOTE


def asked(rollout: Rollout, what: Any) -> Rollout:
    return replace(rollout, asked=what, asked_by="rita", asked_reason="I looked at them")


def test_the_safer_of_two_wins() -> None:
    good, bad = observed(GOOD), observed(BAD)
    cord = "the cord is pulled by lara: rude"
    assert decide(asked(bad, "promote"), now_s=61).kind is Kind.ROLL_BACK
    assert decide(asked(good, "promote"), now_s=1).kind is Kind.PROMOTE
    assert decide(asked(good, "promote"), now_s=1, emergency=cord).kind is Kind.ROLL_BACK
    assert decide(good, now_s=61, emergency=cord).reason == cord
    aborted = decide(asked(good, "abort"), now_s=61, emergency=cord)
    assert (aborted.kind, aborted.reason) == (Kind.ABORT, "rita said so: I looked at them")


def test_a_held_rollout_waits_for_a_person_and_not_for_the_cord() -> None:
    held = observed(EQUAL).into(Phase.HELD, reason="not shown to be better", now_s=0.0)
    assert decide(held, now_s=1e9).kind is Kind.CONTINUE
    assert decide(held, now_s=1e9, emergency="an alert").kind is Kind.ROLL_BACK
    assert decide(asked(held, "promote"), now_s=1).kind is Kind.PROMOTE
    assert decide(asked(held, "abort"), now_s=1).kind is Kind.ABORT
    assert decide(held.after({"score": [-4.0] * 500}), now_s=1).kind is Kind.ROLL_BACK


@pytest.mark.parametrize("phase", [Phase.DEPLOYING, Phase.PROMOTING, Phase.ROLLED_BACK])
def test_nothing_is_decided_while_nothing_is_observed(phase: Phase) -> None:
    with pytest.raises(ValueError, match="nothing is to be decided"):
        decide(observed(GOOD).into(phase, reason="", now_s=0.0), now_s=1.0)


def test_the_canary_has_traffic_only_while_it_is_observed_or_becomes_stable() -> None:
    rollout = observed(GOOD, step=0)
    shares = {phase: rollout.into(phase, reason="", now_s=0.0).canary_percent for phase in Phase}
    assert {phase for phase, share in shares.items() if share > 0} == {
        Phase.OBSERVING,
        Phase.HELD,
        Phase.PROMOTING,
    }
    assert shares[Phase.OBSERVING] == 5


def test_a_rollout_comes_back_from_json() -> None:
    rollout = asked(observed(EQUAL), "promote")
    assert Rollout.from_values(json.loads(json.dumps(rollout.to_values()))) == rollout


def test_observations_of_no_gate_are_an_error() -> None:
    with pytest.raises(ValueError, match="no gate"):
        observed(GOOD).after({"scores": [1.0]})
    with pytest.raises(ValueError, match="no gate"):
        observed(GOOD).after_counts({"scores": {1.0: 3}})


def test_counted_observations_are_observations() -> None:
    counted = observed([], []).after_counts({"calls": {1.0: 30, 0.0: 2}})
    listed = observed([], []).after({"calls": [1.0] * 30 + [0.0] * 2})
    assert counted.gates[1].count == listed.gates[1].count == 32
    assert counted.gates[1].mean == listed.gates[1].mean == pytest.approx(30 / 32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"candidate": ""}, "candidate"),
        ({"steps": ()}, "steps"),
        ({"steps": (50, 5)}, "steps"),
        ({"steps": (0, 5)}, "steps"),
        ({"steps": (5, 101)}, "steps"),
        ({"gates": ()}, "gates"),
        ({"gates": (SCORE, SCORE)}, "different names"),
        ({"least_s": 600.0}, "least_s"),
        ({"ready_s": 0.0}, "ready_s"),
        ({"when_equal": "maybe"}, "when_equal"),
    ],
)
def test_a_spec_that_makes_no_sense_is_an_error(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(SPEC, **changes)
