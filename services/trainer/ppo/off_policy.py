"""Decides how much a token counts that other weights wrote than those that an update begins with.

Decoupled PPO (Hilton, Cobbe and Schulman 2021, "Batch size-invariance for policy optimization", 2110.00641,
section 3): the behaviour policy wrote a token, the proximal policy is what an update begins with and must not
move far from. Clipping compares with the proximal policy alone; the weight here makes up for the distance
between the two. ``experience`` calls it once per update, ``losses.policy_loss`` takes what it gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from services.trainer.ppo.masking import masked_mean, require_same_shape, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourWeights:
    """Importance weights of tokens, and what is reported of them."""

    weights: Tensor  # [batch, response], the logprobs' dtype, bounded; 0 where the mask is False
    mean: float  # before the bound; 1 in expectation whatever the two policies are
    largest: float  # before the bound
    truncated_ratio: float  # share of tokens where the bound was lower than the weight
    kl_nats_per_token: float  # mean(behaviour - proximal): how far the proximal policy has moved on


def behaviour_weights(
    proximal_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, limit: float
) -> BehaviourWeights:
    """weight[t] = min(pi_proximal(a_t) / pi_behaviour(a_t), limit)   (2110.00641, section 3; truncated as
    in Ionides 2008).

    Sign: a token that the proximal policy gives more probability than the one that wrote it counts more.
    The bound costs a little bias and keeps a token that was improbable when it was written from ruling the
    gradient. proximal_logprobs, behaviour_logprobs: [batch, response], nats at the sampling temperature;
    equal ones give weights of exactly 1. Raises ValueError for a limit below 1, shapes that differ, and an
    empty mask.
    """
    require_same_shape(mask, proximal_logprobs, behaviour_logprobs)
    if not limit >= 1:
        raise ValueError(f"the limit of a weight is {limit:g}; below 1 on-policy tokens would be cut too")
    log_weight = zero_outside((proximal_logprobs - behaviour_logprobs).detach(), mask)
    ratio = log_weight.exp()
    return BehaviourWeights(
        weights=zero_outside(ratio.clamp(max=limit), mask),
        mean=float(masked_mean(ratio, mask)),
        largest=float(ratio[mask].max()),
        truncated_ratio=float(masked_mean((ratio > limit).to(ratio.dtype), mask)),
        kl_nats_per_token=-float(masked_mean(log_weight, mask)) + 0.0,
    )
