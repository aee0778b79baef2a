"""Tests that may be looked at after every observation.

A p value that is looked at again and again passes any limit in the end by chance. The two tests here keep
their error rates however often one looks and whenever one stops. Each is a value: ``after`` takes the next
observation and gives the test that has seen it, ``dataclasses.asdict`` gives what a checkpoint needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from scipy import special


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprt:
    """Wald's sequential probability ratio test of a share: p0 against p1 (Wald 1945).

    Decides for p1 when the log-likelihood ratio reaches ln((1 - beta) / alpha), for p0 when it reaches
    ln(beta / (1 - alpha)). Wald's bounds: a false decision for p1 has probability at most alpha / (1 - beta),
    one for p0 at most beta / (1 - alpha), each about alpha and beta. It needs the fewest observations of all
    tests when the share really is p0 or p1. After a decision it changes no more.
    """

    p0: float
    p1: float
    alpha: float = 0.05  # false decisions for p1
    beta: float = 0.1  # false decisions for p0
    log_likelihood_ratio: float = 0.0  # of p1 to p0

    def __post_init__(self) -> None:
        if not (0 < self.p0 < 1 and 0 < self.p1 < 1 and self.p0 != self.p1):
            raise ValueError(f"p0 and p1 must be two different shares within 0..1: {self.p0}, {self.p1}")
        if not (0 < self.alpha < 1 and 0 < self.beta < 1 and self.alpha + self.beta < 1):
            raise ValueError(f"alpha and beta must be positive, together below 1: {self.alpha}, {self.beta}")

    @property
    def statistic(self) -> float:
        """The log-likelihood ratio; ``upper`` is its threshold."""
        return self.log_likelihood_ratio

    @property
    def upper(self) -> float:
        """Where it decides for p1."""
        return math.log((1 - self.beta) / self.alpha)

    @property
    def lower(self) -> float:
        """Where it decides for p0."""
        return math.log(self.beta / (1 - self.alpha))

    @property
    def decision(self) -> Literal["p0", "p1"] | None:
        """None: go on."""
        if self.log_likelihood_ratio >= self.upper:
            return "p1"
        return "p0" if self.log_likelihood_ratio <= self.lower else None

    def after(self, success: bool) -> Self:
        """The test that has seen one more observation."""
        if self.decision is not None:
            return self
        ratio = self.p1 / self.p0 if success else (1 - self.p1) / (1 - self.p0)
        return replace(self, log_likelihood_ratio=self.log_likelihood_ratio + math.log(ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class BernoulliEProcess:
    """The evidence against "successes have probability ``p0`` or more", as an e-value.

    The likelihood ratio of a share q below p0 to p0 itself, averaged over all such q with equal weights:

        e = 1/p0 * integral from 0 to p0 of (q/p0)^successes * ((1-q)/(1-p0))^failures dq

    While the next observation, whatever came before, succeeds with probability p0 or more, e is a
    nonnegative supermartingale that begins at 1. By Ville's inequality it ever reaches 1/alpha with
    probability at most alpha (Ville 1939), however long one goes on and however often one looks. So a
    threshold of 1000 is a false alarm in at most one of a thousand runs. The mixture grows for every share
    below p0, at a rate near that of the best q (Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic
    statistics and safe anytime-valid inference"; Waudby-Smith and Ramdas 2024, "Estimating means of bounded
    random variables by betting").
    """

    p0: float = 0.5
    successes: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.p0 < 1:
            raise ValueError(f"p0 must be within 0..1, is {self.p0}")

    @property
    def log_e_value(self) -> float:
        """ln e; minus infinity where e is too small for a number."""
        a, b = self.successes + 1.0, self.failures + 1.0
        share_of_beta = float(special.betainc(a, b, self.p0))
        if share_of_beta == 0.0:
            return -math.inf
        return (
            float(special.betaln(a, b))
            + math.log(share_of_beta)
            - a * math.log(self.p0)
            - self.failures * math.log1p(-self.p0)
        )

    @property
    def statistic(self) -> float:
        """The e-value: 1 without evidence, above 1 against ``p0``; infinite where too large for a number."""
        log_e_value = self.log_e_value
        return math.exp(log_e_value) if log_e_value < 700 else math.inf

    def after(self, success: bool) -> Self:
        """The evidence with one more observation."""
        if success:
            return replace(self, successes=self.successes + 1)
        return replace(self, failures=self.failures + 1)
