"""What one update learns from: a rollout with its per-token advantages and returns.

Assembles the pure functions of ``services.trainer.ppo`` in the order of N+: stop rule's penalty, KL, composed
reward, (whitened rewards), generalized advantages, whitened advantages; and for a rollout of an earlier
version the weight of each token. Called once per update by the PPO stage.

The KL of the penalty is that of the version that wrote the samples, also where it is not the newest: it is
then the KL that is reported, and no less than 0 in expectation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from services.trainer.ppo.advantages import generalized_advantages
from services.trainer.ppo.kl import summarize_kl, token_kl
from services.trainer.ppo.losses import explained_variance
from services.trainer.ppo.masking import sequence_sums
from services.trainer.ppo.off_policy import behaviour_weights
from services.trainer.ppo.rewards import compose_rewards
from services.trainer.ppo.stopping import replace_improper_scores
from services.trainer.ppo.whitening import whiten
from services.trainer.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """How a reward becomes an advantage."""

    penalty: float  # in place of the score of a response that does not end properly
    gamma: float
    lam: float
    whiten_rewards: bool
    whiten_advantages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Proximal:
    """What the weights that an update begins with say of responses that earlier ones wrote."""

    logprobs: Tensor  # [R, L] float32, nats, at the sampling temperature; 0 behind the end
    staleness: int  # updates between the two, at least 1
    weight_limit: float  # of the importance weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout, ready to be learned from. All tensors [R, L] float32, 0 behind the end of a response."""

    rollout: Rollout
    values: Tensor  # before the update
    rewards: Tensor  # composed, before any whitening
    advantages: Tensor
    returns: Tensor
    proximal_logprobs: Tensor  # nats, of the weights that the update begins with; the sampler's if not stale
    weights: Tensor  # of each token in the policy's loss; 1 if not stale
    weight_limit: float  # no weight is larger
    staleness: int  # updates between the weights that wrote the responses and those the update begins with
    metrics: Mapping[str, float]  # of the rollout, before the update
    beta: float  # of the KL penalty
    settings: RewardSettings

    @property
    def kl_nats(self) -> float:
        """KL(policy || reference) per response."""
        return self.metrics["kl_nats"]

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint in the middle of an update."""
        return {
            "rollout": self.rollout.to_state(),
            "values": self.values,
            "rewards": self.rewards,
            "advantages": self.advantages,
            "returns": self.returns,
            "proximal_logprobs": self.proximal_logprobs,
            "weights": self.weights,
            "weight_limit": self.weight_limit,
            "staleness": self.staleness,
            "metrics": dict(self.metrics),
            "beta": self.beta,
            "settings": asdict(self.settings),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Experience:
        """The inverse of ``to_state``."""
        return cls(
            rollout=Rollout.from_state(state["rollout"]),
            values=state["values"],
            rewards=state["rewards"],
            advantages=state["advantages"],
            returns=state["returns"],
            proximal_logprobs=state["proximal_logprobs"],
            weights=state["weights"],
            weight_limit=state["weight_limit"],
            staleness=state["staleness"],
            metrics=state["metrics"],
            beta=state["beta"],
            settings=RewardSettings(**state["settings"]),
        )


def evaluate_rollout(
    rollout: Rollout,
    values: Tensor,
    *,
    beta: float,
    settings: RewardSettings,
    proximal: Proximal | None = None,
) -> Experience:
    """Advantages and returns of a rollout. values: [R, L] float32, the value before each token, now.

    ``proximal`` is None where the weights that the update begins with wrote the responses.
    """
    responses = rollout.responses
    mask = responses.mask
    scores = replace_improper_scores(rollout.scores, responses.ended_properly, penalty=settings.penalty)
    kl = token_kl(responses.behaviour_logprobs, rollout.reference_logprobs, mask)
    rewards = compose_rewards(scores, kl, mask, beta=beta)
    total_rewards = sequence_sums(rewards, mask)
    learned_from = rewards
    if settings.whiten_rewards:
        learned_from = whiten(rewards, mask, subtract_mean=False)
    estimate = generalized_advantages(learned_from, values, mask, gamma=settings.gamma, lam=settings.lam)
    advantages = estimate.advantages
    if settings.whiten_advantages:
        advantages = whiten(advantages, mask, subtract_mean=True)
    proximal_logprobs = responses.behaviour_logprobs if proximal is None else proximal.logprobs
    weight_limit = 1.0 if proximal is None else proximal.weight_limit
    staleness = 0 if proximal is None else proximal.staleness
    weighing = behaviour_weights(proximal_logprobs, responses.behaviour_logprobs, mask, limit=weight_limit)
    kl_summary = summarize_kl(kl, mask)
    lengths = responses.lengths.float()
    metrics = {
        "score_mean": float(rollout.scores.mean()),
        "score_std": float(rollout.scores.std(correction=0)),
        "penalized_score_mean": float(scores.mean()),
        "reward_mean": float(total_rewards.mean()),
        "kl_nats": kl_summary.per_response,
        "kl_nats_per_token": kl_summary.per_token,
        "beta": beta,
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": float(lengths.max()),
        "missing_eos_ratio": float((~responses.ended_properly).float().mean()),
        "value_mean": float(values[mask].mean()),
        "return_mean": float(estimate.returns[mask].mean()),
        "episodes": float(len(lengths)),
        "staleness_updates": float(staleness),
    }
    if proximal is not None:
        metrics |= {
            "behaviour_weight_mean": weighing.mean,
            "behaviour_weight_max": weighing.largest,
            "behaviour_weight_truncated_ratio": weighing.truncated_ratio,
            "kl_behaviour_from_proximal_nats_per_token": weighing.kl_nats_per_token,
        }
    variance_explained = explained_variance(values, estimate.returns, mask)
    if torch.isfinite(torch.tensor(variance_explained)):  # undefined where all returns are equal
        metrics["explained_variance"] = variance_explained
    return Experience(
        rollout=rollout,
        values=values,
        rewards=rewards,
        advantages=advantages,
        returns=estimate.returns,
        proximal_logprobs=proximal_logprobs,
        weights=weighing.weights,
        weight_limit=weight_limit,
        staleness=staleness,
        metrics=metrics,
        beta=beta,
        settings=settings,
    )
