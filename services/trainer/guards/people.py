"""Whether people still agree with the reward model about what the policy writes now.

A reward model is right about the samples that it learned from. On fresh samples of the policy labelers say
again which of two responses is better; when they agree with the sign of the reward model's difference less
often than a coin would, the policy is being led away from what people want. ``on_policy`` asks the labelers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, find
from services.trainer.guards.statistics.sequential import BernoulliEProcess

CHANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """A response of the policy and what the reward model said of it."""

    prompt: int  # which one, of those of the update
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """Two responses to one prompt; the reward model prefers one of them."""

    first: ScoredResponse
    second: ScoredResponse

    @property
    def prefers_first(self) -> bool:
        """The reward model's choice."""
        return self.first.score > self.second.score


def choose_pairs(responses: Sequence[ScoredResponse], *, pairs: int, seed: str) -> list[ScoredPair]:
    """At most so many pairs, of different prompts, by lot.

    Chance alone chooses, never the scores: agreement on pairs that the model is sure of would say nothing of
    the others. A pair has two different texts with different scores; a blank text is nothing to judge.
    """
    chance = random.Random(seed)
    by_prompt: dict[int, list[ScoredResponse]] = {}
    for response in responses:
        if response.text.strip():
            by_prompt.setdefault(response.prompt, []).append(response)
    prompts = sorted(by_prompt)
    chance.shuffle(prompts)
    chosen: list[ScoredPair] = []
    for prompt in prompts:
        if len(chosen) == pairs:
            break
        candidates = by_prompt[prompt]
        chance.shuffle(candidates)
        first = candidates[0]
        second = next((other for other in candidates[1:] if _can_be_told_apart(first, other)), None)
        if second is not None:
            chosen.append(ScoredPair(first=first, second=second))
    return chosen


def _can_be_told_apart(one: ScoredResponse, other: ScoredResponse) -> bool:
    return one.text.strip() != other.text.strip() and one.score != other.score


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleWitness:
    """How far people's choices speak against the reward model. ``after`` takes one more.

    The hypothesis: whatever came before, the next labeler agrees with the reward model with a probability of
    one half or more. Its evidence is an e-process (``BernoulliEProcess``), so it may be looked at after every
    label: above 1000 the alarm is false in at most one of 1,000 runs, however long they are. Labelers who
    agree in 30 % of the pairs are noticed after about 90 labels, in 20 % after about 40, in none after 13.
    Only the first answer about a pair may be counted: all answers about a pair of which the reward model
    happens to be wrong go against it together.
    """

    agreed: int = 0
    disagreed: int = 0

    @property
    def evidence(self) -> BernoulliEProcess:
        """Of all choices so far."""
        return BernoulliEProcess(p0=CHANCE, successes=self.agreed, failures=self.disagreed)

    @property
    def statistic(self) -> float:
        """The e-value."""
        return self.evidence.statistic

    def after(self, agrees: bool) -> Self:
        """With one more choice of a labeler between the two responses of a pair. A tie is none."""
        if agrees:
            return replace(self, agreed=self.agreed + 1)
        return replace(self, disagreed=self.disagreed + 1)


class PeopleGuard:
    """Alarms when people's choices speak strongly enough against the reward model."""

    name = GuardName.PEOPLE

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._witness = PeopleWitness()

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Count the answers that came in since the update before; the strongest moment among them counts."""
        if facts.people is None:
            return None
        strongest: PeopleWitness | None = None
        for agrees in facts.people:
            self._witness = self._witness.after(agrees)
            if strongest is None or self._witness.statistic > strongest.statistic:
                strongest = self._witness
        shown = self._witness if strongest is None else strongest
        return find(
            self.name,
            shown.statistic,
            self._threshold,
            f"labelers agreed with the reward model on {shown.agreed} of {shown.agreed + shown.disagreed} "
            f"pairs of fresh samples",
        )

    def state(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self._witness)

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._witness = PeopleWitness(**state)

    def acknowledge(self) -> None:
        """Begin to count anew."""
        self._witness = PeopleWitness()
