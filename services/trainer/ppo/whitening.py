"""Decides the scale (and, where wanted, the centre) of a batch of rewards or advantages.

Advantages are whitened with ``subtract_mean=True`` in every recipe. Rewards are whitened only in tasks of
Z19's kind, with ``subtract_mean=False``: a shift of the rewards would change which responses are worth
continuing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.trainer.ppo.masking import masked_mean, require_same_shape, zero_outside


def whiten(values: Tensor, mask: Tensor, *, subtract_mean: bool, epsilon: float = 1e-8) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon), with the mean added back unless ``subtract_mean``.

    Mean and variance are pooled over the counting tokens of the whole batch; the variance is the population
    one (Z19's utils/core.py, N+; TRL and torchtune divide by n - 1). Computed in float64, so that a constant
    input whitens to 0 instead of to amplified rounding.

    values: [batch, response]. Returns the same shape and dtype, 0 where the mask is False.
    """
    require_same_shape(mask, values)
    exact = values.double()
    mean = masked_mean(exact, mask)
    variance = masked_mean((exact - mean).square(), mask)
    whitened = (exact - mean) * torch.rsqrt(variance + epsilon)
    if not subtract_mean:
        whitened = whitened + mean
    return zero_outside(whitened, mask).to(values.dtype)
