"""Decides, for one thing that may get worse, whether the canary was shown to be good enough, or not to be.

A gate watches the mean of a value that is the larger, the better, and has one boundary. Two bets are held on
it: that the mean lies above the boundary, and that it lies below. The first won is a *pass* for as long as it
stands: a version that was good at first and became worse has to pass again. The second won is a *failure*,
and stays one. ``better`` is a third bet, for gates that can tell a better version: that the mean lies above
the value that an equal version has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np

from services.canary.gates.betting import Bet

LEAST_RATE = 1e-9  # what is smaller nobody could measure, nor divide for ever


class Verdict(StrEnum):
    """What a gate says."""

    NO_DATA = "no data"  # too little was seen, which is never good news
    OPEN = "open"  # seen, and not decided
    PASSED = "passed"  # shown to lie above the boundary
    FAILED = "failed"  # shown to lie below


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """What is watched, and where its boundary lies."""

    name: str
    boundary: float  # of the mean; an equal version has to lie above
    lowest: float  # values are clipped to these: the mean is that of the clipped ones
    highest: float
    equal: float | None = None  # the mean of an equal version, for gates that can tell a better one
    least: int = 30  # observations below which it has NO_DATA

    def __post_init__(self) -> None:
        if not self.lowest < self.boundary < self.highest:
            raise ValueError(f"gate {self.name}: {self.boundary} is not within {self.lowest}..{self.highest}")
        if self.equal is not None and not self.boundary < self.equal < self.highest:
            raise ValueError(f"gate {self.name}: an equal version at {self.equal} could not pass")
        if self.least < 1:
            raise ValueError(f"gate {self.name}: least is {self.least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """How often a rollout may err."""

    promotion: float = 0.05
    """Promoting a version of which any gate's mean lies at its boundary or below. Every gate has to pass, so
    each is tested at this rate and the whole keeps it (an intersection-union test).
    """
    rollback: float = 0.05
    """Rolling back, by a gate's failure, a version whose means all lie at the boundaries or above. Divided
    among the gates.
    """

    def __post_init__(self) -> None:
        for name in ("promotion", "rollback"):
            if not LEAST_RATE <= getattr(self, name) < 1:
                raise ValueError(f"the error rate of a {name} must lie within {LEAST_RATE:g}..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What one gate has seen."""

    rule: GateRule
    above: Bet
    below: Bet
    better: Bet | None
    count: int = 0
    total: float = 0.0  # of the clipped values
    passed: bool = False  # by the last look: what was good may have become worse
    failed: bool = False  # stays
    is_better: bool = False

    @classmethod
    def of(cls, rule: GateRule) -> Self:
        """A gate that has seen nothing."""

        def bet(side: Literal["above", "below"], boundary: float) -> Bet:
            return Bet(side=side, boundary=boundary, lowest=rule.lowest, highest=rule.highest)

        return cls(
            rule=rule,
            above=bet("above", rule.boundary),
            below=bet("below", rule.boundary),
            better=None if rule.equal is None else bet("above", rule.equal),
        )

    def after(self, values: Sequence[float], *, times: int = 1, rates: ErrorRates, num_gates: int) -> Self:
        """The gate that has seen these values too, each so many times, and looks at its bets then.

        A value that is not finite is one of the worst.
        """
        if not len(values) or times < 1:
            return self
        rule, given = self.rule, np.asarray(values, dtype=np.float64)
        seen = np.where(np.isfinite(given), given, rule.lowest).clip(rule.lowest, rule.highest)
        above, below = self.above.after(seen, times=times), self.below.after(seen, times=times)
        better = None if self.better is None else self.better.after(seen, times=times)
        return replace(
            self,
            above=above,
            below=below,
            better=better,
            count=self.count + times * len(seen),
            total=self.total + times * float(seen.sum()),
            passed=above.rejects(rates.promotion),
            failed=self.failed or below.rejects(rates.rollback / num_gates),
            is_better=better is not None and better.rejects(rates.promotion),
        )

    @property
    def verdict(self) -> Verdict:
        """A failure outweighs everything else."""
        if self.failed:
            return Verdict.FAILED
        if self.count < self.rule.least:
            return Verdict.NO_DATA
        return Verdict.PASSED if self.passed else Verdict.OPEN

    @property
    def mean(self) -> float | None:
        """Of the clipped values; None before the first."""
        return self.total / self.count if self.count else None

    def numbers(self) -> dict[str, float]:
        """For the record of a decision."""
        mean = {} if self.mean is None else {"mean": self.mean}
        better = {} if self.better is None else {"log_evidence_better": self.better.log_evidence}
        return {
            **mean,
            "count": float(self.count),
            "boundary": self.rule.boundary,
            "log_evidence_above": self.above.log_evidence,
            "log_evidence_below": self.below.log_evidence,
            **better,
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` gave, through JSON."""
        better = values["better"]
        return cls(
            **{
                **values,
                "rule": GateRule(**values["rule"]),
                "above": Bet(**values["above"]),
                "below": Bet(**values["below"]),
                "better": None if better is None else Bet(**better),
            }
        )
