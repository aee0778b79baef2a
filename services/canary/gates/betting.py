"""Decides how strong the evidence is that a mean lies above, or below, a boundary; whenever one looks.

A gambler who begins with 1 bets on each observation against the hypothesis. While it holds, no strategy can
be expected to gain, so the wealth ever reaches 1/alpha with probability at most alpha (Ville 1939), however
often one looks and whenever one stops. Here the stakes are a few fixed shares of the largest that cannot ruin
the gambler, and the wealth is their mean: some stake is near the best for whatever the mean is (Waudby-Smith
and Ramdas 2024, "Estimating means of bounded random variables by betting"). Nothing is assumed but the
bounds: not a shape, not independence, only that the hypothesis holds for each observation given those before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

# Shares of the largest stake. The smallest tells means apart that differ by about a thousandth of the range.
STAKES = tuple(0.9 / 2**halvings for halvings in range(9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bet:
    """The wealth of a gambler who bets that a mean lies on one side of a boundary.

    ``side`` "above" tests the hypothesis "the mean is ``boundary`` or less", "below" that it is that or more.
    Values lie in [``lowest``, ``highest``].
    The order of the observations does not matter.
    """

    side: Literal["above", "below"]
    boundary: float
    lowest: float
    highest: float
    log_wealths: tuple[float, ...] = (0.0,) * len(STAKES)  # by stake

    def __post_init__(self) -> None:
        if not self.lowest < self.boundary < self.highest:
            raise ValueError(f"the boundary {self.boundary} must lie within {self.lowest}..{self.highest}")
        object.__setattr__(self, "log_wealths", tuple(self.log_wealths))  # a list, when it comes from JSON

    def after(self, values: ArrayLike, *, times: int = 1) -> Self:
        """The bet after these observations, each of them made so many times.

        Values outside of the bounds raise ValueError.
        """
        seen = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if not ((seen >= self.lowest) & (seen <= self.highest)).all():  # NaN included
            raise ValueError(f"a value lies outside of {self.lowest}..{self.highest}")
        gains = seen - self.boundary if self.side == "above" else self.boundary - seen
        worst = self.boundary - self.lowest if self.side == "above" else self.highest - self.boundary
        raised = times * np.log1p(np.outer(STAKES, gains / worst)).sum(axis=1)
        return replace(self, log_wealths=tuple((np.array(self.log_wealths) + raised).tolist()))

    @property
    def log_evidence(self) -> float:
        """The natural logarithm of the wealth; 0 at the start."""
        return float(np.logaddexp.reduce(self.log_wealths)) - math.log(len(self.log_wealths))

    def rejects(self, alpha: float) -> bool:
        """Whether the wealth stands at 1/alpha or more. Whoever asks again and again remembers a yes."""
        return self.log_evidence >= -math.log(alpha)
