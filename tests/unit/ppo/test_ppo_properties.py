"""What must hold of the PPO maths for any numbers: signs, invariances, gradients against finite
differences.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.trainer.ppo.advantages import generalized_advantages
from services.trainer.ppo.kl import AdaptiveKlController, token_kl
from services.trainer.ppo.losses import policy_loss, value_loss
from services.trainer.ppo.masking import masked_mean, response_mask, sequence_sums
from services.trainer.ppo.rewards import compose_rewards
from services.trainer.ppo.schedules import learning_rate_factor
from services.trainer.ppo.whitening import whiten

WIDTH = 5
lengths_lists = st.lists(st.integers(1, WIDTH), min_size=1, max_size=4)
seeds = st.integers(0, 2**31 - 1)
bounded = settings(max_examples=60, deadline=None)


def draw(seed: int, count: int, rows: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(scale * torch.randn((count, rows, WIDTH), generator=generator, dtype=torch.float64))


@bounded
@given(lengths=lengths_lists, seed=seeds)
def test_kl_of_a_policy_with_itself_is_zero(lengths: list[int], seed: int) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    (logprobs,) = draw(seed, 1, len(lengths))
    for estimator in ("k1", "k2", "k3"):
        assert (token_kl(logprobs, logprobs, mask, estimator=estimator) == 0).all()


@bounded
@given(seed=seeds)
def test_k3_is_never_negative_and_k1_changes_sign_with_direction(seed: int) -> None:
    policy, reference = draw(seed, 2, 3)
    mask = response_mask(torch.tensor([5, 2, 1]), WIDTH)
    assert (token_kl(policy, reference, mask, estimator="k3") >= 0).all()
    assert torch.equal(token_kl(policy, reference, mask), -token_kl(reference, policy, mask))


@bounded
@given(lengths=lengths_lists, seed=seeds, beta=st.floats(0.01, 1.0), factor=st.floats(1.1, 5.0))
def test_a_larger_beta_lowers_the_reward_of_a_response_that_deviates(
    lengths: list[int], seed: int, beta: float, factor: float
) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    policy, reference = draw(seed, 2, len(lengths))
    kl = token_kl(policy, reference, mask, estimator="k3")
    scores = draw(seed + 1, 1, len(lengths))[0][:, 0]
    gentle = sequence_sums(compose_rewards(scores, kl, mask, beta=beta), mask)
    strict = sequence_sums(compose_rewards(scores, kl, mask, beta=beta * factor), mask)
    assert (strict < gentle).all()


@bounded
@given(lengths=lengths_lists, seed=seeds, beta=st.floats(0.0, 1.0), raise_by=st.floats(0.001, 10.0))
def test_a_higher_score_raises_the_reward_by_as_much(
    lengths: list[int], seed: int, beta: float, raise_by: float
) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    policy, reference = draw(seed, 2, len(lengths))
    kl = token_kl(policy, reference, mask)
    scores = torch.zeros(len(lengths), dtype=torch.float64)
    before = compose_rewards(scores, kl, mask, beta=beta)
    after = compose_rewards(scores + raise_by, kl, mask, beta=beta)
    raised = sequence_sums(after - before, mask)
    torch.testing.assert_close(raised, torch.full_like(raised, raise_by))
    assert ((after - before) != 0).sum() == len(lengths)


@bounded
@given(lengths=lengths_lists, seed=seeds, gamma=st.floats(0.0, 1.0))
def test_lambda_one_is_reward_to_go_minus_value(lengths: list[int], seed: int, gamma: float) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    rewards, values = draw(seed, 2, len(lengths))
    estimate = generalized_advantages(rewards, values, mask, gamma=gamma, lam=1.0)
    for row, length in enumerate(lengths):
        for start in range(length):
            to_go = sum(gamma ** (t - start) * float(rewards[row, t]) for t in range(start, length))
            assert float(estimate.returns[row, start]) == pytest.approx(to_go, abs=1e-9)
    assert (estimate.advantages[~mask] == 0).all()
    assert (estimate.returns[~mask] == 0).all()


@bounded
@given(lengths=lengths_lists, seed=seeds)
def test_advantages_vanish_when_the_values_are_perfect(lengths: list[int], seed: int) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    (rewards,) = draw(seed, 1, len(lengths))
    rewards = torch.where(mask, rewards, 0.0)
    perfect = rewards.flip(1).cumsum(1).flip(1)
    estimate = generalized_advantages(rewards, perfect, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(estimate.advantages, torch.zeros_like(rewards))


@bounded
@given(
    lengths=st.lists(st.integers(2, WIDTH), min_size=1, max_size=4), seed=seeds, scale=st.floats(0.1, 100.0)
)
def test_whitened_values_have_mean_zero_and_variance_one(lengths: list[int], seed: int, scale: float) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    (values,) = draw(seed, 1, len(lengths), scale)
    whitened = whiten(values + 7.0, mask, subtract_mean=True)[mask]
    assert float(whitened.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(whitened.var(correction=0)) == pytest.approx(1.0, abs=1e-3)
    kept = whiten(values + 7.0, mask, subtract_mean=False)[mask]
    assert float(kept.mean()) == pytest.approx(float((values + 7.0)[mask].mean()))


@bounded
@given(lengths=st.lists(st.integers(2, WIDTH), min_size=1, max_size=4), seed=seeds)
def test_flipping_the_rewards_flips_the_gradient(lengths: list[int], seed: int) -> None:
    mask = response_mask(torch.tensor(lengths), WIDTH)
    rewards, values, logprobs = draw(seed, 3, len(lengths))

    def gradient(sign: float) -> Tensor:
        estimate = generalized_advantages(sign * rewards, sign * values, mask)
        advantages = whiten(estimate.advantages, mask, subtract_mean=True)
        new = logprobs.clone().requires_grad_()
        (result,) = torch.autograd.grad(policy_loss(new, logprobs, advantages, mask).loss, new)
        return result

    torch.testing.assert_close(gradient(-1.0), -gradient(1.0))


@bounded
@given(seed=seeds)
def test_descending_the_policy_loss_makes_good_tokens_likelier(seed: int) -> None:
    logprobs, advantages = draw(seed, 2, 2)
    mask = response_mask(torch.tensor([5, 3]), WIDTH)
    new = logprobs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(policy_loss(new, logprobs, advantages, mask).loss, new)
    assert torch.equal(torch.sign(-gradient[mask]), torch.sign(advantages[mask]))


@bounded
@given(seed=seeds)
def test_the_clipped_losses_are_never_below_the_unclipped_ones(seed: int) -> None:
    new, old, advantages = draw(seed, 3, 3)
    mask = response_mask(torch.tensor([5, 4, 1]), WIDTH)
    free = -masked_mean(advantages * (new - old).exp(), mask)
    assert policy_loss(new, old, advantages, mask).loss >= free - 1e-12
    assert (
        value_loss(new, old, advantages, mask, clip_value=0.2).loss
        >= value_loss(new, old, advantages, mask, clip_value=None).loss - 1e-12
    )


@pytest.mark.parametrize("seed", range(4))
def test_gradients_agree_with_finite_differences(seed: int) -> None:
    # Random points lie off the kinks of max and clip, where the losses are smooth.
    new, old, advantages = draw(seed, 3, 3, scale=0.3)
    mask = response_mask(torch.tensor([5, 2, 4]), WIDTH)
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, mask).loss, (new,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, advantages, mask).loss, (new,))
    assert torch.autograd.gradcheck(lambda x: token_kl(x, old, mask, estimator="k3").sum(), (new,))


@bounded
@given(kl=st.floats(-50, 50), episodes=st.integers(1, 1000))
def test_the_controller_steers_towards_its_target(kl: float, episodes: int) -> None:
    controller = AdaptiveKlController(beta=0.1, target_nats=6.0)
    beta = controller.after(kl_nats=kl, num_episodes=episodes).beta
    assert beta > 0
    assert (beta > 0.1) == (kl > 6.0) or beta == 0.1


@bounded
@given(total=st.integers(1, 500), warmup_share=st.floats(0, 1), final_ratio=st.floats(0, 1))
def test_schedules_rise_then_fall_within_bounds(total: int, warmup_share: float, final_ratio: float) -> None:
    warmup = int(total * warmup_share)
    for kind in ("linear", "cosine", "constant"):
        factors = [
            learning_rate_factor(step, total, kind=kind, warmup_steps=warmup, final_ratio=final_ratio)
            for step in range(total + 1)
        ]
        assert all(-1e-12 <= factor <= 1 + 1e-12 for factor in factors)
        assert factors[:warmup] == sorted(factors[:warmup])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
        assert factors[warmup] == pytest.approx(1.0) or warmup == total
