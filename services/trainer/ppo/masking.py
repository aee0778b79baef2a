"""Decides which tokens count, and how a mean over them is taken.

Every other module here builds on these four functions. A mean is always pooled over all counting tokens of
the batch (N+, TRL, Z19): a long response weighs more than a short one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """True on the first ``lengths[i]`` tokens of row i.

    lengths: [batch], integer. Returns [batch, width], bool.
    """
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def require_same_shape(mask: Tensor, *tensors: Tensor) -> None:
    """Raise ValueError unless ``mask`` is bool, counts something, and all tensors share its shape."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    for tensor in tensors:
        if tensor.shape != mask.shape:
            raise ValueError(f"shape {tuple(tensor.shape)} does not fit the mask's {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise ValueError("no token counts")


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is True, exactly 0 elsewhere, whatever stood there (NaN too)."""
    return torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Tensor, mask: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """Mean over the counting tokens of the whole batch. Any shape in, scalar out.

    ``num_tokens`` is the divisor when the batch at hand is one piece of a larger one: the pieces' means then
    add up to the mean of the whole.
    """
    divisor = mask.sum() if num_tokens is None else num_tokens
    return zero_outside(values, mask).sum() / divisor


def sequence_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row's counting tokens. [batch, response] in, [batch] out."""
    return zero_outside(values, mask).sum(dim=1)
