"""Decides how often one policy beats another, with a confidence interval.

Ties are half a win on each side. The interval is Wilson's (1927) on the share of wins; with ties counted
half it is wider than needed, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often ``policy`` beats ``against`` in the eyes of ``judge``: a share in 0..1 of ``n`` documents."""

    policy: str
    against: str
    judge: str
    rate: float
    low: float  # 95 % interval
    high: float
    n: int


def wilson_interval(wins: float, n: int, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share, without continuity correction.

    ``wins`` may be half-integer (ties). Raises ValueError unless ``0 <= wins <= n`` and ``n > 0``.
    """
    if n <= 0 or not 0 <= wins <= n:
        raise ValueError(f"need 0 <= wins <= n and n > 0, got wins={wins}, n={n}")
    share = wins / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    middle = share + z * z / (2 * n)
    scale = 1 + z * z / n
    # Rounding must not carry the ends out of 0..1.
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def win_rate(
    policy_scores: Sequence[float], against_scores: Sequence[float], *, policy: str, against: str, judge: str
) -> WinRate:
    """The win rate from a judge's scores of both texts for each document, in the same order.

    Raises ValueError when the numbers of scores differ, are 0, or a score is not a number.
    """
    if len(policy_scores) != len(against_scores):
        raise ValueError(f"{len(policy_scores)} scores against {len(against_scores)}")
    if any(math.isnan(score) for score in (*policy_scores, *against_scores)):
        raise ValueError("a score is not a number")
    wins = sum(
        1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
        for ours, theirs in zip(policy_scores, against_scores, strict=True)
    )
    n = len(policy_scores)
    low, high = wilson_interval(wins, n)
    return WinRate(policy=policy, against=against, judge=judge, rate=wins / n, low=low, high=high, n=n)
