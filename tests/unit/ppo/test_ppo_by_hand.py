"""The PPO maths against arithmetic done by hand, and what it does with unusual input."""

from __future__ import annotations

import math

import pytest
import torch

from services.trainer.ppo.advantages import generalized_advantages
from services.trainer.ppo.kl import AdaptiveKlController, token_kl
from services.trainer.ppo.losses import explained_variance, policy_loss, value_loss
from services.trainer.ppo.masking import masked_mean, response_mask
from services.trainer.ppo.noise_scale import noise_scale
from services.trainer.ppo.rewards import compose_rewards
from services.trainer.ppo.schedules import learning_rate_factor
from services.trainer.ppo.stopping import Cut, EosRule, PeriodRule
from services.trainer.ppo.whitening import whiten

NAN = float("nan")


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def everything(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones(tensor.shape, dtype=torch.bool)


def test_period_rule_ignores_full_stops_before_its_position() -> None:
    rule = PeriodRule(period_token_ids=frozenset({9}), after=3)
    assert rule.cut([9, 1, 9, 1, 9, 9, 2]) == Cut(length=5, ended_properly=True)
    assert rule.cut([1, 1, 1, 9]) == Cut(length=4, ended_properly=True)
    assert rule.cut([9, 9, 9, 1]) == Cut(length=4, ended_properly=False)
    assert rule.cut([9]) == Cut(length=1, ended_properly=False)


def test_eos_on_the_last_position_counts() -> None:
    rule = EosRule(eos_token_id=0)
    assert rule.cut([5, 0]) == Cut(length=2, ended_properly=True)
    assert rule.cut([5, 5]) == Cut(length=2, ended_properly=False)
    assert rule.penalty == -1.0


def test_reward_of_two_responses() -> None:
    # Row 0: KL 0.5 and -0.25 nats at beta 2 cost 1 and earn 0.5; its score 3 joins the second token.
    # Row 1: one token, KL 1, score -1: -2 - 1.
    policy = rows([-1.0, -2.0, NAN], [-1.0, NAN, NAN])
    reference = rows([-1.5, -1.75, NAN], [-2.0, 7.0, NAN])
    mask = response_mask(torch.tensor([2, 1]), 3)
    rewards = compose_rewards(rows([3.0, -1.0])[0], token_kl(policy, reference, mask), mask, beta=2.0)
    assert rewards.tolist() == [[-1.0, 3.5, 0.0], [-3.0, 0.0, 0.0]]


def test_advantages_of_three_tokens() -> None:
    # gamma 1/2, lambda 1/2. delta_2 = 4 - 2 = 2; delta_1 = 1 + 2/2 - 3 = -1; delta_0 = 0 + 3/2 - 1 = 0.5.
    # A_2 = 2; A_1 = -1 + 2/4 = -0.5; A_0 = 0.5 - 0.5/4 = 0.375.
    rewards, values = rows([0.0, 1.0, 4.0, NAN]), rows([1.0, 3.0, 2.0, NAN])
    estimate = generalized_advantages(
        rewards, values, response_mask(torch.tensor([3]), 4), gamma=0.5, lam=0.5
    )
    assert estimate.advantages.tolist() == [[0.375, -0.5, 2.0, 0.0]]
    assert estimate.returns.tolist() == [[1.375, 2.5, 4.0, 0.0]]


def test_whitening_of_minus_one_and_three() -> None:
    # Mean 1, population variance 4.
    values = rows([-1.0, 3.0, NAN])
    mask = response_mask(torch.tensor([2]), 3)
    torch.testing.assert_close(whiten(values, mask, subtract_mean=True), rows([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(whiten(values, mask, subtract_mean=False), rows([0.0, 2.0, 0.0]))


def test_policy_loss_of_one_clipped_and_one_free_token() -> None:
    # Ratios 2 and 1/2. A = 1 at ratio 2 is clipped at 1.2: loss -1.2. A = -1 at ratio 1/2 is clipped at 0.8:
    # +0.8.
    new = rows([math.log(2.0), math.log(0.5)])
    loss = policy_loss(new, torch.zeros_like(new), rows([1.0, -1.0]), everything(new), clip_ratio=0.2)
    assert loss.loss.item() == pytest.approx((-1.2 + 0.8) / 2)
    assert loss.clip_fraction.item() == 1.0
    assert loss.ratio_mean.item() == pytest.approx(1.25)
    assert (loss.ratio_min.item(), loss.ratio_max.item()) == (pytest.approx(0.5), pytest.approx(2.0))
    # The other signs: going back towards the old policy is never clipped.
    back = policy_loss(new, torch.zeros_like(new), rows([-1.0, 1.0]), everything(new), clip_ratio=0.2)
    assert back.loss.item() == pytest.approx((2.0 - 0.5) / 2)
    assert back.clip_fraction.item() == 0.0


def test_value_loss_takes_the_larger_error() -> None:
    # v 1, old 0, clipped to 0.2; R 1: errors 0 and 0.64. v -1 clipped to -0.2; R 0: errors 1 and 0.04.
    new, old, returns = rows([1.0, -1.0]), rows([0.0, 0.0]), rows([1.0, 0.0])
    loss = value_loss(new, old, returns, everything(new), clip_value=0.2)
    assert loss.loss.item() == pytest.approx(0.5 * (0.64 + 1.0) / 2)
    assert loss.clip_fraction.item() == 0.5
    assert loss.error.item() == pytest.approx(-0.5)
    assert value_loss(new, old, returns, everything(new), clip_value=None).loss.item() == pytest.approx(0.25)


def test_pieces_of_a_minibatch_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn((3, 4, 6), generator=generator, dtype=torch.float64)
    mask = response_mask(torch.tensor([6, 1, 3, 5]), 6)
    whole = policy_loss(new, old, advantages, mask)
    whole_value = value_loss(new, old, advantages, mask)
    tokens = int(mask.sum())
    for name in ["loss", "clip_fraction", "approx_kl", "approx_kl_k1", "approx_kl_k3", "ratio_mean"]:
        pieces = [
            getattr(policy_loss(new[s], old[s], advantages[s], mask[s], num_tokens=tokens), name)
            for s in (slice(0, 1), slice(1, 4))
        ]
        torch.testing.assert_close(sum(pieces), getattr(whole, name))
    value_pieces = [
        value_loss(new[s], old[s], advantages[s], mask[s], num_tokens=tokens).loss
        for s in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(value_pieces), whole_value.loss)


def test_explained_variance() -> None:
    returns = rows([1.0, 2.0, 3.0, 99.0])
    mask = response_mask(torch.tensor([3]), 4)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros_like(returns), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))


def test_kl_of_a_token_twice_as_likely_as_under_the_reference() -> None:
    policy, reference = rows([math.log(0.5)]), rows([math.log(0.25)])
    mask = everything(policy)
    assert token_kl(policy, reference, mask).item() == pytest.approx(math.log(2))
    assert token_kl(policy, reference, mask, estimator="k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert token_kl(policy, reference, mask, estimator="k3").item() == pytest.approx(0.5 - 1 + math.log(2))


def test_adaptive_controller_moves_at_most_a_fifth_of_its_gain() -> None:
    controller = AdaptiveKlController(beta=1.0, target_nats=5.0, horizon_episodes=100)
    assert controller.after(kl_nats=500.0, num_episodes=50).beta == pytest.approx(1.1)
    assert controller.after(kl_nats=-500.0, num_episodes=50).beta == pytest.approx(0.9)
    assert controller.after(kl_nats=5.0, num_episodes=50).beta == 1.0
    with pytest.raises(ValueError, match="positive"):
        AdaptiveKlController(beta=1.0, target_nats=0.0)


def test_constant_schedule_and_bounds() -> None:
    assert [learning_rate_factor(s, 4, kind="constant", warmup_steps=2) for s in range(4)] == [
        0.0,
        0.5,
        1.0,
        1.0,
    ]
    assert learning_rate_factor(9, 4, kind="linear") == 0.0
    for step, total, warmup in [(-1, 4, 0), (0, 0, 0), (0, 4, 5)]:
        with pytest.raises(ValueError, match="do not fit"):
            learning_rate_factor(step, total, kind="linear", warmup_steps=warmup)


def test_noise_scale_needs_two_sizes() -> None:
    with pytest.raises(ValueError, match="smaller"):
        noise_scale(sq_norm_small=1.0, sq_norm_big=1.0, small=4, big=4)


def test_what_does_not_fit_is_refused() -> None:
    values = rows([1.0, 2.0])
    with pytest.raises(ValueError, match="bool"):
        whiten(values, torch.ones_like(values), subtract_mean=True)
    with pytest.raises(ValueError, match="no token"):
        whiten(values, torch.zeros_like(values, dtype=torch.bool), subtract_mean=True)
    with pytest.raises(ValueError, match="shape"):
        policy_loss(values, values, values[:, :1], everything(values))
    with pytest.raises(ValueError, match="scores"):
        compose_rewards(torch.zeros(2), values, everything(values), beta=0.1)
    with pytest.raises(ValueError, match="without tokens"):
        compose_rewards(torch.zeros(2), torch.zeros(2, 2), response_mask(torch.tensor([2, 0]), 2), beta=0.1)


def test_padding_may_hold_anything() -> None:
    mask = response_mask(torch.tensor([2, 1]), 3)
    new = rows([0.1, -0.2, NAN], [0.3, NAN, NAN]).requires_grad_()
    old = rows([0.0, 0.0, NAN], [0.0, NAN, 1.0])
    advantages = rows([1.0, -1.0, NAN], [2.0, NAN, NAN])
    policy = policy_loss(new, old, advantages, mask)
    value = value_loss(new, old, advantages, mask)
    (gradient,) = torch.autograd.grad(policy.loss + value.loss, new)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert masked_mean(new.detach(), mask).item() == pytest.approx((0.1 - 0.2 + 0.3) / 3)
