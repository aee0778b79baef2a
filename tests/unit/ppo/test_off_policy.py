"""The decoupled objective against arithmetic by hand, plain autograd, and what must hold in any case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.trainer.ppo.losses import policy_loss
from services.trainer.ppo.masking import response_mask
from services.trainer.ppo.off_policy import behaviour_weights

LN2 = math.log(2.0)


def test_weights_by_hand() -> None:
    # Twice, half and eight times as probable as when it was written; the last is cut to 3.
    behaviour = torch.tensor([[-2.0, -1.0, -4.0, 99.0]], dtype=torch.float64)
    proximal = behaviour + torch.tensor([[LN2, -LN2, 3 * LN2, 50.0]], dtype=torch.float64)
    mask = response_mask(torch.tensor([3]), 4)
    found = behaviour_weights(proximal, behaviour, mask, limit=3.0)

    assert found.weights.tolist() == [pytest.approx([2.0, 0.5, 3.0, 0.0])]
    assert found.mean == pytest.approx((2 + 0.5 + 8) / 3)
    assert found.largest == pytest.approx(8.0)
    assert found.truncated_ratio == pytest.approx(1 / 3)
    assert found.kl_nats_per_token == pytest.approx(-3 * LN2 / 3)


def test_a_policy_that_wrote_its_own_samples_gets_weights_of_exactly_one() -> None:
    logprobs = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    mask = response_mask(torch.tensor([7, 1, 3, 5]), 7)
    found = behaviour_weights(logprobs, logprobs, mask, limit=1.0)

    assert torch.equal(found.weights, mask.float())
    assert (found.mean, found.largest, found.truncated_ratio, found.kl_nats_per_token) == (1, 1, 0, 0)


def test_what_stands_behind_the_end_does_not_count() -> None:
    logprobs = torch.tensor([[-1.0, math.nan]])
    found = behaviour_weights(logprobs, logprobs, torch.tensor([[True, False]]), limit=2.0)
    assert found.weights.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("limit", [0.5, math.nan])
def test_a_limit_that_would_cut_on_policy_tokens_is_refused(limit: float) -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="limit"):
        behaviour_weights(one, one, torch.ones(1, 1, dtype=torch.bool), limit=limit)


def test_shapes_that_differ_are_refused() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="shape"):
        behaviour_weights(torch.zeros(1, 2), torch.zeros(1, 1), mask, limit=2.0)
    with pytest.raises(ValueError, match="shape"):
        policy_loss(*[torch.zeros(1, 2)] * 3, mask, weights=torch.ones(1, 1))


class Tokens:
    """Random tokens of three policies over a small vocabulary."""

    def __init__(self, seed: int, *, spread: float = 0.3) -> None:
        chance = torch.Generator().manual_seed(seed)
        size = (5, 6, 9)  # [batch, response, vocabulary]
        start = torch.randn(size, generator=chance, dtype=torch.float64)

        def moved() -> Tensor:
            return start + spread * torch.randn(size, generator=chance, dtype=torch.float64)

        self.behaviour, self.proximal, self.logits = start, moved(), moved().requires_grad_()
        self.tokens = torch.distributions.Categorical(logits=start).sample()
        self.advantages = torch.randn(size[:2], generator=chance, dtype=torch.float64)
        self.mask = response_mask(torch.tensor([6, 1, 4, 6, 2]), 6)

    def logprobs(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [1.05, 2.0, 1e6])
def test_loss_and_gradient_are_those_of_the_formula_written_token_by_token(seed: int, limit: float) -> None:
    given = Tokens(seed)
    behaviour, proximal = given.logprobs(given.behaviour), given.logprobs(given.proximal)
    weights = behaviour_weights(proximal, behaviour, given.mask, limit=limit).weights
    loss = policy_loss(
        given.logprobs(given.logits), proximal, given.advantages, given.mask, weights=weights
    ).loss
    (gradient,) = torch.autograd.grad(loss, given.logits)

    # Hilton et al. 2021: E[pi_prox / pi_behav * min(r A, clip(r, 0.8, 1.2) A)], r = pi / pi_prox.
    terms = []
    probability = given.logits.softmax(-1)
    for row in range(5):
        for place in range(6):
            if not given.mask[row, place]:
                continue
            token, advantage = int(given.tokens[row, place]), float(given.advantages[row, place])
            at_proximal = math.exp(float(proximal[row, place]))
            weight = min(at_proximal / math.exp(float(behaviour[row, place])), limit)
            ratio = probability[row, place, token] / at_proximal
            clipped = ratio.clamp(0.8, 1.2)
            terms.append(weight * torch.minimum(ratio * advantage, clipped * advantage))
    expected = -torch.stack(terms).mean()
    (expected_gradient,) = torch.autograd.grad(expected, given.logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_without_staleness_it_is_the_ordinary_loss_to_the_bit() -> None:
    given = Tokens(7)
    new, old = given.logprobs(given.logits).float(), given.logprobs(given.behaviour).float()
    weights = behaviour_weights(old, old, given.mask, limit=2.0).weights
    plain = policy_loss(new, old, given.advantages.float(), given.mask)
    weighted = policy_loss(new, old, given.advantages.float(), given.mask, weights=weights)

    assert torch.equal(plain.loss, weighted.loss)
    (one,) = torch.autograd.grad(plain.loss, given.logits, retain_graph=True)
    (other,) = torch.autograd.grad(weighted.loss, given.logits)
    assert torch.equal(one, other)


def test_weighted_samples_of_the_old_policy_give_the_gradient_of_the_new_one() -> None:
    """Exactly, by summing over the whole vocabulary: at the proximal policy itself nothing is clipped."""
    chance = torch.Generator().manual_seed(3)
    behaviour, change = torch.randn(2, 1, 9, generator=chance, dtype=torch.float64)
    logits = (behaviour + 0.5 * change).requires_grad_()
    rewards = torch.randn(9, generator=chance, dtype=torch.float64)
    old, new = behaviour.log_softmax(-1)[0], logits.log_softmax(-1)[0]

    per_token = []
    for token in range(9):  # as if each were drawn, as often as the old policy draws it
        column = (new[token].reshape(1, 1), new[token].detach().reshape(1, 1), rewards[token].reshape(1, 1))
        everything = torch.ones(1, 1, dtype=torch.bool)
        weights = behaviour_weights(column[1], old[token].reshape(1, 1), everything, limit=1e9).weights
        per_token.append(old[token].exp() * policy_loss(*column, everything, weights=weights).loss)
    (found,) = torch.autograd.grad(torch.stack(per_token).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(logits.softmax(-1)[0] * rewards).sum(), logits)
    torch.testing.assert_close(found, expected)
