"""Decides which token each running sequence gets next, and what its log-probability is.

The engine calls it once per step with the logits of all running sequences. Randomness comes in from outside
as one uniform number per sequence, so a choice depends on nothing but logits, settings and that number.
Penalties, top-k and other reshaping of the distribution are left out on purpose: the trainer recomputes
log-probabilities from plain logits and a temperature, and the two must agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Uniform numbers are multiples of 2^-23: u * total is then strictly below total in float32, so that inverting
# the cumulative distribution can never run past its end.
UNIFORM_STEPS = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How each row of a batch of logits is to be sampled. Rows are sequences."""

    divisors: Tensor | None  # [rows, 1] float32, the temperature; 1 for greedy rows; None when all are 1
    greedy_rows: Tensor | None  # [greedy rows] int64 indices; None when there are none
    nucleus_rows: (
        Tensor | None
    )  # [nucleus rows] int64 indices of rows with top_p < 1; None when there are none
    top_p: Tensor | None  # [nucleus rows, 1] float32
    all_greedy: bool

    @classmethod
    def of_rows(
        cls, *, temperatures: NDArray[np.float32], top_p: NDArray[np.float32], device: torch.device
    ) -> SamplingSettings:
        """Sort out which rows need what; both arrays are [rows]."""
        greedy = temperatures == 0
        nucleus = (top_p < 1) & ~greedy
        divisors = np.where(greedy, np.float32(1), temperatures)
        return cls(
            divisors=None if (divisors == 1).all() else torch.from_numpy(divisors[:, None]).to(device),
            greedy_rows=torch.from_numpy(greedy.nonzero()[0]).to(device) if greedy.any() else None,
            nucleus_rows=torch.from_numpy(nucleus.nonzero()[0]).to(device) if nucleus.any() else None,
            top_p=torch.from_numpy(top_p[nucleus][:, None]).to(device) if nucleus.any() else None,
            all_greedy=bool(greedy.all()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The tokens drawn at one step."""

    tokens: Tensor  # [rows] int64
    logprobs: (
        Tensor  # [rows] float32, log softmax(logits / temperature) at the token; NaN if the logits hold NaN
    )


def draw_uniforms(*, seed: int, sequence_count: int, step_count: int) -> Tensor:
    """Uniform numbers in [0, 1) for a call, [sequence_count, step_count] float32, from its seed alone.

    Drawing them all at the start makes a sequence's numbers independent of what else is running.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(UNIFORM_STEPS, (sequence_count, step_count), generator=generator)
    return steps.to(torch.float32) / UNIFORM_STEPS


def choose_tokens(logits: Tensor, settings: SamplingSettings, uniforms: Tensor) -> Choice:
    """Draw one token per row. ``logits`` is [rows, vocabulary] float32 and is overwritten; ``uniforms``
    [rows].
    """
    maxima, most_probable = logits.max(dim=1, keepdim=True)
    # The maximum is taken off before dividing: no temperature, however small, then overflows.
    shifted = logits.sub_(maxima)
    if settings.divisors is not None:
        shifted.div_(settings.divisors)
    weights = shifted.exp()  # unnormalised probabilities, the largest is 1
    if settings.all_greedy:
        logprobs = -weights.sum(dim=1).log()
        return Choice(tokens=most_probable.squeeze(1), logprobs=logprobs)
    cumulative = weights.cumsum(dim=1)
    totals = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniforms.unsqueeze(1) * totals, right=True)
    if settings.nucleus_rows is not None and settings.top_p is not None:
        rows = settings.nucleus_rows
        tokens[rows] = _choose_in_nucleus(weights[rows], settings.top_p, uniforms[rows].unsqueeze(1))
    if settings.greedy_rows is not None:
        tokens[settings.greedy_rows] = most_probable[settings.greedy_rows]
    # Only NaN logits run past the end; the index is kept valid and the NaN shows in the log-probability.
    tokens.clamp_(max=logits.shape[1] - 1)
    logprobs = shifted.gather(1, tokens) - totals.log()
    return Choice(tokens=tokens.squeeze(1), logprobs=logprobs.squeeze(1))


def _choose_in_nucleus(weights: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from the smallest set of most probable tokens that holds ``top_p`` of the mass.

    ``weights`` [rows, vocabulary], ``top_p`` and ``uniforms`` [rows, 1]; returns [rows, 1] int64.
    """
    ordered, order = weights.sort(dim=1, descending=True, stable=True)
    cumulative = ordered.cumsum(dim=1)
    last_kept = torch.searchsorted(cumulative, top_p * cumulative[:, -1:])
    last_kept.clamp_(max=weights.shape[1] - 1)
    kept_mass = cumulative.gather(1, last_kept)
    drawn = torch.searchsorted(cumulative, uniforms * kept_mass, right=True)
    return order.gather(1, torch.minimum(drawn, last_kept))
