"""Decides how far the policy is from the reference, and how strongly that is punished.

``token_kl`` is the only place that subtracts reference from policy log-probabilities: the penalty inside the
reward and the KL in every report are the same numbers. The controllers choose beta from what was reported.

Sign: always policy minus reference. On responses that the policy sampled the mean is an estimate of
KL(policy || reference) and not negative but for noise; a mean that stays negative tells of a defect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from services.trainer.ppo.masking import masked_mean, require_same_shape, sequence_sums, zero_outside

KlEstimator = Literal["k1", "k2", "k3"]


def token_kl(
    policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, estimator: KlEstimator = "k1"
) -> Tensor:
    """One-sample estimate of KL(policy || reference) at every response token, in nats.

    policy_logprobs, reference_logprobs: [batch, response], log-probabilities of the tokens the policy
    sampled. Returns [batch, response], 0 where the mask is False.

    With d = policy - reference (Schulman 2020, "Approximating KL divergence"): k1 = d, unbiased, what S20,
    Z19 and N+ put into the reward; k2 = d^2 / 2, biased, low variance; k3 = exp(-d) - 1 + d, unbiased, never
    negative.
    """
    require_same_shape(mask, policy_logprobs, reference_logprobs)
    policy_minus_reference = zero_outside(policy_logprobs - reference_logprobs, mask)
    if estimator == "k1":
        return policy_minus_reference
    if estimator == "k2":
        return policy_minus_reference.square() / 2
    return torch.expm1(-policy_minus_reference) + policy_minus_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class KlSummary:
    """The KL of a batch in the two forms people quote, in nats."""

    # mean over responses of the sum over tokens; the papers' KL and the controller's input
    per_response: float
    per_token: float  # mean over all counting tokens


def summarize_kl(kl_nats: Tensor, mask: Tensor) -> KlSummary:
    """Summary of what ``token_kl`` returned. kl_nats: [batch, response]."""
    require_same_shape(mask, kl_nats)
    return KlSummary(
        per_response=float(sequence_sums(kl_nats, mask).mean()),
        per_token=float(masked_mean(kl_nats, mask)),
    )


class KlController(Protocol):
    """Chooses the coefficient of the KL penalty."""

    @property
    def beta(self) -> float:
        """The coefficient for the next batch, reward per nat."""
        ...

    def after(self, *, kl_nats: float, num_episodes: int) -> Self:
        """The controller after a batch with this KL per response."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedKlController:
    """The same beta throughout (S20 and N+: 0.05, I22: 0.02)."""

    beta: float

    def after(self, *, kl_nats: float, num_episodes: int) -> Self:
        """Unchanged."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKlController:
    """Steers the KL per response towards a target (Z19, section 2.2, in the form of the released code).

    error = clip(KL / target - 1, -0.2, 0.2);  beta <- beta * (1 + error * episodes / horizon).
    """

    beta: float
    target_nats: float
    # Z19's code; the paper writes a gain of 0.1 in place of episodes / horizon
    horizon_episodes: float = 10_000.0
    error_limit: float = 0.2

    def __post_init__(self) -> None:
        if self.target_nats <= 0 or self.horizon_episodes <= 0:
            raise ValueError("the target and the horizon must be positive")

    def after(self, *, kl_nats: float, num_episodes: int) -> Self:
        """A larger beta when the KL is above the target, a smaller one when it is below."""
        error = min(max(kl_nats / self.target_nats - 1, -self.error_limit), self.error_limit)
        return replace(self, beta=self.beta * (1 + error * num_episodes / self.horizon_episodes))
