"""The reward model's losses and normalization: against other codebases' numbers, by hand, and by
invariants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andon.modeling.normalization import Normalization
from services.trainer.reward_losses import Decision, decision_loss
from services.trainer.reward_normalization import fit_policy_unit, fit_reference_zero

Golden = Callable[[str], Any]


def decision_from_ranks(ranks: list[int], offset: int) -> Decision:
    """Rank 1 is best; equal ranks are tied."""
    return Decision(
        tiers=tuple(
            tuple(offset + index for index, own in enumerate(ranks) if own == rank)
            for rank in sorted(set(ranks))
        )
    )


def test_pair_loss(golden: Golden) -> None:
    vector = golden("07_rm_pair_loss")
    chosen, rejected = vector.given("chosen"), vector.given("rejected")
    count = len(chosen)
    scores = torch.cat([chosen, rejected]).requires_grad_()
    decisions = [Decision(tiers=((index,), (count + index,))) for index in range(count)]
    loss = decision_loss(scores, decisions)
    vector.close(loss.detach(), vector.outputs["loss"])
    (gradient,) = torch.autograd.grad(loss, scores)
    vector.close(gradient[:count], vector.outputs["grad_chosen"])
    vector.close(gradient[count:], vector.outputs["grad_rejected"])
    for decision, expected in zip(decisions, vector.outputs["per_pair_loss"], strict=True):
        vector.close(decision_loss(scores.detach(), [decision]), expected)


def test_best_of_four_loss(golden: Golden) -> None:
    vector = golden("07_rm_best_of_4_loss")
    rewards = vector.given("rewards").requires_grad_()
    decisions = [
        Decision(
            tiers=((4 * row + best,), tuple(4 * row + other for other in range(4) if other != best)),
            only_best_known=True,
        )
        for row, best in enumerate(vector.inputs["best"])
    ]
    loss = decision_loss(rewards.flatten(), decisions)
    vector.close(loss.detach(), vector.outputs["loss"])
    (gradient,) = torch.autograd.grad(loss, rewards)
    vector.close(gradient, vector.outputs["grad_rewards"])


@pytest.mark.parametrize(
    "name", ["07_rm_kwise_K4", "07_rm_kwise_K4_ties", "07_rm_kwise_K9", "07_rm_kwise_K9_ties"]
)
def test_ranking_loss(golden: Golden, name: str) -> None:
    vector = golden(name)
    rewards = vector.given("rewards").requires_grad_()
    width = vector.inputs["K"]
    decisions = [decision_from_ranks(ranks, width * row) for row, ranks in enumerate(vector.inputs["ranks"])]
    loss = decision_loss(rewards.flatten(), decisions)
    vector.close(loss.detach(), vector.outputs["loss"])
    (gradient,) = torch.autograd.grad(loss, rewards)
    vector.close(gradient, vector.outputs["grad_rewards"])
    for decision, pairs in zip(decisions, vector.outputs["untied_pairs_per_prompt"], strict=True):
        assert len(decision.untied_pairs()) == pairs


def test_normalization(golden: Golden) -> None:
    vector = golden("07_reward_normalisation")
    references = vector.inputs["reference_rewards"]
    target = vector.inputs["other_target"]
    for output, fitted in [
        ("bias_only", fit_reference_zero(references)),
        ("mean0_var1", fit_policy_unit(references)),
        ("other", fit_policy_unit(references, mean=target["mean"], deviation=target["std"])),
    ]:
        expected = vector.outputs[output]
        vector.close(fitted.bias, expected["bias"])
        vector.close(fitted.gain, expected.get("gain", 1.0))
        transformed = [fitted.apply(raw) for raw in vector.inputs["rewards_to_transform"]]
        vector.close(vector.tensor(transformed), expected["transformed"])


def test_normalization_by_hand() -> None:
    assert fit_reference_zero([1.0, 3.0]) == Normalization(method="reference_zero", gain=1.0, bias=-2.0)
    assert fit_policy_unit([1.0, 5.0]) == Normalization(method="policy_unit", gain=0.5, bias=-1.5)
    with pytest.raises(ValueError, match="do not vary"):
        fit_policy_unit([2.0, 2.0])


def test_the_three_losses_agree_on_two_candidates() -> None:
    scores = torch.tensor([0.3, -1.2], dtype=torch.float64)
    expected = math.log(1 + math.exp(-1.5))
    for only_best_known in (False, True):
        decision = Decision(tiers=((0,), (1,)), only_best_known=only_best_known)
        assert decision_loss(scores, [decision]).item() == pytest.approx(expected)


def test_several_decisions_about_the_same_scores() -> None:
    # Two labelers disagree about the same pair: the mean of log(1 + e^-1) and log(1 + e^1).
    scores = torch.tensor([1.0, 0.0], dtype=torch.float64)
    decisions = [Decision(tiers=((0,), (1,))), Decision(tiers=((1,), (0,)))]
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(1.0))) / 2
    assert decision_loss(scores, decisions).item() == pytest.approx(expected)


def test_ties_alone_teach_nothing() -> None:
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = decision_loss(scores, [Decision(tiers=((0, 1),))])
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == 0.0
    assert gradient.tolist() == [0.0, 0.0]


def test_pieces_of_a_batch_add_up_to_the_whole() -> None:
    scores = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    decisions = [
        Decision(tiers=((0,), (1,))),
        Decision(tiers=((2,), (0, 1)), only_best_known=True),
        Decision(tiers=((3,), (5,), (4,))),
    ]
    pieces = [decision_loss(scores, [decision], num_decisions=3) for decision in decisions]
    torch.testing.assert_close(sum(pieces), decision_loss(scores, decisions))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), ranks=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_loss_against_a_slow_loop_and_its_gradient_against_finite_differences(
    seed: int, ranks: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(ranks), generator=generator, dtype=torch.float64).requires_grad_()
    decision = decision_from_ranks(ranks, 0)
    terms = [
        math.log(1 + math.exp(float((scores[b] - scores[a]).detach())))
        for a, b in permutations(range(len(ranks)), 2)
        if ranks[a] < ranks[b]
    ]
    expected = sum(terms) / len(terms) if terms else 0.0
    assert decision_loss(scores, [decision]).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: decision_loss(x, [decision]), (scores,))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), shift=st.floats(-50, 50))
def test_only_differences_of_scores_matter_and_descending_orders_them(seed: int, shift: float) -> None:
    scores = torch.randn(
        4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()
    decisions = [
        Decision(tiers=((2,), (0,), (1, 3))),
        Decision(tiers=((2,), (0, 1, 3)), only_best_known=True),
    ]
    loss = decision_loss(scores, decisions)
    torch.testing.assert_close(decision_loss(scores + shift, decisions), loss)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[2] < 0  # the winner of both rises
    assert gradient[1] > 0  # a loser of both falls
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-12)
