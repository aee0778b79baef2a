"""One-sided tests, as p values: small where chance alone hardly explains what is seen.

Thin names over scipy.stats, with a stated answer where a test has none: 1.0, or None for a correlation, which
says that the numbers carry no evidence. A number that is none makes the p value none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST_FOR_A_TREND = 3
FEWEST_FOR_A_CORRELATION = 8  # below, the t approximation of its p value is coarse


def share_above_chance_p(successes: int, trials: int, *, chance: float = 0.5) -> float:
    """Exact binomial test of "successes come no more often than ``chance``"; 1.0 without a trial."""
    if trials == 0:
        return 1.0
    return float(stats.binomtest(successes, trials, chance, alternative="greater").pvalue)


def mean_below_p(values: NDArray[np.float64], *, bound: float = 0.0) -> float:
    """t test of "the mean is ``bound`` or more" ([N] values).

    Fewer than two values, or values without any spread, are no sample: 1.0.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return 1.0
    return float(stats.ttest_1samp(values, bound, alternative="less").pvalue)


def negative_correlation_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Spearman's test of "y does not fall where x rises" ([N] both).

    None for fewer than ``FEWEST_FOR_A_CORRELATION`` values and where x or y is constant.
    """
    if len(x) < FEWEST_FOR_A_CORRELATION or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y, alternative="less").pvalue)


def decreasing_trend_p(values: NDArray[np.float64]) -> float:
    """Mann-Kendall test of "the series ([N], in order of time) does not fall".

    That is Kendall's rank correlation with time, exact for short series without ties. It takes the numbers of
    the series for independent. 1.0 for fewer than ``FEWEST_FOR_A_TREND`` numbers and for a constant series.
    """
    if len(values) < FEWEST_FOR_A_TREND or np.ptp(values) == 0:
        return 1.0
    p_value = float(stats.kendalltau(np.arange(len(values)), values, alternative="less").pvalue)
    return p_value if np.isfinite(values).all() else math.nan
