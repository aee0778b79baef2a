"""Whether the reward model's scores move as learning moves them: by little, and mostly up.

A policy that learns raises its mean score over many updates. A jump, a steady fall, or scores that all stand
at the top tell of a defect, or of a reward model that is being fooled.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, find
from services.trainer.guards.statistics.changes import PageHinkley, RobustZ

SPIKE_HISTORY = 4  # updates before the first word
DRIFT_ALLOWANCE = 1.0  # standard errors per update that the mean may fall without a word
TOP_SHARE_OF_RANGE = 0.02  # this close to the best score seen, in units of the first scores' range


class RewardSpikeGuard:
    """Whether the mean score jumped.

    Statistic: the robust z score of the mean against the updates before, in median absolute deviations, never
    in less than two standard errors of the first mean. Means of one policy stay within 4 in all but one of
    16,000 updates; learning adds a trend, which the margin up to the threshold is for.
    """

    name = GuardName.REWARD_SPIKE

    def __init__(self, threshold: float, *, window: int) -> None:
        self._threshold = threshold
        self._window = window
        self._unit: float | None = None  # of means: two standard errors of the first
        self._means = self._nothing_known()

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Compare this update's mean with the ones before."""
        mean, error = _mean_and_error(facts)
        if self._unit is None:
            self._unit = max(2 * error, 1e-6)
        self._means = self._means.after(mean / self._unit)
        if self._means.statistic is None:
            return None
        return find(
            self.name,
            abs(self._means.statistic),
            self._threshold,
            f"the mean score is {mean:.3g}, {self._means.statistic:+.1f} robust deviations from before",
        )

    def state(self) -> dict[str, Any]:
        """The last means."""
        return {"unit": self._unit, "means": asdict(self._means)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._unit = state["unit"]
        self._means = RobustZ(**state["means"])

    def acknowledge(self) -> None:
        """The new level is right."""
        self._unit, self._means = None, self._nothing_known()

    def _nothing_known(self) -> RobustZ:
        return RobustZ(window=self._window, min_history=SPIKE_HISTORY, floor=1.0)


class RewardDriftGuard:
    """Whether the mean score falls, steadily.

    Statistic: Page and Hinkley's test for a fall of the mean, in standard errors of one update's mean, with
    an allowance of one per update.
    """

    name = GuardName.REWARD_DRIFT

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._unit: float | None = None  # one standard error of the first mean
        self._fall = PageHinkley(delta=DRIFT_ALLOWANCE)

    def examine(self, facts: UpdateFacts) -> Finding:
        """Add this update's mean."""
        mean, error = _mean_and_error(facts)
        if self._unit is None:
            self._unit = max(error, 1e-6)
        self._fall = self._fall.after(-mean / self._unit)
        return find(
            self.name,
            self._fall.statistic,
            self._threshold,
            f"the mean score fell to {mean:.3g}: {self._fall.statistic:.1f} standard errors too far",
        )

    def state(self) -> dict[str, Any]:
        """How far it fell."""
        return {"unit": self._unit, "fall": asdict(self._fall)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._unit = state["unit"]
        self._fall = PageHinkley(**state["fall"])

    def acknowledge(self) -> None:
        """Begin anew at the present level."""
        self._unit, self._fall = None, PageHinkley(delta=DRIFT_ALLOWANCE)


class RewardSaturationGuard:
    """Whether scores crowd at the top, where the reward model no longer tells responses apart.

    Statistic: the share of responses within ``TOP_SHARE_OF_RANGE`` of the best score that the run has seen,
    measured by the range of the first update's scores.
    """

    name = GuardName.REWARD_SATURATION

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._range: float | None = None  # of the first scores
        self._best = -math.inf

    def examine(self, facts: UpdateFacts) -> Finding:
        """Count them."""
        scores = facts.experience.rollout.scores.double()
        if self._range is None:
            self._range = float(scores.max() - scores.min())
        self._best = max(self._best, float(scores.max()))
        share = float((scores >= self._best - TOP_SHARE_OF_RANGE * self._range).double().mean())
        return find(
            self.name, share, self._threshold, f"{share:.0%} of the responses score about {self._best:.3g}"
        )

    def state(self) -> dict[str, Any]:
        """Range and best score."""
        return {"range": self._range, "best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._range, self._best = state["range"], state["best"]

    def acknowledge(self) -> None:
        """Learn them anew."""
        self._range, self._best = None, -math.inf


def _mean_and_error(facts: UpdateFacts) -> tuple[float, float]:
    """Of the scores: their mean and its standard error."""
    scores = facts.experience.rollout.scores.double()
    return float(scores.mean()), float(scores.std(correction=0)) / math.sqrt(len(scores))
