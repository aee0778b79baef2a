"""The gates' tests: exact expectations by enumeration, error rates by simulation, bounds and bad numbers."""

import json
import math
import random
from dataclasses import asdict
from itertools import product

import pytest

from services.canary.gates.betting import STAKES, Bet
from services.canary.gates.gate import ErrorRates, Gate, GateRule, Verdict

RATES = ErrorRates(promotion=0.05, rollback=0.05)
SCORE = GateRule(name="score", boundary=-0.25, lowest=-4.0, highest=4.0, equal=0.0, least=10)


def bet(**changes: object) -> Bet:
    return Bet(**{"side": "above", "boundary": 0.5, "lowest": 0.0, "highest": 1.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["above", "below"])
def test_whoever_bets_against_the_truth_is_expected_to_keep_what_he_has(side: str) -> None:
    """At the boundary itself the expected wealth is 1 after any number of bets: all 2^8 sequences."""
    wealths = [
        math.exp(bet(side=side).after(values).log_evidence) for values in product((0.0, 1.0), repeat=8)
    ]
    assert sum(wealths) / len(wealths) == pytest.approx(1.0)


def test_the_wealth_is_the_mean_over_the_stakes() -> None:
    """Three times 0.75 where the boundary is 0.5 of 0..1: each stake s gains half of itself each time."""
    expected = sum((1 + stake / 2) ** 3 for stake in STAKES) / len(STAKES)
    assert math.exp(bet().after([0.75] * 3).log_evidence) == pytest.approx(expected)
    assert bet().after([0.75], times=3).log_evidence == pytest.approx(math.log(expected))


def test_the_order_does_not_matter_and_the_two_sides_are_mirror_images() -> None:
    values = [0.1, 0.9, 0.4, 0.75, 1.0, 0.0, 0.3]
    forward, backward = bet().after(values), bet().after(values[::-1])
    assert forward.log_evidence == pytest.approx(backward.log_evidence)
    mirrored = bet(side="below").after([1.0 - value for value in values])
    assert mirrored.log_evidence == pytest.approx(forward.log_evidence)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_a_value_outside_of_the_bounds_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        bet().after([value])


@pytest.mark.parametrize("boundary", [0.0, 1.0, 2.0])
def test_a_boundary_that_nothing_can_cross_is_an_error(boundary: float) -> None:
    with pytest.raises(ValueError, match="boundary"):
        bet(boundary=boundary)


def test_looking_after_every_observation_keeps_the_error_rate() -> None:
    """At the boundary, the worst case, at most 5 % of gamblers ever reach 1/0.05 in 250 looks."""
    chance = random.Random("gates")
    won = 0
    for _ in range(300):
        gambler = bet()
        for _ in range(250):
            gambler = gambler.after([float(chance.random() < 0.5)])
            if gambler.rejects(0.05):
                won += 1
                break
    assert won <= 27  # of 300 the bound expects 15 at most; more than 27 has a probability of 0.2 %


def seen(values: list[float], rule: GateRule = SCORE) -> Gate:
    return Gate.of(rule).after(values, rates=RATES, num_gates=3)


def normal(mean: float, count: int, seed: str = "normal") -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(mean, 1.0) for _ in range(count)]


def test_an_equal_version_passes_and_is_not_called_better() -> None:
    gate = seen(normal(0.0, 600))
    assert gate.verdict is Verdict.PASSED
    assert not gate.is_better


def test_a_better_version_passes_sooner_and_is_called_better() -> None:
    gate = seen(normal(0.5, 150))
    assert gate.verdict is Verdict.PASSED
    assert gate.is_better


def test_a_worse_version_fails() -> None:
    gate = seen(normal(-0.8, 150))
    assert gate.verdict is Verdict.FAILED
    assert not gate.passed


def test_a_gate_that_saw_too_little_has_no_data_whatever_it_saw() -> None:
    assert Gate.of(SCORE).verdict is Verdict.NO_DATA
    assert Gate.of(SCORE).mean is None
    few = seen([3.0] * 9)
    assert few.passed
    assert few.verdict is Verdict.NO_DATA
    assert seen([3.0] * 10).verdict is Verdict.PASSED


def test_what_is_no_number_counts_as_the_worst() -> None:
    assert seen([math.nan] * 20) == seen([-4.0] * 20) == seen([-math.inf] * 20)
    assert seen([math.inf] * 20) == seen([-4.0] * 20)  # an infinite score is broken, not splendid
    assert seen([7.0] * 20) == seen([4.0] * 20)
    assert seen([math.nan] * 20).verdict is Verdict.FAILED


def test_a_version_that_becomes_worse_loses_what_it_had_shown() -> None:
    gate = seen(normal(0.5, 150))
    assert (gate.passed, gate.is_better) == (True, True)
    later = gate.after(normal(-1.0, 150, "later"), rates=RATES, num_gates=3)
    assert (later.passed, later.is_better) == (False, False)


def test_a_failure_stays_a_failure() -> None:
    gate = seen(normal(-0.8, 150))
    later = gate.after([2.0] * 300, rates=RATES, num_gates=3)
    assert later.mean is not None
    assert later.mean > SCORE.boundary
    assert later.verdict is Verdict.FAILED


def test_calls_that_came_many_times_count_like_single_ones() -> None:
    calls = GateRule(name="calls", boundary=0.99, lowest=0.0, highest=1.0)
    one_by_one = seen([1.0] * 400 + [0.0] * 2, calls)
    at_once = Gate.of(calls).after([1.0], times=400, rates=RATES, num_gates=3)
    at_once = at_once.after([0.0], times=2, rates=RATES, num_gates=3)
    assert at_once.count == one_by_one.count == 402
    assert at_once.above.log_evidence == pytest.approx(one_by_one.above.log_evidence)
    assert at_once.after([1.0], times=0, rates=RATES, num_gates=3) == at_once


def test_errors_are_found_and_their_absence_takes_some_calls_to_show() -> None:
    """A boundary of 1 % errors: 600 good calls pass, 200 do not yet; 5 % of errors fail within 200."""
    calls = GateRule(name="calls", boundary=0.99, lowest=0.0, highest=1.0)
    assert seen([1.0] * 200, calls).verdict is Verdict.OPEN
    assert seen([1.0] * 600, calls).verdict is Verdict.PASSED
    assert seen(([1.0] * 19 + [0.0]) * 10, calls).verdict is Verdict.FAILED


def test_a_gate_comes_back_from_json() -> None:
    gate = seen(normal(0.1, 40))
    assert Gate.from_values(json.loads(json.dumps(asdict(gate)))) == gate
    calls = seen([1.0] * 40, GateRule(name="calls", boundary=0.99, lowest=0.0, highest=1.0))
    assert Gate.from_values(json.loads(json.dumps(asdict(calls)))) == calls


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"boundary": -5.0}, "not within"),
        ({"equal": -0.5}, "could not pass"),
        ({"equal": 4.0}, "could not pass"),
        ({"least": 0}, "least"),
    ],
)
def test_a_rule_that_makes_no_sense_is_an_error(changes: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GateRule(**{**asdict(SCORE), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rates", [{"promotion": 0.0}, {"rollback": 1.0}, {"rollback": 5e-324}, {"promotion": 1e-10}]
)
def test_error_rates_lie_within_0_and_1(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="error rate"):
        ErrorRates(**rates)
