"""Whether policy, reference and sampler stand to each other as they must.

The KL of samples of the policy from the reference cannot stay negative (methods: traps); it may not run away;
and what the sampler says of its own tokens must be what the trainer's weights say of them. The KL is summed
up here once more from the services' answers.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.trainer.guards.guard import Finding, GuardName, Memoryless, UpdateFacts, find

NEGLIGIBLE_KL_NATS = 0.05  # per response; rounding and a sampler in bfloat16 stay far below
TIMES_THE_USUAL = 10.0


def response_kl(facts: UpdateFacts) -> NDArray[np.float64]:
    """[R]: log policy minus log reference, summed over each response, in nats."""
    rollout = facts.experience.rollout
    difference = rollout.responses.behaviour_logprobs.double() - rollout.reference_logprobs.double()
    total: NDArray[np.float64] = (difference * rollout.responses.mask).sum(dim=1).numpy()
    return total


class KlNegativeGuard:
    """Whether the estimated KL is negative beyond noise.

    Statistic: minus the t value of the mean KL per response over the last updates' responses, with
    ``NEGLIGIBLE_KL_NATS`` as the least standard error that counts. At the threshold of 5 responses without
    any KL alarm with probability 3e-7 per update.
    """

    name = GuardName.KL_NEGATIVE

    def __init__(self, threshold: float, *, window: int) -> None:
        self._threshold = threshold
        self._updates: deque[tuple[float, float, float]] = deque(maxlen=window)

    def examine(self, facts: UpdateFacts) -> Finding:
        """Add this update's responses and test."""
        kl = response_kl(facts)
        self._updates.append((float(len(kl)), float(kl.sum()), float(np.square(kl).sum())))
        # The newest update by itself, and the whole window: a sudden change must not hide behind a long past.
        t_value, mean = min(_t_of_mean(list(self._updates)[-1:]), _t_of_mean(list(self._updates)))
        return find(
            self.name,
            -t_value,
            self._threshold,
            f"the KL is {mean:.3g} nats a response (t = {t_value:.2f})",
        )

    def state(self) -> dict[str, Any]:
        """Count, sum and sum of squares of the last updates' responses."""
        return {"updates": [list(update) for update in self._updates]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._updates.clear()
        self._updates.extend((count, total, squares) for count, total, squares in state["updates"])

    def acknowledge(self) -> None:
        """Forget them."""
        self._updates.clear()


class KlRunawayGuard(Memoryless):
    """Whether the policy has left the reference behind.

    Statistic: the mean KL per response, in nats. The threshold is four times the target of an adaptive
    penalty, or else what the configuration says; S20's over-optimised policies stood at 19 and more. No false
    alarm by chance: it is a limit.
    """

    name = GuardName.KL_RUNAWAY

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding:
        """Compare this update's KL."""
        mean = float(response_kl(facts).mean())
        return find(
            self.name,
            mean,
            self._threshold,
            f"the KL is {mean:.3g} nats per response, the limit {self._threshold:g}",
        )


class SamplerMismatchGuard:
    """Whether the sampler gives its tokens the probabilities that the trainer gives them.

    Catches weights that were acknowledged and not used, another temperature, another tokenizer or stop rule,
    and drift of number formats. Statistic: mean absolute difference per token, in nats. The threshold follows
    the run: ten times the median so far, and at least what the rule says, so it fits float32 (1e-6) and
    bfloat16. The mismatch of one set of kernels varies far less than tenfold.
    """

    name = GuardName.SAMPLER_MISMATCH

    def __init__(self, threshold: float, *, window: int) -> None:
        self._least = threshold
        self._usual: deque[float] = deque(maxlen=window)

    def examine(self, facts: UpdateFacts) -> Finding:
        """Compare on the slice with the weights that wrote it, and on what was sampled ahead with those."""
        if facts.settings_differences:
            return find(self.name, math.inf, self._least, "; ".join(facts.settings_differences))
        reading = facts.reading
        responses = facts.experience.rollout.responses
        mask = responses.mask[reading.rows]
        # Of a stale batch these are the trainer's own, from the passes that training makes: the sampler's
        # were compared when the batch was written.
        proximal = facts.experience.proximal_logprobs[reading.rows]
        mismatch = float((proximal - reading.logprobs_before).abs()[mask].double().mean())
        for written in facts.ahead:
            mismatch = max(mismatch, float(written.errors_nats.mean()))
        # Also by the pass that gradients are taken from, which may err where the guards' own does not.
        mismatch = max(mismatch, facts.metrics.get("sampler_logprob_mean_error", 0.0))
        threshold = max(self._least, TIMES_THE_USUAL * float(np.median(self._usual)) if self._usual else 0.0)
        if not mismatch > threshold:
            self._usual.append(mismatch)
        return find(
            self.name,
            mismatch,
            threshold,
            f"sampler and trainer differ by {mismatch:.3g} nats per token, usual is at most {threshold:.3g}",
        )

    def state(self) -> dict[str, Any]:
        """The usual mismatches."""
        return {"usual": list(self._usual)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._usual.clear()
        self._usual.extend(state["usual"])

    def acknowledge(self) -> None:
        """What is usual stays known."""


class SamplerCalibrationGuard(Memoryless):
    """Whether tokens are as surprising as the distribution that they are said to come from.

    A token drawn from p has an expected -log p of the entropy of p, whatever came before. So the sum of
    (-log p - entropy) over all tokens is a martingale, and divided by the root of its quadratic variation
    about standard normal. Catches a sampler that draws at another temperature, or from a truncated
    distribution, and reports the right log-probabilities. Statistic: the absolute value. At the threshold of
    6 an update alarms with probability 2e-9 were it exactly normal; the tail is heavier for few tokens.
    """

    name = GuardName.SAMPLER_CALIBRATION

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Test the tokens of the slice, unless it is stale, and of what was sampled ahead."""
        reading = facts.reading
        pieces = [(-written.logprobs - written.entropies)[written.mask] for written in facts.ahead]
        if facts.experience.staleness == 0:
            mask = facts.experience.rollout.responses.mask[reading.rows]
            pieces.append((-reading.logprobs_before - reading.entropies_before)[mask])
        surplus = torch.cat([torch.empty(0), *pieces]).double().numpy()
        variation = float(np.square(surplus).sum())
        if len(surplus) < 100 or variation == 0:
            return None
        z_value = float(surplus.sum()) / math.sqrt(variation)
        return find(
            self.name,
            abs(z_value),
            self._threshold,
            f"tokens are {'more' if z_value > 0 else 'less'} surprising than their distribution says "
            f"(z = {z_value:.2f})",
        )


def _t_of_mean(updates: list[tuple[float, float, float]]) -> tuple[float, float]:
    count, total, squares = (math.fsum(column) for column in zip(*updates, strict=True))
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    return mean / max(math.sqrt(variance / count), NEGLIGIBLE_KL_NATS / 5), mean
