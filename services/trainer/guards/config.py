"""What guards can be told: the section ``guards`` of a PPO run's configuration.

Each guard has a rule: a threshold on its statistic, and what an alarm leads to. What the statistics are, and
how often each threshold alarms without a cause, stands with the guards and in docs/guards.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.trainer.guards.guard import Action, GuardName


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a guard alarms and what follows; ``action`` None: it is not asked."""

    threshold: float
    action: Action | None


def _rule(threshold: float, action: Action) -> Rule:
    return Rule(threshold=threshold, action=action)


# Defects of the machinery pull the cord; a policy that turns into something odd holds its own run or warns.
DEFAULT_RULES: Mapping[GuardName, Rule] = {
    GuardName.PREFLIGHT_SETTINGS: _rule(0, Action.CORD),  # differences
    GuardName.PREFLIGHT_MODELS: _rule(1, Action.CORD),  # times what the number format explains
    GuardName.PREFLIGHT_COMPOSITION: _rule(0.01, Action.CORD),  # relative error
    GuardName.PREFLIGHT_LABELS: _rule(0.01, Action.CORD),  # p value of chance
    GuardName.PREFLIGHT_REFERENCES: _rule(0.01, Action.CORD),  # p value of chance
    GuardName.NUMBERS: _rule(1, Action.CORD),  # limits
    GuardName.PROBE: _rule(0.05, Action.CORD),  # nats, score
    GuardName.COMPOSITION: _rule(0.01, Action.CORD),  # relative error
    GuardName.DIRECTION_TOKENS: _rule(3.5, Action.CORD),  # standard errors
    GuardName.DIRECTION_SCORES: _rule(4.5, Action.CORD),  # standard errors
    GuardName.OBJECTIVE: _rule(4, Action.CORD),  # -log10 p
    GuardName.STEP_SIZE: _rule(1, Action.CORD),  # nats per token
    GuardName.KL_NEGATIVE: _rule(5, Action.CORD),  # standard errors
    GuardName.KL_RUNAWAY: _rule(60, Action.HOLD),  # nats per response; see ``threshold_of_kl``
    GuardName.SAMPLER_MISMATCH: _rule(1e-3, Action.CORD),  # nats per token, at least
    GuardName.SAMPLER_CALIBRATION: _rule(6, Action.CORD),  # standard deviations
    GuardName.REWARD_SPIKE: _rule(12, Action.CORD),  # robust standard deviations
    GuardName.REWARD_DRIFT: _rule(12, Action.HOLD),  # standard errors, cumulated
    GuardName.REWARD_SATURATION: _rule(0.9, Action.HOLD),  # share of responses
    GuardName.REWARD_VARIANCE: _rule(10, Action.HOLD),  # times
    GuardName.LENGTH_DRIFT: _rule(2.5, Action.WARN),  # times
    GuardName.REPETITION: _rule(0.3, Action.HOLD),  # share
    GuardName.ENTROPY_COLLAPSE: _rule(20, Action.HOLD),  # times
    GuardName.INVALID_ENDINGS: _rule(0.5, Action.HOLD),  # share
    GuardName.HACKING: _rule(5, Action.CORD),  # standard errors
    GuardName.PEOPLE: _rule(1000, Action.CORD),  # e-value: one false alarm in a thousand runs
}

KL_TIMES_THE_TARGET = 4.0


class RuleConfig(BaseModel):
    """A change of one guard's rule; what is left out keeps its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action | Literal["off"] | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)


class PreflightConfig(BaseModel):
    """What is looked at before the first update of a run, and of a run that is taken up again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    comparisons: str | None = None
    """People's comparisons that the reward model did not learn from: a JSONL file or "labeling:<batch>".
    None: the guard ``preflight_labels`` has nothing to look at and says so.
    """
    max_comparisons: int = Field(default=256, ge=8)  # of them; 128 see an accuracy of 0.65 in 9 of 10 cases
    references: int = Field(default=64, ge=0)  # documents of the prompts that have a reference; 0: none
    samples: int = Field(default=16, ge=2)  # prompts that are sampled to compare services with stored models
    compare_models: bool = True  # load reference and reward model here too, one after the other


class WitnessConfig(BaseModel):
    """The second opinion of the guard ``hacking``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None  # a reward model that learned from other labels; None: there is no witness
    interval: int = Field(default=1, ge=1)  # updates from one look to the next
    responses: int = Field(default=64, ge=8)  # at a look, of whole prompts; 8 prompts at least


class PeopleConfig(BaseModel):
    """What the guard ``people`` asks labelers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int = Field(default=0, ge=0, le=1000)  # of fresh samples, each time; 0: nobody is asked
    interval: int = Field(default=1, ge=1)  # updates from one time to the next
    project: str = ""  # of the labeling service; its default project when empty


class GuardsConfig(BaseModel):
    """All of the section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    rules: dict[GuardName, RuleConfig] = Field(default_factory=dict)
    preflight: PreflightConfig = PreflightConfig()
    witness: WitnessConfig = WitnessConfig()
    people: PeopleConfig = PeopleConfig()
    slice_responses: int = Field(default=64, ge=8)  # looked at before and after each update
    window: int = Field(default=10, ge=4)  # updates that the guards with a memory look back on
    baseline_updates: int = Field(default=3, ge=1)  # that say what is usual
    when_cord_pulled: Literal["keep", "stable"] = "keep"
    """What samplers serve while the cord holds the run: the last version that was published, or
    ``policy@stable`` of the model store.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.enabled and self.rules:
            raise ValueError("guards.enabled is false: guards.rules would have no effect")
        for guard, section, is_used in (
            (GuardName.HACKING, "witness", self.witness.model is not None),
            (GuardName.PEOPLE, "people", self.people.pairs > 0),
        ):
            if is_used and self.rule(guard).action is None:
                raise ValueError(f"the guard {guard} is off: guards.{section} would have no effect")
        return self

    def rule(self, guard: GuardName) -> Rule:
        """The rule that holds."""
        default, change = DEFAULT_RULES[guard], self.rules.get(guard, RuleConfig())
        action = default.action if change.action is None else change.action
        return Rule(
            threshold=default.threshold if change.threshold is None else change.threshold,
            action=None if not self.enabled or action is None or action == "off" else Action(action),
        )

    def threshold_of_kl(self, target_nats: float | None) -> float:
        """The limit of the KL: configured, four times an adaptive penalty's target, or the default."""
        change = self.rules.get(GuardName.KL_RUNAWAY)
        if (change is not None and change.threshold is not None) or target_nats is None:
            return self.rule(GuardName.KL_RUNAWAY).threshold
        return KL_TIMES_THE_TARGET * target_nats
