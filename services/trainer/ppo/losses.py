"""Decides what PPO minimises: the clipped policy loss and the clipped value loss, with what is reported of
them.

The PPO stage calls these on each piece of a minibatch. When a minibatch is passed through in several pieces,
give every piece the minibatch's ``num_tokens``: all means below are then shares that add up over the pieces
(the extremes of the ratio do not).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.ppo.masking import masked_mean, require_same_shape, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The policy's loss and statistics, each a scalar tensor. Only ``loss`` carries a gradient."""

    loss: Tensor
    clip_fraction: Tensor  # share of tokens where the clipped term is strictly the larger one (Z19)
    approx_kl: Tensor  # 0.5 * mean((new - old)^2), nats per token: how far this update has moved the policy
    approx_kl_k1: Tensor  # mean(old - new), nats per token
    approx_kl_k3: Tensor  # mean(ratio - 1 - log ratio), nats per token
    ratio_mean: Tensor
    ratio_min: Tensor
    ratio_max: Tensor


def policy_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    clip_ratio: float = 0.2,
    num_tokens: int | None = None,
) -> PolicyLoss:
    """mean(w * max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c))), ratio = exp(new - old)  (Schulman et al.
    2017, eq. 7; with weights Hilton et al. 2021, section 3).

    Sign: a loss, to be minimised; a positive advantage pushes the token's log-probability up.
    new_logprobs, old_logprobs, advantages: [batch, response], any float dtype; only ``new_logprobs`` is
    differentiated. Advantages come in whitened or not, as the caller decided. ``old_logprobs`` are those of
    the weights that the update began with. weights: [batch, response], at least 0, as
    ``off_policy.behaviour_weights`` gives them; None where these very weights wrote the tokens.
    """
    require_same_shape(mask, new_logprobs, old_logprobs, advantages)
    if weights is not None:
        require_same_shape(mask, weights)
    log_ratio = zero_outside(new_logprobs - old_logprobs.detach(), mask)
    ratio = log_ratio.exp()
    advantages = zero_outside(advantages.detach(), mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    larger = torch.maximum(unclipped, clipped)
    if weights is not None:
        larger = zero_outside(weights.detach(), mask) * larger
    with torch.no_grad():
        counting_ratio = ratio[mask]
        clip_fraction = masked_mean((clipped > unclipped).to(ratio.dtype), mask, num_tokens=num_tokens)
        approx_kl = 0.5 * masked_mean(log_ratio.square(), mask, num_tokens=num_tokens)
        approx_kl_k1 = -masked_mean(log_ratio, mask, num_tokens=num_tokens)
        approx_kl_k3 = masked_mean(torch.expm1(log_ratio) - log_ratio, mask, num_tokens=num_tokens)
        ratio_mean = masked_mean(ratio, mask, num_tokens=num_tokens)
    return PolicyLoss(
        loss=masked_mean(larger, mask, num_tokens=num_tokens),
        clip_fraction=clip_fraction,
        approx_kl=approx_kl,
        approx_kl_k1=approx_kl_k1,
        approx_kl_k3=approx_kl_k3,
        ratio_mean=ratio_mean,
        ratio_min=counting_ratio.detach().min(),
        ratio_max=counting_ratio.detach().max(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """The value function's loss and statistics, each a scalar tensor. Only ``loss`` carries a gradient."""

    loss: Tensor
    clip_fraction: Tensor  # share of tokens where the clipped term is strictly the larger one
    error: Tensor  # mean(value - return): positive when the value function hopes for too much


def value_loss(
    new_values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_value: float | None = 0.2,
    num_tokens: int | None = None,
) -> ValueLoss:
    """0.5 * mean(max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2))  (Z19, N+).

    ``clip_value=None`` drops the clipped term. The coefficient (0.1 in Z19, N+) is the caller's.
    new_values, old_values, returns: [batch, response]; only ``new_values`` is differentiated.
    """
    require_same_shape(mask, new_values, old_values, returns)
    new_values = zero_outside(new_values, mask)
    returns = zero_outside(returns.detach(), mask)
    squared_error = (new_values - returns).square()
    larger = squared_error
    clip_fraction = torch.zeros_like(squared_error[mask][0]).detach()
    if clip_value is not None:
        old_values = zero_outside(old_values.detach(), mask)
        clipped_values = torch.clamp(new_values, old_values - clip_value, old_values + clip_value)
        clipped_error = (clipped_values - returns).square()
        larger = torch.maximum(squared_error, clipped_error)
        chosen = (clipped_error > squared_error).to(squared_error.dtype).detach()
        clip_fraction = masked_mean(chosen, mask, num_tokens=num_tokens)
    return ValueLoss(
        loss=0.5 * masked_mean(larger, mask, num_tokens=num_tokens),
        clip_fraction=clip_fraction,
        error=masked_mean((new_values - returns).detach(), mask, num_tokens=num_tokens),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the counting tokens; 1 is perfect, 0 no better than a
    constant.

    values, returns: [batch, response]. NaN when the returns do not vary.
    """
    require_same_shape(mask, values, returns)
    wanted = returns[mask].double()
    residual = wanted - values[mask].double()
    variance = float(wanted.var(correction=0))
    return 1.0 - float(residual.var(correction=0)) / variance if variance > 0 else float("nan")
