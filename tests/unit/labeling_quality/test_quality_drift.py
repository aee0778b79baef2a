"""Change over time, against scipy's and statsmodels' tests."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency, kruskal
from statsmodels.stats.contingency_tables import Table

from services.labeling.quality.agreement import shared_labels
from services.labeling.quality.drift import (
    DriftTests,
    chi_squared_tail,
    drift_of,
    drift_tests,
    supervised_wins,
)
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality.units import label_table

MakeAnswer = Callable[..., JudgedAnswer]
A_WINS, B_WINS, TIED = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


@given(st.floats(0, 2000), st.integers(1, 200))
def test_tail_of_chi_squared_is_scipys(statistic: float, degrees_of_freedom: int) -> None:
    expected = chi2.sf(statistic, degrees_of_freedom)

    assert chi_squared_tail(statistic, degrees_of_freedom) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@given(
    st.lists(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=8), min_size=2, max_size=6).filter(
        lambda windows: len({value for window in windows for value in window}) > 1
    )
)
def test_change_is_kruskal_and_wallis(windows: list[list[float]]) -> None:
    tests = drift_tests(dict(enumerate(windows)))

    expected = kruskal(*windows)
    assert tests.change is not None
    assert tests.change.statistic == pytest.approx(expected.statistic, abs=1e-9)
    assert tests.change.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert tests.change.degrees_of_freedom == len(windows) - 1


def test_on_shares_they_are_the_chi_squared_tests() -> None:
    wins = [(30, 50), (35, 60), (41, 55), (48, 52)]
    windows = {number: [1.0] * won + [0.0] * (of - won) for number, (won, of) in enumerate(wins)}
    total = sum(of for _, of in wins)
    counts = np.array([[won, of - won] for won, of in wins])

    tests = drift_tests(windows)

    assert tests.change is not None
    assert tests.trend is not None
    homogeneity = chi2_contingency(counts, correction=False).statistic
    assert tests.change.statistic == pytest.approx(homogeneity * (total - 1) / total, rel=1e-9)
    trend = Table(counts, shift_zeros=False).test_ordinal_association(
        row_scores=np.arange(4), col_scores=np.array([1, 0])
    )
    # statsmodels gives Cochran and Armitage's with the variance of N - 1.
    assert tests.trend.statistic == pytest.approx(trend.zscore**2, rel=1e-9)
    assert tests.trend.p_value == pytest.approx(trend.pvalue, rel=1e-9)
    assert tests.trend_correlation is not None
    assert tests.trend_correlation > 0
    assert tests.drifts is True


def test_a_gap_in_time_counts_for_the_trend_and_order_for_its_sign() -> None:
    falling = drift_tests({0: [5.0, 4.0, 4.5], 1: [3.0], 9: [1.0, 2.0]})

    assert falling.trend_correlation is not None
    assert falling.trend_correlation < 0
    times, values = [0, 0, 0, 1, 9, 9], [6, 4, 5, 3, 1, 2]
    assert falling.trend_correlation == pytest.approx(np.corrcoef(times, values)[0, 1])


@pytest.mark.parametrize("windows", [{}, {0: [1.0, 2.0]}, {0: [1.0], 1: [1.0]}, {0: [1.0, 2.0], 1: []}])
def test_nothing_to_compare_is_no_drift(windows: dict[int, list[float]]) -> None:
    nothing = DriftTests(change=None, trend=None, trend_correlation=None)

    assert drift_tests(windows) == nothing
    assert nothing.drifts is None


def test_steady_labeling_is_said_to_drift_once_in_a_hundred() -> None:
    rng = random.Random(3)
    rounds = 2000
    alarms = sum(
        drift_tests({window: [float(rng.random() < 0.7) for _ in range(30)] for window in range(5)}).drifts
        is True
        for _ in range(rounds)
    )

    # Two tests at half the significance overlap, so at most 1 %; three standard errors are 0.7 %.
    assert 0.002 < alarms / rounds < 0.017


@pytest.mark.parametrize(
    ("sources", "decision", "expected"),
    [
        (("supervised", "reference"), {"tiers": A_WINS}, (1, 1)),
        (("reference", "supervised"), {"tiers": A_WINS}, (0, 1)),
        (("reference", "supervised"), {"tiers": TIED}, (0.5, 1)),
        (("policy", "supervised"), {"tiers": A_WINS}, (0, 0)),
        (("reference", "policy", "supervised"), {"tiers": ((2,), (1,), (0,))}, (1, 1)),
        (("reference", "policy", "supervised"), {"best_index": 1}, (0, 0)),
        (("reference", "supervised", "supervised"), {"tiers": ((2,), (0,), (1,))}, (1, 2)),
    ],
)
def test_what_the_supervised_side_won(
    make_answer: MakeAnswer, sources: tuple[str, ...], decision: dict[str, Any], expected: tuple[float, int]
) -> None:
    answer = make_answer(
        1,
        "a",
        num_candidates=len(sources),
        candidate_sources=sources,
        purpose=Purpose.DRIFT,
        **decision,
    )

    assert supervised_wins(answer) == expected


def test_only_drift_items_are_the_yardstick(make_answer: MakeAnswer) -> None:
    answer = make_answer(1, "a", tiers=A_WINS, candidate_sources=("supervised", "reference"))

    assert supervised_wins(answer) == (0, 0)


def test_windows_of_a_labeler_who_turns_sloppy(make_answer: MakeAnswer) -> None:
    """In 4 windows of 10 tasks bob and eve say A; ann takes 20 s for it in the first two, then 2 s for B."""
    answers = []
    for task in range(40):
        window, sloppy = task // 10, task >= 20
        common: dict[str, Any] = {
            "answer_us": window * 100 + task % 10,
            "purpose": Purpose.DRIFT,
            "candidate_sources": ("supervised", "reference"),
        }
        answers += [
            make_answer(
                task, "ann", tiers=B_WINS if sloppy else A_WINS, active_s=2.0 if sloppy else 20.0, **common
            ),
            make_answer(task, "bob", tiers=A_WINS, **common),
            make_answer(task, "eve", tiers=A_WINS, **common),
        ]
    shared = shared_labels(label_table(answers), researchers=())
    of_ann = [answer for answer in answers if answer.labeler_id == "ann"]

    drift = drift_of(of_ann, shared=shared, window_us=100, start_us=0)

    assert [(window.start_us, window.end_us, window.num_answers) for window in drift.windows] == [
        (0, 100, 10), (100, 200, 10), (200, 300, 10), (300, 400, 10)
    ]  # fmt: skip
    assert [window.majority_agreement.value for window in drift.windows] == [1, 1, 0, 0]
    assert [window.supervised_wins.value for window in drift.windows] == [1, 1, 0, 0]
    assert [window.median_s.value for window in drift.windows] == [20, 20, 2, 2]
    for tests in (drift.majority_agreement, drift.supervised_wins, drift.seconds):
        assert tests.drifts is True
        assert tests.trend_correlation is not None
        assert tests.trend_correlation < -0.8
    steady = [answer for answer in answers if answer.labeler_id == "bob"]
    of_bob = drift_of(steady, shared=shared, window_us=100)
    assert of_bob.supervised_wins.drifts is None  # always the same: nothing to test
    assert {window.median_s.value for window in of_bob.windows} == {None}


def test_no_answers_have_no_windows_and_a_window_has_a_length() -> None:
    assert drift_of([], shared={}).windows == ()
    with pytest.raises(ValueError, match="window of 0"):
        drift_of([], shared={}, window_us=0)
