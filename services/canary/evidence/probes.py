"""Which prompts both sides get, and what became of a prompt at each of them.

A prompt goes to one replica of each side, one after the other in an order by lot, so that neither side always
finds the machine busy with the other's call. Prompts are drawn with replacement: each is a fresh, independent
sample of the corpus, which is what the gates' tests ask for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from andon.client.policy import Sample, SamplingParameters
from andon.errors import AndonError
from andon.modeling.versions import ModelVersion
from services.canary.evidence.samplers import Samplers, TimedSamples
from services.canary.platform import Replica

# Ours, not the replica's: such a call says nothing about it.
NO_FAULT_REASONS = frozenset({"RATE_LIMITED", "MISSING_TOKEN", "INVALID_TOKEN", "ROLE_NOT_ALLOWED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call without an answer."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What became of one prompt."""

    document: str
    stable: TimedSamples | Failure
    canary: TimedSamples | Failure

    @property
    def canary_answered(self) -> float | None:
        """1 or 0; None where the call says nothing of the canary, because any side would refuse it."""
        if not isinstance(self.canary, Failure):
            return 1.0
        if self.canary.reason in NO_FAULT_REASONS:
            return None
        is_callers_fault = (
            self.canary.code == "INVALID_ARGUMENT"
            and isinstance(self.stable, Failure)
            and self.stable.reason == self.canary.reason
        )
        return None if is_callers_fault else 0.0

    @property
    def pair(self) -> Pair | None:
        """Both samples, where both sides wrote something."""
        if isinstance(self.stable, Failure) or isinstance(self.canary, Failure):
            return None
        pair = Pair(document=self.document, stable=self.stable, canary=self.canary)
        return pair if pair.stable_sample.token_ids and pair.canary_sample.token_ids else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two samples of one prompt."""

    document: str
    stable: TimedSamples
    canary: TimedSamples

    @property
    def stable_sample(self) -> Sample:
        """What stable wrote."""
        return self.stable.samples.samples[0]

    @property
    def canary_sample(self) -> Sample:
        """What the canary wrote."""
        return self.canary.samples.samples[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two, as a probe sees it."""

    replicas: Sequence[Replica]
    version: ModelVersion


class Prober:
    """Sends prompts to both sides."""

    def __init__(
        self,
        samplers: Samplers,
        *,
        documents: Sequence[str],
        parameters: SamplingParameters,
        chance: random.Random,
    ) -> None:
        self._samplers = samplers
        self._documents = documents
        self._parameters = parameters
        self._chance = chance

    def choose(self, count: int) -> list[str]:
        """So many documents, by lot."""
        return self._chance.choices(self._documents, k=count)

    def probe(self, document: str, *, stable: Side, canary: Side) -> Probe:
        """One document to both sides."""
        if self._chance.random() < 0.5:
            stable_first = self._sample(document, stable)
            return Probe(document=document, stable=stable_first, canary=self._sample(document, canary))
        canary_first = self._sample(document, canary)
        return Probe(document=document, stable=self._sample(document, stable), canary=canary_first)

    def _sample(self, document: str, side: Side) -> TimedSamples | Failure:
        if not side.replicas:
            return Failure(code="UNAVAILABLE", reason="NO_REPLICA")
        replica = self._chance.choice(side.replicas)
        try:
            return self._samplers.sample_one(replica, document, self._parameters, required_model=side.version)
        except AndonError as error:
            return Failure(code=error.code, reason=error.reason)
