"""Decides how much better each token did than the value function expected.

Called once per batch by the rollout, on rewards that may have been whitened; the advantages come out
unwhitened.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.ppo.masking import require_same_shape, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageEstimate:
    """What generalized advantage estimation gives for a batch."""

    advantages: Tensor  # [batch, response], 0 where the mask is False
    returns: Tensor  # [batch, response], advantages + values: the target of the value function; 0 likewise


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> AdvantageEstimate:
    """Generalized advantage estimation (Schulman et al. 2015, 1506.02438, eq. 16). Defaults: Z19, S20, N+.

    delta[t] = reward[t] + gamma * value[t+1] - value[t];  advantage[t] = delta[t] + gamma * lam *
    advantage[t+1]. The episode ends with the last response token: the value after it is 0, nothing is
    bootstrapped. Sign: positive means better than expected.

    rewards, values: [batch, response]; values[t] is the estimate before token t is chosen. mask: True on a
    prefix of every row.
    """
    require_same_shape(mask, rewards, values)
    rewards = zero_outside(rewards, mask)
    values = zero_outside(values, mask)
    width = mask.shape[1]
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(width)):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = surprise + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    # Past the end rewards and values are 0, so the recursion reaches the last token with nothing carried
    # over.
    return AdvantageEstimate(advantages=advantages, returns=advantages + values)
