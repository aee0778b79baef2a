"""Decides whether labeling changes over time: agreement, the known yardstick, and speed by windows.

The yardstick is the supervised sample against the reference on items made for this (Stiennon et al. 2020):
both texts come from fixed sources, so the share that one wins should not move. Each series is tested in two
ways on the ranks of its values: for any change between windows (Kruskal and Wallis 1952) and for a trend
(Mantel 1963, linear in the window's number). On values of 0 and 1 these are the chi-squared tests of
homogeneity and of trend, times (N - 1) / N.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.labeling.quality.agreement import SharedLabels
from services.labeling.quality.intervals import Estimate, median_of_values, share_of_clusters
from services.labeling.quality.rankings import FIRST, TIE, candidate_pairs
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality.units import labels_of

WEEK_US = 7 * 24 * 3600 * 1_000_000
SIGNIFICANCE = 0.01
"""One steady series in a hundred is said to drift; many labelers are looked at, each with several series."""

SUPERVISED = "supervised"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTest:
    """A test against "nothing changes"."""

    statistic: float  # chi-squared distributed when nothing changes
    degrees_of_freedom: int
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTests:
    """What one series of windows shows; both tests None without two windows or without any difference."""

    change: DriftTest | None  # between any windows
    trend: DriftTest | None  # up or down with time
    trend_correlation: float | None  # -1..1, of rank and time; above 0 the values rise

    @property
    def drifts(self) -> bool | None:
        """Whether one of the two tests, each at half the significance, says so; None when untested."""
        if self.change is None or self.trend is None:
            return None
        return min(self.change.p_value, self.trend.p_value) < SIGNIFICANCE / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftWindow:
    """The answers from ``start_us`` until before ``end_us``. Intervals take tasks as independent."""

    start_us: int
    end_us: int
    num_answers: int
    majority_agreement: Estimate  # share of labels that are those of the majority of the others
    supervised_wins: Estimate  # share of supervised-against-reference pairs, a tie one half; on drift items
    median_s: Estimate  # active seconds an item


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The windows that hold answers, by time, and what each series shows."""

    windows: tuple[DriftWindow, ...]
    majority_agreement: DriftTests
    supervised_wins: DriftTests
    seconds: DriftTests


def drift_of(
    answers: Iterable[JudgedAnswer],
    *,
    shared: Mapping[int, Mapping[str, SharedLabels]],
    window_us: int = WEEK_US,
    start_us: int | None = None,
) -> Drift:
    """Windows of ``window_us`` from ``start_us`` (the first answer when None) and their tests.

    ``shared`` is what :func:`~services.labeling.quality.agreement.shared_labels` gave for the same data; the
    majority is that of all time. Of the share series, the tests see one mean for each task in a window, so
    that answers to one task are not taken for independent; for time they see answers, which a labeler who
    joins also moves: look at labelers too. Raises ValueError for a window that is not positive.
    """
    if window_us <= 0:
        raise ValueError(f"a window of {window_us} microseconds")
    kept = sorted(answers, key=lambda answer: (answer.answer_us, answer.comparison_id))
    origin_us = start_us if start_us is not None else kept[0].answer_us if kept else 0
    by_window: defaultdict[int, list[JudgedAnswer]] = defaultdict(list)
    for answer in kept:
        by_window[(answer.answer_us - origin_us) // window_us].append(answer)
    majority: dict[int, list[tuple[float, int]]] = {}
    supervised: dict[int, list[tuple[float, int]]] = {}
    seconds: dict[int, list[float]] = {}
    windows = []
    for number, own in by_window.items():
        majority[number] = _by_task(own, lambda answer: _majority(answer, shared))
        supervised[number] = _by_task(own, supervised_wins)
        seconds[number] = [answer.active_s for answer in own if answer.active_s is not None]
        windows.append(
            DriftWindow(
                start_us=origin_us + number * window_us,
                end_us=origin_us + (number + 1) * window_us,
                num_answers=len(own),
                majority_agreement=share_of_clusters(majority[number]),
                supervised_wins=share_of_clusters(supervised[number]),
                median_s=median_of_values(seconds[number]),
            )
        )
    return Drift(
        windows=tuple(windows),
        majority_agreement=drift_tests(_means(majority)),
        supervised_wins=drift_tests(_means(supervised)),
        seconds=drift_tests(seconds),
    )


def supervised_wins(answer: JudgedAnswer) -> tuple[float, int]:
    """How many supervised-against-reference pairs of a drift item the supervised side won, and of how many.

    A tie is half a win; a pair that the answer says nothing about does not count.
    """
    if answer.purpose is not Purpose.DRIFT:
        return 0.0, 0
    wins, number = 0.0, 0
    for (i, j), label in zip(candidate_pairs(answer.num_candidates), labels_of(answer), strict=True):
        sources = (answer.candidate_sources[i], answer.candidate_sources[j])
        if label is None or sources not in ((SUPERVISED, REFERENCE), (REFERENCE, SUPERVISED)):
            continue
        number += 1
        wins += 0.5 if label == TIE else float((label == FIRST) == (sources[0] == SUPERVISED))
    return wins, number


def drift_tests(values_by_window: Mapping[int, Sequence[float]]) -> DriftTests:
    """Both tests on independent values, by the window's number, which is its time."""
    kept = {window: values for window, values in sorted(values_by_window.items()) if values}
    num_values = sum(len(values) for values in kept.values())
    ranks = _ranks([value for values in kept.values() for value in values])
    mean = (num_values + 1) / 2
    spread = math.fsum((rank - mean) ** 2 for rank in ranks)
    if len(kept) < 2 or spread == 0:
        return DriftTests(change=None, trend=None, trend_correlation=None)
    mean_time = sum(window * len(values) for window, values in kept.items()) / num_values
    between = product = time_spread = 0.0
    first = 0
    for window, values in kept.items():
        excess = math.fsum(ranks[first : first + len(values)]) - mean * len(values)
        first += len(values)
        between += excess * excess / len(values)
        product += excess * (window - mean_time)
        time_spread += len(values) * (window - mean_time) ** 2
    correlation = product / math.sqrt(spread * time_spread)
    return DriftTests(
        change=_test((num_values - 1) * between / spread, len(kept) - 1),
        trend=_test((num_values - 1) * correlation**2, 1),
        trend_correlation=max(-1.0, min(1.0, correlation)),
    )


def chi_squared_tail(statistic: float, degrees_of_freedom: int) -> float:
    """The chance that a chi-squared variable is at least ``statistic``: the finite sums for whole degrees."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    if degrees_of_freedom % 2:
        tail, power, first = math.erfc(math.sqrt(half)), 0.5, 1.5
    else:
        tail, power, first = 0.0, 0.0, 1.0
    # Each term is half^power e^-half / gamma(power + 1), in logarithms for large degrees.
    for step in range(degrees_of_freedom // 2):
        tail += math.exp((power + step) * math.log(half) - half - math.lgamma(first + step))
    return min(1.0, tail)


def _test(statistic: float, degrees_of_freedom: int) -> DriftTest:
    return DriftTest(
        statistic=statistic,
        degrees_of_freedom=degrees_of_freedom,
        p_value=chi_squared_tail(statistic, degrees_of_freedom),
    )


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        start = end
    return ranks


def _majority(answer: JudgedAnswer, shared: Mapping[int, Mapping[str, SharedLabels]]) -> tuple[float, int]:
    labels = shared.get(answer.task_id, {}).get(answer.labeler_id)
    if labels is None or answer.round:
        return 0.0, 0
    return labels.same_as_majority, labels.with_majority


def _by_task(
    answers: Iterable[JudgedAnswer], count: Callable[[JudgedAnswer], tuple[float, int]]
) -> list[tuple[float, int]]:
    clusters: dict[int, tuple[float, int]] = {}
    for answer in answers:
        total, number = count(answer)
        if number:
            known_total, known_number = clusters.get(answer.task_id, (0.0, 0))
            clusters[answer.task_id] = (known_total + total, known_number + number)
    return list(clusters.values())


def _means(clusters_by_window: Mapping[int, Sequence[tuple[float, int]]]) -> dict[int, list[float]]:
    return {
        window: [total / number for total, number in clusters]
        for window, clusters in clusters_by_window.items()
    }
