"""Decides where a response ends and what becomes of one that ends wrongly.

The rollout cuts each sampled response with a rule before anything else reads it: the reward model, the
log-probabilities and the loss see the same tokens. Working on ids, not text, keeps it independent of
tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a rule ends a response.

    ``length`` counts the tokens that stay, the one that ends the response included. ``ended_properly`` is
    False when that token never came; all tokens stay then.
    """

    length: int
    ended_properly: bool


class StopRule(Protocol):
    """How responses end in a task."""

    @property
    def penalty(self) -> float:
        """The score of a response that does not end properly, whatever the reward model says of it."""
        ...

    def cut(self, token_ids: Sequence[int]) -> Cut:
        """Where this response ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EosRule:
    """A response ends with its first end-of-sequence token (S20, N+)."""

    eos_token_id: int
    penalty: float = -1.0  # N+ and Z19's penalty_reward_value

    def cut(self, token_ids: Sequence[int]) -> Cut:
        """Keep everything up to and including the first end-of-sequence token."""
        for index, token_id in enumerate(token_ids):
            if token_id == self.eos_token_id:
                return Cut(length=index + 1, ended_properly=True)
        return Cut(length=len(token_ids), ended_properly=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRule:
    """A response ends with the first full stop at or after a position (Z19: position 16 of 24).

    ``period_token_ids`` are all tokens that carry the full stop. A full stop at an index below ``after``
    (from 0) does not end the response.
    """

    period_token_ids: frozenset[int]
    after: int = 16  # Z19 truncate_after
    penalty: float = -1.0  # Z19 penalty_reward_value

    def cut(self, token_ids: Sequence[int]) -> Cut:
        """Keep everything up to and including the first full stop whose index is at least ``after``."""
        for index in range(self.after, len(token_ids)):
            if token_ids[index] in self.period_token_ids:
                return Cut(length=index + 1, ended_properly=True)
        return Cut(length=len(token_ids), ended_properly=False)


def replace_improper_scores(scores: Tensor, ended_properly: Tensor, *, penalty: float) -> Tensor:
    """Scores with the penalty in place of (not in addition to) the score of each improper response (Z19, N+).

    scores: [batch], float. ended_properly: [batch], bool. Returns [batch].
    """
    return torch.where(ended_properly, scores, torch.full_like(scores, penalty))
