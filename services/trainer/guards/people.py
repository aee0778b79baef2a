"""Whether people still agree with the reward model about what the policy writes now.

A reward model is right about the samples that it learned from. On fresh samples of the policy labelers say
again which of two responses is better; when they agree with the sign of the reward model's difference less
often than a coin would, the policy is being led away from what people want. ``on_policy`` asks the labelers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, find
from services.trainer.guards.statistics.sequential import RestartingEProcess

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


class PeopleGuard:
    """Alarms when people's choices speak strongly enough against the reward model.

    The hypothesis: whatever came before, the next labeler agrees with the reward model with a probability of
    one half or more. The statistic is the e-value against it (``RestartingEProcess``), so it may be looked at
    after every label, and a good beginning does not hide what comes later: above 1000 the alarm is false in
    at most one of 1,000 runs, however long they are. Labelers who agree in 30 % of the pairs are noticed
    after about 100 labels, in 20 % after about 40, in none after 14; after 200 labels of 70 % agreement it
    takes 30, 15 and 7 labels more.

    Only the first answer about a pair may be counted: all answers about a pair of which the reward model
    happens to be wrong go against it together. A tie is no answer.
    """

    name = GuardName.PEOPLE

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._evidence = RestartingEProcess(p0=CHANCE)

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Count the answers that came in since the update before; the strongest moment among them counts."""
        if facts.people is None:
            return None
        shown, largest = self._evidence, -math.inf
        for agrees in facts.people:
            self._evidence = self._evidence.after(agrees)
            if self._evidence.statistic > largest:
                shown, largest = self._evidence, self._evidence.statistic
        return find(
            self.name,
            shown.statistic,
            self._threshold,
            f"labelers agreed with the reward model on {shown.successes} of "
            f"{shown.successes + shown.failures} pairs of fresh samples",
        )

    def state(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self._evidence)

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._evidence = RestartingEProcess(**state)

    def acknowledge(self) -> None:
        """Begin to count anew."""
        self._evidence = RestartingEProcess(p0=CHANCE)
