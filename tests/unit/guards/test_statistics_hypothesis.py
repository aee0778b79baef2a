"""One-sided tests: numbers by counting, direction, level under the null, and what has no answer."""

import math
from itertools import permutations

import numpy as np
import pytest

from services.trainer.guards.statistics.hypothesis import (
    decreasing_trend_p,
    mean_below_p,
    negative_correlation_p,
    share_above_chance_p,
)


def test_share_above_chance_by_counting() -> None:
    # 8 or more heads of 10: (45 + 10 + 1) / 1024
    assert share_above_chance_p(8, 10) == pytest.approx(56 / 1024)
    # 2 or more of 3 at a chance of 1/4: 3 * (1/16) * (3/4) + 1/64
    assert share_above_chance_p(2, 3, chance=0.25) == pytest.approx(10 / 64)
    assert share_above_chance_p(0, 10) == pytest.approx(1.0)
    assert share_above_chance_p(0, 0) == 1.0


def test_trend_by_counting_all_orders() -> None:
    """Exact: the share of orders whose number of rising pairs is no larger."""
    series = [5.0, 3.0, 4.0, 1.0, 2.0]

    def rising_pairs(values: tuple[float, ...] | list[float]) -> int:
        return sum(values[j] > values[i] for i in range(len(values)) for j in range(i + 1, len(values)))

    orders = [rising_pairs(order) for order in permutations(series)]
    expected = sum(count <= rising_pairs(series) for count in orders) / math.factorial(5)
    assert decreasing_trend_p(np.array(series)) == pytest.approx(expected)


def test_mean_below_by_the_table() -> None:
    # t of (-1, -2, -3) is -2 / (1 / sqrt 3) = -sqrt 12. With 2 degrees of freedom
    # P = 1/2 + t / (2 sqrt(2 + t^2)).
    expected = 0.5 - math.sqrt(12) / (2 * math.sqrt(14))
    assert mean_below_p(np.array([-1.0, -2.0, -3.0])) == pytest.approx(expected)
    assert mean_below_p(np.array([0.0, -1.0, -2.0]), bound=1.0) == pytest.approx(expected)


def test_directions() -> None:
    rising = np.arange(12.0)
    assert decreasing_trend_p(-rising) < 1e-6 < 0.999 < decreasing_trend_p(rising)
    against, along = negative_correlation_p(rising, -(rising**3)), negative_correlation_p(rising, rising**3)
    assert against is not None
    assert along is not None
    assert against < 1e-6 < 0.999 < along
    assert mean_below_p(-1 - rising) < 1e-3 < 0.999 < mean_below_p(1 + rising)


def test_p_values_keep_their_level() -> None:
    chance = np.random.default_rng(8)
    runs = 1000
    x, y = chance.normal(size=(2, runs, 30))
    p_values = {
        "trend": [decreasing_trend_p(row[:10]) for row in x],
        "mean": [mean_below_p(row) for row in x],
        "correlation": [negative_correlation_p(a, b) for a, b in zip(x, y, strict=True)],
        "share": [share_above_chance_p(int((row > 0).sum()), 30) for row in x],
    }
    for level in (0.1, 0.02):
        rates = {
            what: sum(p is not None and p <= level for p in values) / runs
            for what, values in p_values.items()
        }
        most = level + 3 * math.sqrt(level / runs)
        assert all(level / 4 < rate <= most for rate in rates.values()), rates


def test_without_evidence_there_is_none() -> None:
    constant, rising = np.ones(10), np.arange(10.0)
    assert negative_correlation_p(constant, rising) is None
    assert negative_correlation_p(rising, constant) is None
    assert negative_correlation_p(rising[:7], -rising[:7]) is None
    assert decreasing_trend_p(constant) == 1.0
    assert decreasing_trend_p(np.array([2.0, 1.0])) == 1.0
    assert mean_below_p(-constant) == 1.0
    assert mean_below_p(np.array([-1.0])) == 1.0


def test_what_is_no_number_gives_none() -> None:
    odd = np.array([1.0, math.nan, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert math.isnan(decreasing_trend_p(odd))
    assert math.isnan(mean_below_p(odd))
    p_value = negative_correlation_p(odd, np.arange(9.0))
    assert p_value is not None
    assert math.isnan(p_value)
