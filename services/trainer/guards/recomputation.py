"""Rewards, advantages, returns and weights of a rollout, computed a second time and in another way.

Written on purpose without a line of ``services.trainer.ppo``: response by response, in float64, from what the
services answered. The composition guard compares the two, so that a change of one of them, such as a flipped
sign, does not pass unseen. Whoever changes the objective changes both, knowingly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputedExperience:
    """One row per response, as long as the response."""

    rewards: list[Row]
    advantages: list[Row]
    returns: list[Row]
    weights: list[Row]


def recompute(
    *,
    policy_logprobs: Sequence[Row],
    proximal_logprobs: Sequence[Row],
    reference_logprobs: Sequence[Row],
    scores: Sequence[float],
    ended_properly: Sequence[bool],
    values: Sequence[Row],
    beta: float,
    penalty: float,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
    whiten_advantages: bool,
    weight_limit: float,
) -> RecomputedExperience:
    """S20 section 3.4, Schulman et al. 2015 eq. 16 and Hilton et al. 2021 section 3, term by term.

    Rows as in the rollout; ``policy_logprobs`` are those of the version that wrote it.
    """
    rewards: list[Row] = []
    for policy, reference, score, proper in zip(
        policy_logprobs, reference_logprobs, scores, ended_properly, strict=True
    ):
        row = beta * (reference - policy)
        row[-1] += score if proper else penalty
        rewards.append(row)
    learned_from = _scaled(rewards) if whiten_rewards else rewards
    advantages = [
        _advantages(row, value, gamma, lam) for row, value in zip(learned_from, values, strict=True)
    ]
    returns = [advantage + value for advantage, value in zip(advantages, values, strict=True)]
    if whiten_advantages:
        advantages = _centred(advantages)
    weights = [
        np.exp(np.minimum(proximal - policy, np.log(weight_limit)))
        for proximal, policy in zip(proximal_logprobs, policy_logprobs, strict=True)
    ]
    return RecomputedExperience(rewards=rewards, advantages=advantages, returns=returns, weights=weights)


def _advantages(rewards: Row, values: Row, gamma: float, lam: float) -> Row:
    """The sum over later surprises, written out: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    count = len(rewards)
    surprises = rewards + gamma * np.append(values[1:], 0.0) - values
    lag = np.arange(count)[None, :] - np.arange(count)[:, None]
    weights = np.where(lag >= 0, (gamma * lam) ** np.maximum(lag, 0).astype(np.float64), 0.0)
    return weights @ surprises


def _centred(rows: Sequence[Row]) -> list[Row]:
    flat = np.concatenate(rows)
    deviation = np.sqrt(flat.var() + 1e-8)
    return [(row - flat.mean()) / deviation for row in rows]


def _scaled(rows: Sequence[Row]) -> list[Row]:
    flat = np.concatenate(rows)
    mean, deviation = flat.mean(), np.sqrt(flat.var() + 1e-8)
    return [(row - mean) / deviation + mean for row in rows]
