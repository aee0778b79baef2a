"""Pairs of rankings and Kendall's tau-b."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from services.labeling.quality.rankings import best_labels, kendall_tau_b, mean_tau_b, ranking_labels
from services.labeling.quality.records import Tiers


def tiers_of(scores: list[int]) -> Tiers:
    """The ranking by falling score."""
    return tuple(
        tuple(index for index, own in enumerate(scores) if own == score)
        for score in sorted(set(scores), reverse=True)
    )


SCORES = st.integers(2, 9).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 4), min_size=size, max_size=size), min_size=1, max_size=6)
)


def test_labels_of_a_ranking_stand_in_the_order_of_pairs() -> None:
    # 2 is best, 0 and 3 are equal, 1 is worst; pairs 01 02 03 12 13 23
    assert ranking_labels(((2,), (3, 0), (1,))) == ("first", "second", "tie", "second", "second", "first")
    assert best_labels(1, 3) == ("second", None, "first")


@given(SCORES)
def test_tau_b_is_scipys(all_scores: list[list[int]]) -> None:
    one, other = all_scores[0], all_scores[-1]

    tau = kendall_tau_b(tiers_of(one), tiers_of(other))

    if len(set(one)) == 1 or len(set(other)) == 1:
        assert tau is None
    else:
        assert tau == pytest.approx(kendalltau(one, other).statistic, abs=1e-12)


@given(st.lists(SCORES, max_size=5))
def test_mean_tau_b_is_the_mean_over_pairs_of_people(tasks: list[list[list[int]]]) -> None:
    rankings = [{f"p{who}": tiers_of(scores) for who, scores in enumerate(task)} for task in tasks]
    all_pairs = [
        tau
        for by_person in rankings
        for one, other in combinations(by_person.values(), 2)
        if (tau := kendall_tau_b(one, other)) is not None
    ]
    own_pairs = [
        tau
        for by_person in rankings
        for person, other in by_person.items()
        if person != "p0" and (tau := kendall_tau_b(by_person["p0"], other)) is not None
    ]

    for estimate, taus in (
        (mean_tau_b(rankings), all_pairs),
        (mean_tau_b(rankings, subject="p0"), own_pairs),
    ):
        assert estimate.num_units == len(taus)
        if taus:
            assert estimate.value == pytest.approx(sum(taus) / len(taus), abs=1e-9)
            assert estimate.low is not None
            assert estimate.high is not None
            assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
        else:
            assert estimate.value is None


def test_somebody_who_ranked_nothing_has_no_tau() -> None:
    assert mean_tau_b([{"a": ((0,), (1,), (2,)), "b": ((0,), (2,), (1,))}], subject="c").value is None
