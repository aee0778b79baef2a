"""All guards of a run: which there are, with which rules, and what they say of an update.

Pure but for the memory of the guards: facts in, findings out. ``services.trainer.stages.ppo_guards`` gathers
the facts and tells the run of the alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.trainer.guards.baseline import PROPERTIES, BaselineGuard
from services.trainer.guards.config import GuardsConfig
from services.trainer.guards.guard import Alarm, Finding, Guard, GuardName, UpdateFacts
from services.trainer.guards.kl import (
    KlNegativeGuard,
    KlRunawayGuard,
    SamplerCalibrationGuard,
    SamplerMismatchGuard,
)
from services.trainer.guards.numbers import NumbersGuard, ProbeGuard, StepSizeGuard
from services.trainer.guards.people import PeopleGuard
from services.trainer.guards.reward import RewardDriftGuard, RewardSaturationGuard, RewardSpikeGuard
from services.trainer.guards.sign import (
    CompositionGuard,
    DirectionScoresGuard,
    DirectionTokensGuard,
    ObjectiveGuard,
)
from services.trainer.guards.witness import HackingGuard


class GuardBoard:
    """The guards that look at every update."""

    def __init__(self, config: GuardsConfig, *, kl_target_nats: float | None) -> None:
        """``kl_target_nats``: of an adaptive KL penalty, per response."""
        self._config = config
        window = config.window

        def threshold(name: GuardName) -> float:
            return config.rule(name).threshold

        guards: list[Guard] = [
            NumbersGuard(threshold(GuardName.NUMBERS), window=window),
            ProbeGuard(threshold(GuardName.PROBE)),
            CompositionGuard(threshold(GuardName.COMPOSITION)),
            DirectionTokensGuard(threshold(GuardName.DIRECTION_TOKENS)),
            DirectionScoresGuard(threshold(GuardName.DIRECTION_SCORES), window=window),
            ObjectiveGuard(threshold(GuardName.OBJECTIVE), window=window),
            StepSizeGuard(threshold(GuardName.STEP_SIZE)),
            KlNegativeGuard(threshold(GuardName.KL_NEGATIVE), window=window),
            KlRunawayGuard(config.threshold_of_kl(kl_target_nats)),
            SamplerMismatchGuard(threshold(GuardName.SAMPLER_MISMATCH), window=window),
            SamplerCalibrationGuard(threshold(GuardName.SAMPLER_CALIBRATION)),
            RewardSpikeGuard(threshold(GuardName.REWARD_SPIKE), window=window),
            RewardDriftGuard(threshold(GuardName.REWARD_DRIFT)),
            RewardSaturationGuard(threshold(GuardName.REWARD_SATURATION)),
            HackingGuard(threshold(GuardName.HACKING)),
            PeopleGuard(threshold(GuardName.PEOPLE)),
        ]
        guards += [
            BaselineGuard(watched, threshold(watched.guard), baseline_updates=config.baseline_updates)
            for watched in PROPERTIES
        ]
        self._guards = [guard for guard in guards if config.rule(guard.name).action is not None]

    def examine(self, facts: UpdateFacts) -> list[Finding]:
        """What the guards find at this update; each remembers it."""
        findings = [guard.examine(facts) for guard in self._guards]
        return [finding for finding in findings if finding is not None]

    def alarms(self, findings: Sequence[Finding], *, step: int) -> list[Alarm]:
        """The alarming ones, with what follows by the rules."""
        alarms = []
        for finding in findings:
            action = self._config.rule(finding.guard).action
            if finding.alarming and action is not None:
                alarms.append(Alarm(finding=finding, action=action, step=step))
        return alarms

    def state(self) -> dict[str, Any]:
        """All memories, for a checkpoint."""
        return {guard.name.value: guard.state() for guard in self._guards}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up; a guard that has none there begins anew."""
        for guard in self._guards:
            if guard.name.value in state:
                guard.restore(state[guard.name.value])

    def acknowledge(self) -> None:
        """A person overruled an alarm."""
        for guard in self._guards:
            guard.acknowledge()
