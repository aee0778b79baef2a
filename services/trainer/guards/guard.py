"""The vocabulary of guards: what a guard is, what it is shown, what it may find and what then follows.

A guard is a witness of its own: it looks in another place than the code that it watches, and it keeps its own
memory from update to update. ``services.trainer.guards.board`` asks all of them after the optimizer steps of
an update and before its weights are published. No guard stops anything itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from services.trainer.experience import Experience

LARGEST_STATISTIC = 1e9  # stands for anything beyond, and for what is no number


class GuardName(StrEnum):
    """All guards; the values are label values of metrics."""

    PREFLIGHT_SETTINGS = "preflight_settings"
    PREFLIGHT_MODELS = "preflight_models"
    PREFLIGHT_COMPOSITION = "preflight_composition"
    PREFLIGHT_LABELS = "preflight_labels"
    PREFLIGHT_REFERENCES = "preflight_references"
    NUMBERS = "numbers"
    PROBE = "probe"
    COMPOSITION = "composition"
    DIRECTION_TOKENS = "direction_tokens"
    DIRECTION_SCORES = "direction_scores"
    OBJECTIVE = "objective"
    STEP_SIZE = "step_size"
    KL_NEGATIVE = "kl_negative"
    KL_RUNAWAY = "kl_runaway"
    SAMPLER_MISMATCH = "sampler_mismatch"
    SAMPLER_CALIBRATION = "sampler_calibration"
    REWARD_SPIKE = "reward_spike"
    REWARD_DRIFT = "reward_drift"
    REWARD_SATURATION = "reward_saturation"
    REWARD_VARIANCE = "reward_variance"
    LENGTH_DRIFT = "length_drift"
    REPETITION = "repetition"
    ENTROPY_COLLAPSE = "entropy_collapse"
    INVALID_ENDINGS = "invalid_endings"
    HACKING = "hacking"
    PEOPLE = "people"

    @property
    def is_preflight(self) -> bool:
        """Whether it looks before an update, so that no weights are withheld when it alarms."""
        return self.value.startswith("preflight_")


class Action(StrEnum):
    """What an alarm leads to, from the mildest."""

    WARN = "warn"  # it is told
    HOLD = "hold"  # the run stands still and publishes nothing until a person resumes it
    CORD = "cord"  # the trainer pulls the cord

    @property
    def holds(self) -> bool:
        """Whether the update's weights may not be published."""
        return self is not Action.WARN


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one guard measured at one update. ``find`` makes it."""

    guard: GuardName
    statistic: float  # finite
    threshold: float  # finite
    message: str  # what was seen, in words and numbers

    @property
    def alarming(self) -> bool:
        """A statistic above its threshold."""
        return self.statistic > self.threshold


def find(guard: GuardName, statistic: float, threshold: float, message: str) -> Finding:
    """A finding whose statistic is a number in any case: what is none, or too large, alarms."""
    if not math.isfinite(statistic):
        statistic = -LARGEST_STATISTIC if statistic == -math.inf else LARGEST_STATISTIC
    bounded = min(max(statistic, -LARGEST_STATISTIC), LARGEST_STATISTIC)
    return Finding(guard=guard, statistic=bounded, threshold=threshold, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarming finding and what follows from it."""

    finding: Finding
    action: Action
    step: int  # the update that was looked at; 0 before the first


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceReading:
    """What the trainer's own weights say of some responses, before and after an update.

    S responses, L the length of the longest of the whole rollout. All tensors are on the CPU, 0 behind the
    end of a response.
    """

    rows: Tensor  # [S] int64: which responses of the rollout
    logprobs_before: Tensor  # [S, L] float32, nats, at the sampling temperature
    entropies_before: Tensor  # [S, L] float32, nats
    logprobs_after: Tensor  # [S, L] float32, with the weights that are about to be published


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerReading:
    """What the published weights say of some responses that they are said to have written.

    S responses, L the length of the longest of their rollout. All tensors are on the CPU.
    """

    behaviour_logprobs: Tensor  # [S, L] float32, nats, from the sampler
    logprobs: Tensor  # [S, L] float32, nats, from the trainer, at the sampling temperature
    entropies: Tensor  # [S, L] float32, nats
    mask: Tensor  # [S, L] bool, True on response tokens

    @property
    def errors_nats(self) -> Tensor:
        """[T] float64: how far sampler and trainer are apart at each token."""
        return (self.behaviour_logprobs - self.logprobs).abs()[self.mask].double()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReading:
    """What the frozen models answered about the same few texts at the run's start and now."""

    reference_error_nats: float  # the largest difference of a token's log-probability
    score_error: float  # the largest difference of a score


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessReading:
    """What the training reward model and a witness say of the same responses to P prompts."""

    training: NDArray[np.float64]  # [P] mean score of each prompt's responses
    witness: NDArray[np.float64]  # [P]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFacts:
    """What guards are shown of an update."""

    update: int  # from 1
    experience: Experience
    reading: SliceReading
    probe: ProbeReading
    metrics: Mapping[str, float]  # what the update reports of rollout and optimizer
    weights_finite: bool  # whether every weight that is about to be published is a finite number
    settings_differences: tuple[str, ...]  # where a service worked otherwise than it was asked to
    witness: WitnessReading | None = None  # None without a witness, or where it is not its turn
    ahead: tuple[SamplerReading, ...] = ()  # of batches for later updates, written since the last look
    people: tuple[bool, ...] | None = None  # whether labelers agreed, newly; None where none are asked


class Guard(Protocol):
    """One witness."""

    @property
    def name(self) -> GuardName:
        """Which one."""
        ...

    def examine(self, facts: UpdateFacts) -> Finding | None:
        """What it finds at this update; None while it cannot say anything yet."""
        ...

    def state(self) -> dict[str, Any]:
        """Its memory, for a checkpoint: numbers, texts, and lists and dicts of these."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        ...

    def acknowledge(self) -> None:
        """A person overruled an alarm: begin anew, so that the same history does not alarm again."""
        ...


class Memoryless:
    """The memory of a guard that looks at one update by itself."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""

    def acknowledge(self) -> None:
        """Nothing to forget."""
