"""Decides the reward of every response token.

The rollout calls this with scores that the stop rule has already been applied to (``stopping``) and with the
KL that is also reported (``kl.token_kl``). Whitening of rewards is a step of its own (``whitening``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.trainer.ppo.masking import require_same_shape, zero_outside


def compose_rewards(scores: Tensor, kl_nats: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """reward[t] = -beta * kl[t] + (score if t is the last response token else 0)   (S20, eq. in section 3.4;
    Z19).

    Sign: being away from the reference costs (beta > 0, kl = policy minus reference); a high score pays.
    The score stands on the last token of the response itself, the end-of-sequence token when there is one; N+
    and TRL put it one place further.

    scores: [batch], float. kl_nats: [batch, response], float, as ``token_kl`` gives it. mask: [batch,
    response]; every row counts at least one token. Returns [batch, response], 0 where the mask is False.
    """
    require_same_shape(mask, kl_nats)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected ({mask.shape[0]},)")
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1)  # [batch]
    if bool((last < 0).any()):
        raise ValueError("a response without tokens has no place for its score")
    score_at_last = zero_outside(scores[:, None].expand_as(mask), positions[None, :] == last[:, None])
    return zero_outside(-beta * kl_nats, mask) + score_at_last
