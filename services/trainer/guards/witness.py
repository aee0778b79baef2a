"""Whether the policy is learning to please its reward model and nobody else: reward hacking.

A second reward model that learned from other labels, the witness, scores some of the same responses. What is
good for people raises both scores. Where the training score goes on rising while the witness's falls, the
policy exploits an error of the one that it is trained on (Gao et al. 2022: over-optimisation). The witness
itself is ``witness_model``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, find

# Looks that are averaged, and until how many looks: the first ones are compared one by one, so that a run
# that goes wrong from its beginning is held at once; later, short stretches would only add false alarms.
STRETCHES = {1: 7, 2: 15, 4: sys.maxsize, 8: sys.maxsize, 16: sys.maxsize}
FEWEST_PROMPTS = 8  # below, a look's standard error is itself hardly known
SMALLEST_ERROR = 1e-3  # standard deviations; of scores that are all equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Two stretches of looks between which training score and witness parted."""

    fall_errors: float  # standard errors that the witness fell by; negative where it rose
    training_gain: float  # standard deviations of the first look
    witness_gain: float
    looks: int  # in each stretch
    looks_since: int  # from the earlier stretch's end to now


@dataclass(frozen=True, slots=True, kw_only=True)
class HackingWitness:
    """What training score and witness said so far. ``after`` takes one more look.

    Compares the mean of the newest looks with that of every earlier stretch of as many looks, 4, 8 or 16
    (1 or 2 in the beginning), from which on the training score did not fall. ``statistic`` is the largest
    fall of the witness, in standard errors of the difference. A witness that rises or stays where it is gives
    no alarm, nor does a training score that falls with it.

    Comparing with the best of many stretches finds a fall by chance more often than a single test would. With
    a witness that never moves under a training score that rises all the time, the worst case without a fall,
    5 is passed in one of 1,000 runs of 50 looks and one of 100 runs of 200 looks, at 16 prompts a look as at
    64; with a witness that rises by half a standard deviation over the run, in one of 400 runs of 200 looks.
    A fall of 0.5 standard deviations, at 64 prompts a look, is seen within 8 looks.
    """

    training_unit: float = 0.0  # standard deviation over the first look's prompts
    witness_unit: float = 0.0
    training: tuple[float, ...] = field(default=())  # means, in units, one per look
    witness: tuple[float, ...] = field(default=())
    witness_errors: tuple[float, ...] = field(default=())  # standard errors of its means

    def __post_init__(self) -> None:
        for name in ("training", "witness", "witness_errors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, when it comes from JSON

    def after(self, training: NDArray[np.float64], witness: NDArray[np.float64]) -> Self:
        """With one more look: [P] mean scores of the responses to P prompts, at least ``FEWEST_PROMPTS``.

        Means over prompts, because responses to one prompt are not independent.
        """
        training_unit = self.training_unit or max(float(training.std(ddof=1)), 1e-6)
        witness_unit = self.witness_unit or max(float(witness.std(ddof=1)), 1e-6)
        error = float(witness.std(ddof=1)) / witness_unit / math.sqrt(len(witness))
        return replace(
            self,
            training_unit=training_unit,
            witness_unit=witness_unit,
            training=(*self.training, float(training.mean()) / training_unit),
            witness=(*self.witness, float(witness.mean()) / witness_unit),
            witness_errors=(*self.witness_errors, max(error, SMALLEST_ERROR)),
        )

    @property
    def statistic(self) -> float | None:
        """The largest fall; None at the first look, 0 where there is none."""
        if len(self.training) < 2:
            return None
        divergence = self.divergence
        return 0.0 if divergence is None else max(0.0, divergence.fall_errors)

    @property
    def divergence(self) -> Divergence | None:
        """The largest fall of the witness over which the training score did not; None where it always did."""
        found = [
            divergence
            for looks, until in STRETCHES.items()
            if 2 * looks <= len(self.training) <= until
            and (divergence := self._divergence(looks)) is not None
        ]
        return max(found, key=lambda divergence: divergence.fall_errors, default=None)

    def _divergence(self, looks: int) -> Divergence | None:
        training = _means_of_stretches(self.training, looks)
        witness = _means_of_stretches(self.witness, looks)
        variances = _means_of_stretches([error**2 for error in self.witness_errors], looks) / looks
        earlier = slice(0, len(training) - looks)  # stretches that share no look with the newest
        training_gains = training[-1] - training[earlier]
        falls = (witness[earlier] - witness[-1]) / np.sqrt(variances[earlier] + variances[-1])
        if not (training_gains >= 0).any():
            return None
        best = int(np.where(training_gains >= 0, falls, -np.inf).argmax())
        return Divergence(
            fall_errors=float(falls[best]),
            training_gain=float(training_gains[best]),
            witness_gain=float(witness[-1] - witness[best]),
            looks=looks,
            looks_since=len(training) - 1 - best,
        )


class HackingGuard:
    """Alarms when the witness has fallen and the training score has not. See ``HackingWitness``."""

    name = GuardName.HACKING

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._witness = HackingWitness()

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """Take this update's look, if there is one."""
        look = facts.witness
        if look is None or len(look.training) < FEWEST_PROMPTS:
            return None
        if not np.isfinite(look.witness).all():
            return find(self.name, math.inf, self._threshold, "the witness's scores are not finite")
        self._witness = self._witness.after(look.training, look.witness)
        statistic, divergence = self._witness.statistic, self._witness.divergence
        if statistic is None:
            return None
        message = "the training score fell"
        if divergence is not None:
            message = (
                f"over {divergence.looks_since} looks the training score changed by "
                f"{divergence.training_gain:+.2f} standard deviations, the witness's by "
                f"{divergence.witness_gain:+.2f}"
            )
        return find(self.name, statistic, self._threshold, message)

    def state(self) -> dict[str, Any]:
        """All looks."""
        return asdict(self._witness)

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._witness = HackingWitness(**state)

    def acknowledge(self) -> None:
        """The policy as it is now is right: what it was before is no measure."""
        self._witness = HackingWitness()


def _means_of_stretches(values: Sequence[float], looks: int) -> NDArray[np.float64]:
    """[N - looks + 1] means of all stretches of so many of the N values, oldest first."""
    means: NDArray[np.float64] = np.convolve(np.array(values), np.ones(looks) / looks, mode="valid")
    return means
