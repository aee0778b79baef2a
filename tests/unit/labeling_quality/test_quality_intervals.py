"""Intervals against published ones, and how often they hold the truth."""

import math
import random
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t
from statsmodels.stats.proportion import proportion_confint

from services.labeling.quality.agreement import agreement_shares, shared_labels
from services.labeling.quality.alpha import Level, krippendorff_alpha
from services.labeling.quality.intervals import (
    Estimate,
    chance_corrected,
    mean_of_clusters,
    median_of_values,
    quantile,
    share_of_clusters,
    share_of_values,
    student_t_975,
    wilson_interval,
)
from services.labeling.quality.kappa import fleiss_kappa, pair_agreements


@given(st.integers(1, 10_000), st.data())
def test_wilson_is_statsmodels(num_units: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, num_units))

    interval = wilson_interval(successes / num_units, num_units)

    expected = proportion_confint(successes, num_units, method="wilson")
    assert interval == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert 0 <= interval[0] <= successes / num_units <= interval[1] <= 1


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 7, 30, 10_000])
def test_student_t(degrees_of_freedom: int) -> None:
    assert student_t_975(degrees_of_freedom) == pytest.approx(t.ppf(0.975, degrees_of_freedom), rel=2e-3)


@pytest.mark.parametrize("num_units", [6, 7, 8, 9, 20, 63, 200, 201, 1000])
def test_median_lies_between_the_order_statistics_often_enough(num_units: int) -> None:
    estimate = median_of_values([float(value) for value in range(1, num_units + 1)])

    assert estimate.low is not None
    rank = int(estimate.low)  # the values are their own ranks
    assert estimate.high == num_units + 1 - rank
    # As many below as allowed: 2.5 % on each side, and one rank further in would be too many.
    assert binom.cdf(rank - 1, num_units, 0.5) <= 0.025 * 1.02
    assert binom.cdf(rank + 1, num_units, 0.5) > 0.025


def test_five_values_have_a_median_and_no_interval() -> None:
    assert median_of_values([3.0, 1.0, 5.0, 2.0, 4.0]) == Estimate(value=3, low=None, high=None, num_units=5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(sorted(values), share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)
    assert median_of_values(values).value == pytest.approx(median(values))


def test_units_of_their_own_have_the_plain_wilson_interval() -> None:
    estimate = share_of_values([1, 0, 1, 1, 0.5])

    assert (estimate.value, estimate.num_units) == (0.7, 5)
    assert (estimate.low, estimate.high) == pytest.approx(proportion_confint(3.5, 5, method="wilson"))


def test_copies_of_a_unit_add_no_certainty() -> None:
    """Every task's answers are the same answer four times: worth one answer each."""
    rng = random.Random(1)
    values = [int(rng.random() < 0.7) for _ in range(200)]

    alone = share_of_clusters((value, 1) for value in values)
    copied = share_of_clusters((4 * value, 4) for value in values)

    assert copied.value == alone.value
    assert copied.num_units == 4 * alone.num_units
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=0.003)


@pytest.mark.parametrize("num_tasks", [1, 2, 30])
def test_one_answer_throughout_leaves_doubt(num_tasks: int) -> None:
    estimate = share_of_clusters([(3, 3)] * num_tasks)

    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(proportion_confint(num_tasks, num_tasks, method="wilson")[0])


def test_a_mean_without_visible_variance_leaves_doubt_too() -> None:
    estimate = mean_of_clusters([(1.0, 1)] * 3, lowest=-1, highest=1)

    assert (estimate.value, estimate.high) == (1, 1)
    # Wilson's 3 of 3 begins at 0.4385, put on -1..1.
    assert estimate.low == pytest.approx(-0.123, abs=0.001)


def test_a_mean_has_students_interval() -> None:
    values = [0.1, 0.4, 0.2, 0.5, 0.3]

    estimate = mean_of_clusters([(value, 1) for value in values], lowest=-1, highest=1)

    expected = t.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / math.sqrt(5))
    assert (estimate.low, estimate.high) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("clusters", [[], [(0.0, 0)]])
def test_nothing_gives_no_figure(clusters: list[tuple[float, int]]) -> None:
    nothing = Estimate(value=None, low=None, high=None, num_units=0)

    assert share_of_clusters(clusters) == nothing
    assert mean_of_clusters(clusters, lowest=-1, highest=1) == nothing
    assert median_of_values([]) == nothing
    assert chance_corrected(observed=0, expected=0, influences=[], num_units=0) == nothing


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted), max_size=30))
def test_a_share_and_its_interval_stay_in_range(clusters: list[list[int]]) -> None:
    estimate = share_of_clusters((total, number) for total, number in clusters)

    if estimate.value is not None:
        assert estimate.low is not None
        assert estimate.high is not None
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def synthetic_labels(
    rng: random.Random, num_tasks: int, num_units: int
) -> dict[int, dict[str, tuple[int, ...]]]:
    """Three people who follow a truth more on easy tasks than on hard ones: a task's units go together."""
    table = {}
    for task in range(num_tasks):
        skill = 0.85 if rng.random() < 0.5 else 0.45
        truth = rng.choices((1, 2, 3), (0.5, 0.4, 0.1), k=num_units)
        table[task] = {
            person: tuple(
                label if rng.random() < skill else rng.choices((1, 2, 3), (0.5, 0.4, 0.1))[0]
                for label in truth
            )
            for person in ("a", "b", "c")
        }
    return table


def figures(table: dict[int, dict[str, tuple[int, ...]]]) -> dict[str, Estimate]:
    shares = agreement_shares(shared_labels(table, researchers=("c",)), researchers=("c",))
    everyone = agreement_shares(shared_labels(table, researchers=()), researchers=())
    pair = pair_agreements(table)[0]
    return {
        "agreement of a pair": pair.agreement,
        "cohen": pair.cohen_kappa,
        "fleiss": fleiss_kappa(table),
        "alpha nominal": krippendorff_alpha(table),
        "alpha ordinal": krippendorff_alpha(table, level=Level.ORDINAL),
        "labeler with labeler": everyone.labeler_labeler,
        "labeler with researcher": shares.labeler_researcher,
        "labeler with majority": everyone.labeler_majority,
    }


@pytest.mark.parametrize(("num_tasks", "num_units"), [(40, 1), (25, 3)])
def test_intervals_hold_the_truth_as_often_as_they_say(num_tasks: int, num_units: int) -> None:
    rng = random.Random(7)
    truth = figures(synthetic_labels(rng, 12_000, num_units))
    num_rounds = 300
    held = dict.fromkeys(truth, 0)
    for _ in range(num_rounds):
        for name, estimate in figures(synthetic_labels(rng, num_tasks, num_units)).items():
            assert estimate.low is not None
            assert estimate.high is not None
            held[name] += estimate.low <= (truth[name].value or 0) <= estimate.high

    # Ordinal alpha of 40 items really holds 94 %; three standard errors of 300 rounds are 4 % more.
    assert {name for name, number in held.items() if not 0.90 <= number / num_rounds <= 0.99} == set()
