"""Whether the numbers of an update are numbers, and of a size that training gives."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from services.trainer.guards.guard import Finding, GuardName, Memoryless, UpdateFacts, find

LARGEST_RATIO = 1e9  # of new to old probability of a token; one rare token of thousands may well reach 1e5
GRADIENT_TIMES_THE_USUAL = 100.0
LOWEST_EXPLAINED_VARIANCE = -100.0  # of a value function that does not know the rewards' scale


class NumbersGuard:
    """NaN and infinity anywhere; gradient norm, probability ratio and explained variance out of all bounds.

    Statistic: the largest of the three in units of its limit, infinite for what is no number. The limits are
    far outside of what healthy runs show; they are limits, not tests, and have no rate of false alarms.
    """

    name = GuardName.NUMBERS

    def __init__(self, threshold: float, *, window: int) -> None:
        self._threshold = threshold
        self._gradient_norms: deque[float] = deque(maxlen=window)

    def examine(self, facts: UpdateFacts) -> Finding:
        """Look at this update's numbers."""
        metrics = facts.metrics
        odd = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if not facts.weights_finite:
            odd.append("the weights")
        if odd:
            return find(self.name, math.inf, self._threshold, f"not finite: {', '.join(odd)}")
        gradient = metrics.get("policy_grad_norm", 0.0)
        usual = float(np.median(self._gradient_norms)) if len(self._gradient_norms) >= 3 else math.inf
        sizes = {
            "the probability ratio": max(
                metrics.get("ratio_max", 1.0),
                1 / max(metrics.get("ratio_min", 1.0), 1e-12),
                metrics.get("behaviour_weight_max", 1.0),
            )
            / LARGEST_RATIO,
            "the policy's gradient norm": gradient / (GRADIENT_TIMES_THE_USUAL * usual) if usual > 0 else 0.0,
            "the explained variance": metrics.get("explained_variance", 0.0) / LOWEST_EXPLAINED_VARIANCE,
        }
        self._gradient_norms.append(gradient)
        worst = max(sizes, key=lambda what: sizes[what])
        return find(self.name, sizes[worst], self._threshold, f"{worst} is {sizes[worst]:.3g} of its limit")

    def state(self) -> dict[str, Any]:
        """The usual gradient norms."""
        return {"gradient_norms": list(self._gradient_norms)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._gradient_norms.clear()
        self._gradient_norms.extend(state["gradient_norms"])

    def acknowledge(self) -> None:
        """Begin to learn anew what is usual."""
        self._gradient_norms.clear()


class StepSizeGuard(Memoryless):
    """Whether the weights that are about to be published say about the same of the samples as the old ones.

    Statistic: half the mean squared change of a token's log-probability, about the KL of the step in nats per
    token; healthy updates stand near 0.01. It reads the weights in memory, so it also sees weights that were
    damaged after the last step. A limit, not a test.
    """

    name = GuardName.STEP_SIZE

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding:
        """Measure on the slice."""
        reading = facts.reading
        mask = facts.experience.rollout.responses.mask[reading.rows]
        change = (reading.logprobs_after - reading.logprobs_before)[mask].double()
        size = 0.5 * float(change.square().mean())
        return find(
            self.name, size, self._threshold, f"the update moved the policy by {size:.3g} nats per token"
        )


class ProbeGuard(Memoryless):
    """Whether the frozen models still answer as they did at the start of the run.

    The same few texts go to reference and reward service at every update. Statistic: the largest difference
    of a log-probability (nats) or score. One kernel gives one answer, so the tolerance is for a replica on
    other hardware.
    """

    name = GuardName.PROBE

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding:
        """Compare the two answers."""
        errors = {
            "the reference model": facts.probe.reference_error_nats,
            "the reward model": facts.probe.score_error,
        }
        worst = max(errors, key=lambda what: errors[what])
        return find(
            self.name,
            errors[worst],
            self._threshold,
            f"{worst} answers the probe with a difference of {errors[worst]:.3g} to the start of the run",
        )
