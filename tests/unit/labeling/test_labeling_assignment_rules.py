"""Leases and the draws of orders."""

import itertools
from collections import Counter
from typing import Any

import pytest
from scipy import stats

from services.labeling.assignment import (
    CIRCLE_PLACES,
    Draws,
    LeaseDurations,
    LeaseRecord,
    Pool,
    check_lease_order,
    check_may_answer,
)
from services.labeling.errors import (
    InvalidFieldError,
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    LeaseOfAnotherLabelerError,
)
from services.labeling.projects import BatchSettings
from services.labeling.tasks import TaskKind

DURATIONS = LeaseDurations(default_us=60_000_000, max_us=3600_000_000)


def order(**fields: Any) -> Any:
    return check_lease_order(
        **{"labeler_id": "ann@x.org", "batch": "", "max_tasks": 0, "duration_us": None, **fields},
        durations=DURATIONS,
    )


def test_defaults_are_filled_in() -> None:
    checked = order()
    assert (checked.max_tasks, checked.duration_us) == (1, 60_000_000)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"labeler_id": ""}, "INVALID_LABELER"),
        ({"labeler_id": "a b"}, "INVALID_LABELER"),
        ({"labeler_id": "a" * 201}, "INVALID_LABELER"),
        ({"labeler_id": "a\n"}, "INVALID_LABELER"),
        ({"batch": "a/b"}, "INVALID_BATCH"),
        ({"max_tasks": -1}, "INVALID_LEASE"),
        ({"max_tasks": 1001}, "INVALID_LEASE"),
        ({"duration_us": 0}, "INVALID_LEASE"),
        ({"duration_us": -5}, "INVALID_LEASE"),
        ({"duration_us": 3600_000_001}, "INVALID_LEASE"),
    ],
)
def test_bad_wishes(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        order(**fields)
    assert caught.value.reason == reason


def lease(**fields: Any) -> LeaseRecord:
    return LeaseRecord(
        **{
            "lease_id": "l",
            "task_id": 1,
            "batch_id": 1,
            "slot_number": 0,
            "labeler_id": "ann",
            "round": 0,
            "shown_order": (0, 1),
            "lease_us": 100,
            "expire_us": 200,
            "is_answered": False,
            "is_skipped": False,
            "holds_slot": True,
            "kind": TaskKind.COMPARE,
            **fields,
        }
    )


def test_a_lease_may_be_answered_until_it_expires() -> None:
    check_may_answer(lease(), labeler_id="ann", now_us=199)
    with pytest.raises(LeaseExpiredError):
        check_may_answer(lease(), labeler_id="ann", now_us=200)


def test_what_is_wrong_with_a_lease_is_told_in_order() -> None:
    everything_wrong = lease(is_answered=True, holds_slot=False)
    with pytest.raises(LeaseOfAnotherLabelerError):
        check_may_answer(everything_wrong, labeler_id="bob", now_us=300)
    with pytest.raises(LeaseAlreadyAnsweredError):
        check_may_answer(everything_wrong, labeler_id="ann", now_us=300)


def test_a_clock_set_back_does_not_revive_a_lease_whose_slot_is_taken() -> None:
    with pytest.raises(LeaseExpiredError):
        check_may_answer(lease(holds_slot=False), labeler_id="ann", now_us=150)


def test_a_skipped_task_takes_no_answer() -> None:
    with pytest.raises(LeaseExpiredError):
        check_may_answer(lease(is_skipped=True), labeler_id="ann", now_us=150)


@pytest.mark.parametrize("slot_number", [0, 1, 5])
def test_the_shown_orders_of_a_slot_are_uniform_permutations(slot_number: int) -> None:
    draws = Draws(seed="s")
    counts = Counter(draws.shown_order(task, slot_number, 3) for task in range(6000))
    assert set(counts) == set(itertools.permutations(range(3)))
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("num_candidates", [2, 3, 9])
def test_over_its_slots_each_candidate_stands_equally_often_at_each_place(num_candidates: int) -> None:
    draws = Draws(seed="s")
    for task in range(50):
        orders = [draws.shown_order(task, slot, num_candidates) for slot in range(2 * num_candidates)]
        for place in range(num_candidates):
            counts = Counter(order[place] for order in orders)
            assert counts == dict.fromkeys(range(num_candidates), 2)


def test_a_task_without_candidates_has_an_empty_order() -> None:
    assert Draws(seed="s").shown_order(1, 0, 0) == ()


def test_draws_follow_from_the_seed_and_differ_without_it() -> None:
    shown = [Draws(seed="a").shown_order(task, 0, 9) for task in range(20)]
    assert shown == [Draws(seed="a").shown_order(task, 0, 9) for task in range(20)]
    assert shown != [Draws(seed="b").shown_order(task, 0, 9) for task in range(20)]
    assert shown != [Draws(seed="a").shown_order(task, 1, 9) for task in range(20)]


def test_every_twenty_items_hold_the_shares_asked_for() -> None:
    settings = BatchSettings(calibration_share=0.15, drift_share=0.1, gold_share=0.05, repeat_share=0.05)
    draws = Draws(seed="s")
    for labeler in ("ann", "bob"):
        pools = draws.pools(labeler, 0, 200, settings)
        for start in range(0, 200, 20):
            assert Counter(pools[start : start + 20]) == {
                Pool.ORDINARY: 13,
                Pool.CALIBRATION: 3,
                Pool.DRIFT: 2,
                Pool.GOLD: 1,
                Pool.REPEAT: 1,
            }
    assert draws.pools("ann", 0, 200, settings) != draws.pools("bob", 0, 200, settings)
    assert draws.pools("ann", 7, 5, settings) == draws.pools("ann", 0, 200, settings)[7:12]


def test_a_share_that_makes_no_whole_items_holds_on_average_and_at_no_fixed_place() -> None:
    pools = Draws(seed="s").pools("ann", 0, 20_000, BatchSettings(gold_share=0.03))
    gold = [item for item, pool in enumerate(pools) if pool is Pool.GOLD]
    assert stats.binomtest(len(gold), 20_000, 0.03).pvalue > 0.001
    assert stats.chisquare(list(Counter(item % 20 for item in gold).values())).pvalue > 0.001


def test_places_on_the_circle_are_spread() -> None:
    draws = Draws(seed="s")
    places = [draws.task_place(task) / CIRCLE_PLACES for task in range(2000)]
    assert stats.kstest(places, "uniform").pvalue > 0.001
    starts = [draws.labeler_start(f"labeler-{number}") / CIRCLE_PLACES for number in range(2000)]
    assert stats.kstest(starts, "uniform").pvalue > 0.001
