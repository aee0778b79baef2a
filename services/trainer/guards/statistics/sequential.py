"""Tests that may be looked at after every observation.

A p value that is looked at again and again passes any limit in the end by chance. The tests here keep
their error rates however often one looks and whenever one stops. Each is a value: ``after`` takes the next
observation and gives the test that has seen it, ``dataclasses.asdict`` gives what a checkpoint needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
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
    def statistic(self) -> float:
        """The e-value: 1 without evidence, above 1 against ``p0``; infinite where too large for a number."""
        return float(_e_values(np.array([self.successes]), np.array([self.failures]), self.p0)[0])

    def after(self, success: bool) -> Self:
        """The evidence with one more observation."""
        if success:
            return replace(self, successes=self.successes + 1)
        return replace(self, failures=self.failures + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartingEProcess:
    """The evidence that successes have *become* rarer than ``p0``, as an e-value.

    A long time in which all was well would outweigh what comes after it. So the evidence is weighed from many
    beginnings: the first observation, and every ``interval``-th after it. e is the sum of the e-values of
    ``BernoulliEProcess`` since each beginning, times 1/2, 1/6, 1/12, ...: 1/((k+1)(k+2)) for the k-th, and a
    beginning still to come counts 1. A weighted mean of supermartingales that begin at 1 is one too, so the
    bound of Ville's inequality holds for the whole run, changes or not. A change after n observations takes
    evidence that is stronger by about (n / interval)^2; that of the first beginning is halved. (Shin, Ramdas
    and Rinaldo 2024, "E-detectors", weigh all beginnings alike and bound the time between false alarms.)
    """

    p0: float = 0.5
    interval: int = 20
    successes: int = 0
    failures: int = 0
    successes_before: tuple[int, ...] = (0,)  # by beginning
    failures_before: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not 0 < self.p0 < 1 or self.interval < 1:
            raise ValueError(f"p0 must be within 0..1 and interval positive: {self.p0}, {self.interval}")
        for name in ("successes_before", "failures_before"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, when it comes from JSON

    @property
    def statistic(self) -> float:
        """The e-value: 1 without evidence, above 1 against ``p0``; infinite where too large for a number."""
        number = np.arange(len(self.successes_before))
        since = _e_values(
            self.successes - np.array(self.successes_before),
            self.failures - np.array(self.failures_before),
            self.p0,
        )
        still_to_come = 1 / (len(number) + 1)
        return float((since / ((number + 1) * (number + 2))).sum()) + still_to_come

    def after(self, success: bool) -> Self:
        """The evidence with one more observation."""
        seen = replace(
            self,
            successes=self.successes + (1 if success else 0),
            failures=self.failures + (0 if success else 1),
        )
        if (seen.successes + seen.failures) % self.interval != 0:
            return seen
        return replace(
            seen,
            successes_before=(*self.successes_before, seen.successes),
            failures_before=(*self.failures_before, seen.failures),
        )


def _e_values(successes: NDArray[np.int64], failures: NDArray[np.int64], p0: float) -> NDArray[np.float64]:
    """The integral of ``BernoulliEProcess``, by the incomplete beta function; 0 where it underflows."""
    a, b = successes + 1.0, failures + 1.0
    with np.errstate(divide="ignore", over="ignore"):
        log_share = np.log(special.betainc(a, b, p0))
        logs = special.betaln(a, b) + log_share - a * math.log(p0) - failures * math.log1p(-p0)
        values: NDArray[np.float64] = np.exp(logs)
    return values
