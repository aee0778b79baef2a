"""A few simulated rollouts; ``make bench-canary`` makes thousands."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.canary import SCENARIOS, Scenario, simulate, simulate_judges, with_table
from services.canary.rollout import Phase

Way = Callable[..., dict[str, Any]]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


# One gate alone is decided soonest, and wrongly most often: with more of them all have to pass.
ONLY_SCORE = {"left_out_gates": ["kl", "longer", "shorter", "repetition", "latency", "calls", "people"]}


@pytest.mark.parametrize("way", [simulate, simulate_judges], ids=["controller", "judges"])
@pytest.mark.parametrize("name", ["sign-flipped", "over-optimised", "long-winded", "slow", "failing"])
def test_bad_candidates_go_back(name: str, way: Way) -> None:
    scenario = BY_NAME[name]
    assert scenario.is_bad
    assert [way(scenario, number=number)["end"] for number in range(4)] == [Phase.ROLLED_BACK.value] * 4


@pytest.mark.parametrize("way", [simulate, simulate_judges], ids=["controller", "judges"])
@pytest.mark.parametrize("name", ["better", "equal"])
def test_good_candidates_are_promoted(name: str, way: Way) -> None:
    scenario = BY_NAME[name]
    assert not scenario.is_bad
    assert [way(scenario, number=number)["end"] for number in range(4)] == [Phase.PROMOTED.value] * 4


def rates_of_judges(scenario: Scenario, *, rollouts: int, **settings: Any) -> tuple[float, float]:
    """The shares that were promoted, and that were rolled back by a gate."""
    ends = [simulate_judges(scenario, number=number, **ONLY_SCORE, **settings) for number in range(rollouts)]
    promoted = [end for end in ends if end["end"] == Phase.PROMOTED.value]
    return len(promoted) / rollouts, sum(bool(end["failed"]) for end in ends) / rollouts


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_judges_promote_what_lies_at_a_boundary_at_most_at_the_stated_rate(rate: float) -> None:
    rollouts = 150
    promoted, failed = rates_of_judges(
        BY_NAME["at the boundary"],
        rollouts=rollouts,
        longest_s=600.0,
        promotion_error_rate=rate,
        rollback_error_rate=rate,
    )
    most = rate + 3 * math.sqrt(rate * (1 - rate) / rollouts)
    assert promoted <= most
    assert failed <= most  # over all three steps: at the boundary is not below it
    if rate > 0.2:
        assert promoted > 0  # so the test could have failed


def test_what_lies_at_a_boundary_is_bad() -> None:
    assert BY_NAME["at the boundary"].is_bad
    assert not Scenario(name="near", what="just above", means={"score": -0.249}).is_bad


def test_the_table_takes_the_place_between_its_marks() -> None:
    document = "a\n<!-- measured: benchmarks/results/canary.json -->\nOUTDATED\n<!-- end -->\nb\n"
    row = {
        "scenario": "equal",
        "what": "the same",
        "is_bad": False,
        "rollouts": 2,
        "promoted": 1,
        "promoted_low": 0.01,
        "promoted_high": 0.99,
        "rolled_back_by_a_gate": 0,
        "rolled_back_undecided": 1,
        "median_pairs": 10.0,
        "median_most_percent": 50.0,
    }
    changed = with_table(document, "canary", [row])
    assert changed.startswith("a\n")
    assert changed.endswith("<!-- end -->\nb\n")
    assert "| equal | the same | 50.0% |" in changed
    assert "OUTDATED" not in changed
