"""The guard ``people``: which pairs are shown, what answers do to the evidence, and how often it errs."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.trainer.guards.config import DEFAULT_RULES, GuardsConfig
from services.trainer.guards.guard import Finding, GuardName, UpdateFacts
from services.trainer.guards.people import PeopleGuard, ScoredResponse, choose_pairs

THRESHOLD = DEFAULT_RULES[GuardName.PEOPLE].threshold


@pytest.fixture
def facts(make_update: Callable[..., Any]) -> UpdateFacts:
    found: UpdateFacts = make_update().facts
    return found


def examine(guard: PeopleGuard, facts: UpdateFacts, *answers: bool) -> Finding:
    finding = guard.examine(replace(facts, people=answers))
    assert finding is not None
    return finding


def test_where_nobody_is_asked_it_says_nothing(facts: UpdateFacts) -> None:
    assert PeopleGuard(THRESHOLD).examine(facts) is None
    silent = examine(PeopleGuard(THRESHOLD), facts)
    assert silent.statistic == pytest.approx(1.0)
    assert not silent.alarming


def test_labelers_who_always_disagree_alarm_at_the_fourteenth_answer(facts: UpdateFacts) -> None:
    # All n against it: 2 * 2^n * integral of (1 - q)^n over 0..1/2 = (2^(n+1) - 1) / (n + 1), by hand; half
    # the weight is on it, half on beginnings still to come.
    guard = PeopleGuard(THRESHOLD)
    for number in range(1, 15):
        finding = examine(guard, facts, False)
        assert finding.statistic == pytest.approx((2 ** (number + 1) - 1) / (number + 1) / 2 + 0.5)
        assert finding.alarming == (number == 14)
    assert "0 of 14" in finding.message


def test_the_strongest_moment_between_two_updates_counts(facts: UpdateFacts) -> None:
    guard = PeopleGuard(THRESHOLD)
    finding = examine(guard, facts, *[False] * 14, *[True] * 10)
    assert finding.alarming
    assert "0 of 14" in finding.message
    assert not examine(guard, facts).alarming
    assert "10 of 24" in examine(guard, facts).message


def test_a_person_who_overrules_it_begins_the_count_anew(facts: UpdateFacts) -> None:
    guard = PeopleGuard(THRESHOLD)
    assert examine(guard, facts, *[False] * 15).alarming
    guard.acknowledge()
    assert not examine(guard, facts, *[False] * 12).alarming


def test_it_goes_on_from_a_checkpoint(facts: UpdateFacts) -> None:
    guard, other = PeopleGuard(THRESHOLD), PeopleGuard(THRESHOLD)
    examine(guard, facts, False, True, False)
    other.restore(json.loads(json.dumps(guard.state())))
    assert examine(other, facts, False) == examine(guard, facts, False)


# --- pairs -------------------------------------------------------------------------------------------------


def responses(*texts_and_scores: tuple[int, str, float]) -> Iterator[ScoredResponse]:
    for prompt, text, score in texts_and_scores:
        yield ScoredResponse(prompt=prompt, text=text, score=score)


def test_pairs_are_two_different_responses_to_one_prompt_that_the_model_tells_apart() -> None:
    offered = list(
        responses(
            (0, "a", 1.0), (0, "b", 2.0), (0, "c", 3.0),
            (1, "same", 1.0), (1, "same ", 2.0),
            (2, "tied", 1.0), (2, "too", 1.0),
            (3, "alone", 1.0),
            (4, " ", 1.0), (4, "blank", 2.0),
            (5, "x", 5.0), (5, "y", 4.0),
        )
    )  # fmt: skip
    for seed in range(20):
        chosen = choose_pairs(offered, pairs=10, seed=str(seed))
        assert sorted(pair.first.prompt for pair in chosen) == [0, 5]
        for pair in chosen:
            assert pair.first.prompt == pair.second.prompt
            assert pair.prefers_first == (pair.first.score > pair.second.score)
            assert pair.first.score != pair.second.score


def test_chance_chooses_and_the_seed_decides() -> None:
    offered = list(
        responses(*((prompt, f"{prompt}/{n}", float(n)) for prompt in range(20) for n in range(4)))
    )
    assert choose_pairs(offered, pairs=5, seed="1") == choose_pairs(offered, pairs=5, seed="1")
    chosen = [pair for seed in range(300) for pair in choose_pairs(offered, pairs=5, seed=str(seed))]
    assert len(chosen) == 1500
    prompts = Counter(pair.first.prompt for pair in chosen)
    assert min(prompts.values()) > 40  # 75 on average
    # Neither place nor distance of the scores is favoured: 6 pairs of 4, in 2 orders, 125 each on average.
    orders = Counter((pair.first.score, pair.second.score) for pair in chosen)
    assert len(orders) == 12
    assert min(orders.values()) > 85
    assert 600 < sum(pair.prefers_first for pair in chosen) < 900


# --- configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "guard"), [({"people": {"pairs": 4}}, "people"), ({"witness": {"model": "w@x"}}, "hacking")]
)
def test_feeding_a_guard_that_is_off_is_an_error(section: dict[str, Any], guard: str) -> None:
    assert GuardsConfig.model_validate(section).rule(GuardName(guard)).action is not None
    with pytest.raises(ValueError, match="would have no effect"):
        GuardsConfig.model_validate({**section, "rules": {guard: {"action": "off"}}})
    with pytest.raises(ValueError, match="would have no effect"):
        GuardsConfig.model_validate({**section, "enabled": False})
