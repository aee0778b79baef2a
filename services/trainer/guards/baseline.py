"""Witnesses that compare a property of the responses with what it was when the run began.

Each learns the mean of its first updates and then says how far the property has moved. These are limits on
what a policy may turn into, not statistical tests: responses of one update are many, so chance moves their
means little. Which property, and how far is too far, stands in the table below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from andon.evaluation.repetition import REPEATED_GRAM, repeated_share
from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, find


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """What is watched."""

    guard: GuardName
    what: str  # in words, with its unit
    measure: Callable[[UpdateFacts], float]
    distance: Callable[[float, float], float]  # (now, at the beginning) -> statistic


def _ratio_either_way(now: float, beginning: float) -> float:
    return max(now / beginning, beginning / now) if now > 0 and beginning > 0 else math.inf


def _ratio_of_loss(now: float, beginning: float) -> float:
    return beginning / now if now > 0 else math.inf


def _gain(now: float, beginning: float) -> float:
    return now - beginning


def _score_deviation(facts: UpdateFacts) -> float:
    return float(facts.experience.rollout.scores.double().std(correction=0))


def _mean_length(facts: UpdateFacts) -> float:
    return float(facts.experience.rollout.responses.lengths.double().mean())


def _entropy(facts: UpdateFacts) -> float:
    reading = facts.reading
    mask = facts.experience.rollout.responses.mask[reading.rows]
    return float(reading.entropies_before[mask].double().mean())


def _improper_share(facts: UpdateFacts) -> float:
    return float((~facts.experience.rollout.responses.ended_properly).double().mean())


def _repetition(facts: UpdateFacts) -> float:
    groups = facts.experience.rollout.responses.groups
    shares = [repeated_share(response) for group in groups for response in group.responses]
    return math.fsum(shares) / len(shares)


PROPERTIES = (
    Property(
        guard=GuardName.REWARD_VARIANCE,
        what="the standard deviation of the scores",
        measure=_score_deviation,
        distance=_ratio_either_way,
    ),
    Property(
        guard=GuardName.LENGTH_DRIFT,
        what="the mean length in tokens",
        measure=_mean_length,
        distance=_ratio_either_way,
    ),
    Property(
        guard=GuardName.REPETITION,
        what=f"the share of repeated {REPEATED_GRAM}-grams",
        measure=_repetition,
        distance=_gain,
    ),
    Property(
        guard=GuardName.ENTROPY_COLLAPSE,
        what="the entropy in nats per token",
        measure=_entropy,
        distance=_ratio_of_loss,
    ),
    Property(
        guard=GuardName.INVALID_ENDINGS,
        what="the share of responses without a proper end",
        measure=_improper_share,
        distance=_gain,
    ),
)


class BaselineGuard:
    """Watches one property."""

    def __init__(self, watched: Property, threshold: float, *, baseline_updates: int) -> None:
        self.name = watched.guard
        self._watched = watched
        self._threshold = threshold
        self._baseline_updates = baseline_updates
        self._beginning: list[float] = []

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Learn the beginning, then compare with it."""
        now = self._watched.measure(facts)
        if len(self._beginning) < self._baseline_updates:
            self._beginning.append(now)
            return None
        beginning = math.fsum(self._beginning) / len(self._beginning)
        return find(
            self.name,
            self._watched.distance(now, beginning),
            self._threshold,
            f"{self._watched.what} went from {beginning:.3g} to {now:.3g}",
        )

    def state(self) -> dict[str, Any]:
        """What it learned."""
        return {"beginning": list(self._beginning)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._beginning = list(state["beginning"])

    def acknowledge(self) -> None:
        """What is now is right: learn it anew."""
        self._beginning = []
