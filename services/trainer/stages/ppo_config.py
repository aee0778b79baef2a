"""What a PPO run can be told, where each default comes from, and the rules that the choices stand for.

Read by the PPO stage alone; StartRun checks it before anything begins.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from andon.modeling.text import TextCodec
from services.trainer.guards.config import GuardsConfig
from services.trainer.ppo.kl import AdaptiveKlController, FixedKlController, KlController
from services.trainer.ppo.schedules import ScheduleKind
from services.trainer.ppo.stopping import EosRule, PeriodRule, StopRule


class EosRuleConfig(BaseModel):
    """A response ends with the end-of-sequence token (S20, N+)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["eos"] = "eos"
    missing_penalty: float = -1.0  # N+; the score of a response without the token


class PeriodRuleConfig(BaseModel):
    """A response ends with the first full stop from a position on (Z19)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["period"]
    after: int = Field(default=16, ge=0)  # Z19, of 24 tokens
    penalty: float = -1.0  # Z19


class FixedKlConfig(BaseModel):
    """The same coefficient throughout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fixed"] = "fixed"
    beta: float = Field(default=0.05, ge=0)  # S20, N+; reward per nat


class AdaptiveKlConfig(BaseModel):
    """A coefficient that steers the KL towards a target (Z19)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adaptive"]
    beta: float = Field(default=0.1, gt=0)  # at the start; Z19's code
    target: float = Field(default=6.0, gt=0)  # nats per response; Z19's code
    horizon: float = Field(default=10_000.0, gt=0)  # episodes; Z19's code


class PpoConfig(BaseModel):
    """What one PPO run does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: str  # source of documents; see andon.corpus.loaders
    policy: str = "sft@latest"  # the model to begin with
    reference: str = "sft@latest"  # the model the KL is taken from
    reward_model: str = "reward@latest"
    value_init: Literal["reward_model", "shared_head"] = "reward_model"  # S20, I22, N+; Z19
    updates: int | None = Field(default=None, ge=1)
    episodes: int | None = Field(default=None, ge=1)  # instead of updates; rounded up to whole updates
    batch_prompts: int = Field(default=512, ge=1)  # per update; N+
    samples_per_prompt: int = Field(default=1, ge=1)
    minibatches: int = Field(default=1, ge=1)  # per epoch; N+
    epochs: int = Field(default=4, ge=1)  # S20, Z19, N+
    learning_rate: float = Field(default=3e-6, gt=0)  # N+
    value_learning_rate: float | None = Field(default=None, gt=0)  # the policy's when None (N+)
    schedule: ScheduleKind = "linear"  # to 0: S20, Z19, N+
    temperature: float = Field(default=0.7, gt=0)  # Z19, N+
    max_new_tokens: int = Field(default=53, ge=1)  # N+; the end-of-sequence token included
    stop_rule: Annotated[EosRuleConfig | PeriodRuleConfig, Field(discriminator="kind")] = EosRuleConfig()
    kl: Annotated[FixedKlConfig | AdaptiveKlConfig, Field(discriminator="kind")] = FixedKlConfig()
    gamma: float = Field(default=1.0, gt=0, le=1)  # S20, Z19, N+
    lam: float = Field(default=0.95, ge=0, le=1)  # S20, Z19, N+
    clip_ratio: float = Field(default=0.2, gt=0)  # S20, Z19, N+
    clip_value: float | None = Field(default=0.2, gt=0)  # S20, Z19, N+; None does not clip
    value_coefficient: float = Field(default=0.1, gt=0)  # S20, Z19, N+
    whiten_advantages: bool = True  # Z19, N+
    whiten_rewards: bool = False  # True only in tasks of Z19's kind
    adam_eps: float = Field(default=1e-5, gt=0)  # N+
    max_grad_norm: float | None = Field(default=1.0, gt=0)  # of each network; None does not clip
    sample_parts: int = Field(default=1, ge=1)  # of an update; one is judged while the next is sampled
    max_staleness: int = Field(default=0, ge=0)  # updates; above 0 the next batches are sampled meanwhile
    behaviour_weight_limit: float = Field(default=2.0, ge=1)  # of a token that older weights wrote
    token_budget: int = Field(default=2048, ge=1)  # per forward pass; bounds memory, a GPU takes more
    checkpoint_interval: int = Field(default=10, ge=1)  # updates
    guards: GuardsConfig = GuardsConfig()
    store_interval: int | None = Field(default=None, ge=1)  # updates; None stores the last version only
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.updates is None) == (self.episodes is None):
            raise ValueError("give either updates or episodes")
        if isinstance(self.stop_rule, PeriodRuleConfig) and self.stop_rule.after >= self.max_new_tokens:
            raise ValueError("stop_rule.after must be below max_new_tokens: no response could end properly")
        if self.sample_parts > self.batch_prompts:
            raise ValueError("sample_parts must be at most batch_prompts: a part holds a prompt or more")
        unused_limit = type(self).model_fields["behaviour_weight_limit"].default
        if self.max_staleness == 0 and self.behaviour_weight_limit != unused_limit:
            raise ValueError("behaviour_weight_limit has no effect while max_staleness is 0")
        return self

    @property
    def num_updates(self) -> int:
        """Policy updates in all."""
        if self.updates is not None:
            return self.updates
        episodes_per_update = self.batch_prompts * self.samples_per_prompt
        return -(-(self.episodes or 0) // episodes_per_update)


def make_stop_rule(config: EosRuleConfig | PeriodRuleConfig, codec: TextCodec) -> StopRule:
    """The rule over this vocabulary's tokens."""
    if isinstance(config, EosRuleConfig):
        return EosRule(eos_token_id=codec.eos_token_id, penalty=config.missing_penalty)
    periods = frozenset(token for token in range(codec.vocab_size) if "." in codec.decode([token]))
    return PeriodRule(period_token_ids=periods, after=config.after, penalty=config.penalty)


def make_controller(config: FixedKlConfig | AdaptiveKlConfig, *, beta: float) -> KlController:
    """The controller, with the beta it begins with or had reached."""
    if isinstance(config, FixedKlConfig):
        return FixedKlController(beta=beta)
    return AdaptiveKlController(beta=beta, target_nats=config.target, horizon_episodes=config.horizon)
