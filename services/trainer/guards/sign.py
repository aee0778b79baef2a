"""The sign-bug detector: whether learning goes the way that scores and advantages point.

In 2019 one refactor flipped the sign of the reward and of the KL penalty, and nobody saw it until morning
(Z19, section 4.4). Four witnesses look for such a thing after every update: the experience computed a second
time (``recomputation``), what the update did to tokens by that second computation's advantages, what it did
to whole responses by the raw scores of the reward service, and over many updates whether scores fall while
the optimizer reports success.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from services.trainer.experience import Experience
from services.trainer.guards.guard import Finding, GuardName, Memoryless, UpdateFacts, find
from services.trainer.guards.recomputation import RecomputedExperience, Row, recompute
from services.trainer.guards.statistics.hypothesis import decreasing_trend_p, negative_correlation_p


def recompute_experience(experience: Experience) -> RecomputedExperience:
    """The experience's rewards, advantages, returns and weights by the second computation."""
    rollout, settings = experience.rollout, experience.settings
    lengths = rollout.responses.lengths.tolist()

    def rows(padded: Any) -> list[Row]:  # a [R, L] tensor
        return [row[:length].double().numpy() for row, length in zip(padded, lengths, strict=True)]

    return recompute(
        policy_logprobs=rows(rollout.responses.behaviour_logprobs),
        proximal_logprobs=rows(experience.proximal_logprobs),
        reference_logprobs=rows(rollout.reference_logprobs),
        scores=rollout.scores.tolist(),
        ended_properly=rollout.responses.ended_properly.tolist(),
        values=rows(experience.values),
        beta=experience.beta,
        penalty=settings.penalty,
        gamma=settings.gamma,
        lam=settings.lam,
        whiten_rewards=settings.whiten_rewards,
        whiten_advantages=settings.whiten_advantages,
        weight_limit=experience.weight_limit,
    )


class CompositionGuard(Memoryless):
    """Whether what was learned from, rewards, advantages, returns and tokens' weights, is that of the second
    computation.

    Statistic: the largest relative difference. Only rounding separates two right computations, so a false
    alarm takes an error of a hundredth where float32 errs by a millionth.
    """

    name = GuardName.COMPOSITION

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding:
        """Compare all tokens of the update."""
        experience = facts.experience
        second = recompute_experience(experience)
        mask = experience.rollout.responses.mask
        errors = {
            what: _relative_error(used[mask].double().numpy(), np.concatenate(expected))
            for what, used, expected in (
                ("rewards", experience.rewards, second.rewards),
                ("advantages", experience.advantages, second.advantages),
                ("returns", experience.returns, second.returns),
                ("weights", experience.weights, second.weights),
            )
        }
        worst = max(errors, key=lambda what: errors[what])
        return find(
            self.name,
            errors[worst],
            self._threshold,
            f"{worst} differ from a second computation by {errors[worst]:.3g} of their size",
        )


class DirectionTokensGuard(Memoryless):
    """Whether tokens with a positive advantage gained log-probability.

    Statistic: minus the t value, over responses, of the sum of advantage times gained log-probability, which
    every step of gradient ascent makes positive. The advantages are the second computation's. At the
    threshold of 3.5 an update without any direction alarms with probability 2e-4; a healthy one has a
    direction, and its statistic stands below zero.
    """

    name = GuardName.DIRECTION_TOKENS

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Test the responses of the slice."""
        second = recompute_experience(facts.experience)
        reading = facts.reading
        gained = (reading.logprobs_after - reading.logprobs_before).double().numpy()
        products = np.array(
            [
                float(second.advantages[row] @ gain[: len(second.advantages[row])])
                for row, gain in zip(reading.rows.tolist(), gained, strict=True)
            ]
        )
        t_value = _t_value(products)
        if t_value is None:
            return None
        return find(
            self.name,
            -t_value,
            self._threshold,
            f"advantage times log-probability gained is {products.mean():.3g} a response (t = {t_value:.2f})",
        )


class DirectionScoresGuard:
    """Whether responses that the reward service scored higher gained log-probability.

    Looks at raw scores alone: neither reward composition nor advantages stand between. Scores are taken
    relative to the other responses to the same prompt where there are several, otherwise to the value before
    the first token. Statistic: minus Stouffer's z of the rank correlation over the last updates. At the
    threshold of 4.5 a run of 1,000 updates without any correlation alarms with a probability below 0.5 %.
    """

    name = GuardName.DIRECTION_SCORES

    def __init__(self, threshold: float, *, window: int) -> None:
        self._threshold = threshold
        self._window = window
        self._z_values: list[float] = []

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Test the slice, together with the updates before."""
        reading = facts.reading
        rows = reading.rows.tolist()
        gained = (reading.logprobs_after - reading.logprobs_before).sum(dim=1).double().numpy()
        p_value = negative_correlation_p(_relative_scores(facts.experience)[rows], gained)
        if p_value is None:
            return None
        z_value = float(stats.norm.isf(min(max(p_value, 1e-300), 1 - 1e-16)))  # positive: the wrong way
        self._z_values = [*self._z_values, z_value][-self._window :]
        strongest = max(
            sum(self._z_values[-count:]) / math.sqrt(count) for count in range(1, len(self._z_values) + 1)
        )
        return find(
            self.name,
            strongest,
            self._threshold,
            f"responses with higher scores lost log-probability: z = {-strongest:.2f} "
            f"over the last {len(self._z_values)} updates",
        )

    def state(self) -> dict[str, Any]:
        """The last updates' z values."""
        return {"z_values": list(self._z_values)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._z_values = list(state["z_values"])

    def acknowledge(self) -> None:
        """Forget them."""
        self._z_values = []


@dataclass(slots=True)
class _Course:
    scores: list[float]
    deviations: list[float]
    kl_nats: list[float]
    gains: list[float]


class ObjectiveGuard:
    """Whether over a window the score falls while the optimizer reports success.

    An adaptive KL penalty may trade score for a smaller KL, so a falling KL is no alarm. Statistic: minus the
    decimal logarithm of the Mann-Kendall test's p value for a falling mean score; 0 where the fall is below
    half a standard deviation of the scores, the KL fell too, or the optimizer gained nothing.
    """

    name = GuardName.OBJECTIVE

    def __init__(self, threshold: float, *, window: int) -> None:
        self._threshold = threshold
        self._window = window
        self.acknowledge()

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Add this update to the window and test it."""
        course, reading = self._course, facts.reading
        advantages = facts.experience.advantages[reading.rows]
        gained = advantages * (reading.logprobs_after - reading.logprobs_before)
        course.scores.append(float(facts.experience.rollout.scores.mean()))
        course.deviations.append(float(facts.experience.rollout.scores.std(correction=0)))
        course.kl_nats.append(facts.experience.kl_nats)
        course.gains.append(float(gained.sum(dim=1).mean()))
        for values in (course.scores, course.deviations, course.kl_nats, course.gains):
            del values[: -self._window]
        if len(course.scores) < self._window:
            return None
        half = self._window // 2
        fall = float(np.mean(course.scores[:half]) - np.mean(course.scores[-half:]))
        kl_rose = np.mean(course.kl_nats[-half:]) >= np.mean(course.kl_nats[:half])
        counts = fall > 0.5 * float(np.mean(course.deviations)) and kl_rose and np.mean(course.gains) > 0
        p_value = decreasing_trend_p(np.array(course.scores)) if counts else 1.0
        return find(
            self.name,
            0.0 - math.log10(max(p_value, 1e-300)),
            self._threshold,
            f"the mean score fell by {fall:.3g} over {self._window} updates while the optimizer gained "
            f"{np.mean(course.gains):.3g} per response",
        )

    def state(self) -> dict[str, Any]:
        """The window."""
        course = self._course
        return {
            "scores": list(course.scores),
            "deviations": list(course.deviations),
            "kl_nats": list(course.kl_nats),
            "gains": list(course.gains),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._course = _Course(**{name: list(values) for name, values in state.items()})

    def acknowledge(self) -> None:
        """Forget it."""
        self._course = _Course(scores=[], deviations=[], kl_nats=[], gains=[])


def _relative_scores(experience: Experience) -> NDArray[np.float64]:
    """[R]: how much better than expected each response was scored."""
    scores: NDArray[np.float64] = experience.rollout.scores.double().numpy()
    relative: NDArray[np.float64] = scores - experience.values[:, 0].double().numpy()
    first = 0
    for group in experience.rollout.responses.groups:
        last = first + len(group.responses)
        if last - first > 1:
            relative[first:last] = scores[first:last] - scores[first:last].mean()
        first = last
    return relative


def _relative_error(used: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    size = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(used - expected).max()) / size


def _t_value(values: NDArray[np.float64]) -> float | None:
    """Of the mean against 0; None where fewer than eight values, or values without spread, say nothing."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if len(values) < 8 or deviation == 0:
        return None
    return float(values.mean()) / (deviation / math.sqrt(len(values)))
