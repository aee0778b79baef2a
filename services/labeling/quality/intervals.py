"""Decides how sure a figure is: 95 % intervals for shares, means, medians and chance-corrected agreement.

Answers to one task resemble each other, so tasks, not answers, are taken as independent. All intervals are
analytic: no random numbers, one pass over the data, the same result every time. They speak about new tasks
answered by the same people. Where the variance between tasks is estimated, it is the linearised
(infinitesimal jackknife) one, and its few degrees of freedom are paid for with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
_EXACT_MEDIAN_UNITS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; None where there is too little data to say."""

    value: float | None
    low: float | None
    high: float | None
    num_units: int  # on how many units it stands; the function that made it says what a unit is


def no_estimate(num_units: int = 0) -> Estimate:
    """What stands where a figure is undefined."""
    return Estimate(value=None, low=None, high=None, num_units=num_units)


def wilson_interval(share: float, num_units: float, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share, without continuity correction.

    ``num_units`` may be an effective size and need not be whole. Raises ValueError unless ``0 <= share <= 1``
    and ``num_units > 0``.
    """
    if num_units <= 0 or not 0 <= share <= 1:
        raise ValueError(f"need a share in 0..1 and units, got {share} of {num_units}")
    spread = z * math.sqrt(share * (1 - share) / num_units + z * z / (4 * num_units * num_units))
    middle = share + z * z / (2 * num_units)
    scale = 1 + z * z / num_units
    # Rounding must carry the ends neither out of 0..1 nor past the share.
    return max(0.0, min(share, (middle - spread) / scale)), min(1.0, max(share, (middle + spread) / scale))


def student_t_975(degrees_of_freedom: int) -> float:
    """The 97.5 % point of Student's t; from 3 degrees on by the Cornish-Fisher expansion, right to 0.2 %."""
    if degrees_of_freedom < 1:
        raise ValueError("at least one degree of freedom")
    if degrees_of_freedom <= 2:
        return (12.706204736432095, 4.302652729911275)[degrees_of_freedom - 1]
    z = Z_95
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees_of_freedom**power for power, term in enumerate(terms))


def share_of_clusters(clusters: Iterable[tuple[float, int]]) -> Estimate:
    """A share pooled over tasks; per task the sum of its values (each in 0..1) and their number.

    Wilson's interval at the effective number of units: the number of units divided by the design effect (the
    variance between tasks over that of independent units), at most the number of units, and reduced for the
    degrees of freedom (Korn and Graubard 1998; Dean and Pagano 2015). With one unit in each task this is
    plain Wilson. Where no variance can be seen, all values being the same, there are as many units as tasks.
    """
    kept = [(total, number) for total, number in clusters if number]
    num_units = sum(number for _, number in kept)
    if not kept:
        return no_estimate()
    share = min(1.0, max(0.0, math.fsum(total for total, _ in kept) / num_units))
    effective = float(num_units)
    if len(kept) < num_units:
        residuals = [total - share * number for total, number in kept]
        variance = _variance_of_sum(residuals) / num_units**2
        effective = _effective_units(share * (1 - share), variance, num_clusters=len(kept))
        effective = min(effective, float(num_units))
    low, high = wilson_interval(share, effective)
    return Estimate(value=share, low=low, high=high, num_units=num_units)


def share_of_values(values: Sequence[float]) -> Estimate:
    """A share over independent values in 0..1, with plain Wilson's interval; one half is a tie."""
    return share_of_clusters((value, 1) for value in values)


def mean_of_clusters(clusters: Iterable[tuple[float, int]], *, lowest: float, highest: float) -> Estimate:
    """A mean pooled over tasks of values in ``lowest..highest``; per task their sum and number.

    Student's t interval, cut at the range. Where no variance can be seen the range is taken as 0..1 and
    Wilson's interval with as many units as tasks stands in.
    """
    kept = [(total, number) for total, number in clusters if number]
    num_units = sum(number for _, number in kept)
    if not kept:
        return no_estimate()
    mean = min(highest, max(lowest, math.fsum(total for total, _ in kept) / num_units))
    residuals = [total - mean * number for total, number in kept]
    variance = _variance_of_sum(residuals) / num_units**2
    if variance > 1e-18:
        spread = student_t_975(len(kept) - 1) * math.sqrt(variance)
        low, high = max(lowest, mean - spread), min(highest, mean + spread)
    else:
        width = highest - lowest
        low, high = (
            lowest + width * end for end in wilson_interval((mean - lowest) / width, float(len(kept)))
        )
    return Estimate(value=mean, low=low, high=high, num_units=num_units)


def chance_corrected(
    *, observed: float, expected: float, influences: Sequence[float], num_units: int
) -> Estimate:
    """Agreement beyond chance, ``(observed - expected) / (1 - expected)``, with its interval.

    ``influences`` holds, per task, how much that task moves the figure (its derivative by the task's weight,
    summed over the task's units; they sum to 0). Their variance says how many independent units the observed
    agreement is worth; Wilson's interval at that size, at the expected agreement found, gives the ends. So
    the interval never leaves the possible range and does not collapse when everybody agrees. None when
    nothing but agreement was possible (``expected`` is 1).
    """
    if num_units == 0 or not influences or 1 - expected < 1e-12:
        return no_estimate(num_units)
    observed = min(1.0, max(0.0, observed))
    # Variance of the observed agreement that explains the variance of the figure.
    variance = _variance_of_sum(influences) * (1 - expected) ** 2
    effective = _effective_units(observed * (1 - observed), variance, num_clusters=len(influences))
    value, low, high = (
        max(-1.0, min(1.0, (end - expected) / (1 - expected)))
        for end in (observed, *wilson_interval(observed, effective))
    )
    return Estimate(value=value, low=low, high=high, num_units=num_units)


def median_of_values(values: Sequence[float]) -> Estimate:
    """The median with the interval between order statistics, which assumes no distribution.

    No interval below 6 values: none of 95 % exists. Values are taken as independent.
    """
    if not values:
        return no_estimate()
    ordered = sorted(values)
    value = quantile(ordered, 0.5)
    rank = _median_rank(len(ordered))
    if rank == 0:
        return Estimate(value=value, low=None, high=None, num_units=len(ordered))
    return Estimate(value=value, low=ordered[rank - 1], high=ordered[-rank], num_units=len(ordered))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, linear between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _median_rank(num_units: int) -> int:
    """The largest rank r with at least 95 % between the r-th value from below and from above; 0 if none."""
    if num_units > _EXACT_MEDIAN_UNITS:
        return math.floor(num_units / 2 - Z_95 * math.sqrt(num_units) / 2)
    below = 0
    for rank in range(num_units // 2 + 1):
        below += math.comb(num_units, rank)  # 2^n times the chance that at most `rank` values lie below
        if 40 * below > 2**num_units:
            return rank
    return num_units // 2


def _variance_of_sum(residuals: Sequence[float]) -> float:
    """The variance of a sum over independent tasks, from what each adds to a total of 0."""
    if len(residuals) < 2:
        return 0.0
    return len(residuals) / (len(residuals) - 1) * math.fsum(residual * residual for residual in residuals)


def _effective_units(unit_variance: float, variance: float, *, num_clusters: int) -> float:
    """How many independent units give a mean of this variance, less the price of estimating it."""
    if num_clusters < 2 or unit_variance < 1e-12 or variance < 1e-18:
        return float(num_clusters)
    return unit_variance / variance * (Z_95 / student_t_975(num_clusters - 1)) ** 2
