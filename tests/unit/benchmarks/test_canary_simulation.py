"""A few simulated rollouts; ``make bench-canary`` makes thousands."""

import pytest

from benchmarks.canary import SCENARIOS, Scenario, simulate, with_table
from services.canary.rollout import Phase

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("name", ["sign-flipped", "over-optimised", "long-winded", "slow", "failing"])
def test_bad_candidates_go_back(name: str) -> None:
    scenario = BY_NAME[name]
    assert scenario.is_bad
    assert [simulate(scenario, number=number)["end"] for number in range(4)] == [Phase.ROLLED_BACK.value] * 4


@pytest.mark.parametrize("name", ["better", "equal"])
def test_good_candidates_are_promoted(name: str) -> None:
    scenario = BY_NAME[name]
    assert not scenario.is_bad
    assert [simulate(scenario, number=number)["end"] for number in range(4)] == [Phase.PROMOTED.value] * 4


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
    changed = with_table(document, [row])
    assert changed.startswith("a\n")
    assert changed.endswith("<!-- end -->\nb\n")
    assert "| equal | the same | 50.0% |" in changed
    assert "OUTDATED" not in changed
