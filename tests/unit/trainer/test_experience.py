"""From a rollout to advantages: the golden chain, and the reported numbers by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from andon.modeling.sequences import PromptGroup
from andon.modeling.versions import ModelVersion
from services.trainer.experience import Experience, Proximal, RewardSettings, evaluate_rollout
from services.trainer.rollout import Responses, Rollout

Z19_STYLE = RewardSettings(penalty=-1.0, gamma=1.0, lam=0.95, whiten_rewards=True, whiten_advantages=True)
PLAIN = RewardSettings(penalty=-1.0, gamma=1.0, lam=0.95, whiten_rewards=False, whiten_advantages=False)


def rollout_of(
    *,
    scores: list[float],
    logprobs: list[list[float]],
    reference: list[list[float]],
    lengths: list[int],
    ended: list[bool],
) -> Rollout:
    counts = torch.tensor(lengths)
    groups = tuple(PromptGroup(prompt=[1], responses=[[5] * length]) for length in lengths)
    return Rollout(
        responses=Responses(
            groups=groups,
            lengths=counts,
            behaviour_logprobs=torch.tensor(logprobs),
            ended_properly=torch.tensor(ended),
            model=ModelVersion("policy", 1),
        ),
        reference_logprobs=torch.tensor(reference),
        scores=torch.tensor(scores),
    )


def test_the_whole_chain_agrees_with_the_golden_numbers(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "golden" / "04_rollout_pipeline.json").read_text())
    given: dict[str, Any] = golden["inputs"]
    ended = [score != -1.0 for score in given["scores_after_eos_rule"]]
    rollout = rollout_of(
        # What the reward model said of a response without an end must not matter.
        scores=[
            score if end else 7.7 for score, end in zip(given["scores_after_eos_rule"], ended, strict=True)
        ],
        logprobs=given["logprobs"],
        reference=given["ref_logprobs"],
        lengths=given["lengths"],
        ended=ended,
    )

    experience = evaluate_rollout(
        rollout, torch.tensor(given["values"]), beta=given["beta"], settings=Z19_STYLE
    )

    tolerance = golden["tolerance"]["float32"]
    for actual, expected in [
        (experience.returns, golden["outputs"]["returns"]),
        (experience.advantages, golden["outputs"]["advantages_whitened"]),
    ]:
        torch.testing.assert_close(actual, torch.tensor(expected), **tolerance)


def test_the_reported_numbers_by_hand() -> None:
    rollout = rollout_of(
        scores=[2.0, 5.0],
        logprobs=[[-1.0, -2.0], [-0.5, 0.0]],
        reference=[[-1.5, -2.25], [-0.25, 0.0]],
        lengths=[2, 1],
        ended=[True, False],
    )

    metrics = evaluate_rollout(rollout, torch.zeros(2, 2), beta=0.1, settings=PLAIN).metrics

    # KL: (0.5 + 0.25) for the first response, -0.25 for the second.
    assert metrics["kl_nats"] == pytest.approx(0.25)
    assert metrics["kl_nats_per_token"] == pytest.approx(0.5 / 3)
    assert metrics["score_mean"] == pytest.approx(3.5)
    assert metrics["score_std"] == pytest.approx(1.5)
    assert metrics["penalized_score_mean"] == pytest.approx((2.0 - 1.0) / 2)
    # Total rewards: 2 - 0.1 * 0.75 and -1 + 0.1 * 0.25.
    assert metrics["reward_mean"] == pytest.approx((1.925 - 0.975) / 2)
    assert metrics["missing_eos_ratio"] == pytest.approx(0.5)
    assert metrics["response_tokens"] == pytest.approx(1.5)
    assert metrics["episodes"] == 2


def test_experience_survives_a_checkpoint() -> None:
    rollout = rollout_of(
        scores=[2.0, 5.0],
        logprobs=[[-1.0, -2.0], [-0.5, 0.0]],
        reference=[[-1.5, -2.25], [-0.25, 0.0]],
        lengths=[2, 1],
        ended=[True, False],
    )
    experience = evaluate_rollout(rollout, torch.ones(2, 2), beta=0.1, settings=Z19_STYLE)

    again = Experience.from_state(experience.to_state())

    assert torch.equal(again.advantages, experience.advantages)
    assert torch.equal(again.returns, experience.returns)
    assert again.metrics == experience.metrics
    assert again.rollout.responses.model == ModelVersion("policy", 1)
    assert [list(group.responses[0]) for group in again.rollout.responses.groups] == [[5, 5], [5]]


def test_a_stale_rollout_keeps_its_rewards_and_is_weighted() -> None:
    rollout = rollout_of(
        scores=[2.0, 5.0],
        logprobs=[[-1.0, -2.0], [-0.5, 0.0]],
        reference=[[-1.5, -2.25], [-0.25, 0.0]],
        lengths=[2, 1],
        ended=[True, False],
    )
    proximal = Proximal(logprobs=torch.tensor([[-1.5, -1.0], [-0.5, 9.0]]), staleness=2, weight_limit=2.5)
    fresh = evaluate_rollout(rollout, torch.ones(2, 2), beta=0.1, settings=PLAIN)
    stale = evaluate_rollout(rollout, torch.ones(2, 2), beta=0.1, settings=PLAIN, proximal=proximal)

    # The KL is the writing version's; only how much a token counts depends on the proximal policy.
    assert torch.equal(stale.rewards, fresh.rewards)
    assert torch.equal(stale.advantages, fresh.advantages)
    assert stale.metrics["kl_nats"] == pytest.approx(0.25)
    assert stale.weights.tolist() == [[pytest.approx(0.60653, abs=1e-5), 2.5], [1.0, 0.0]]
    assert stale.metrics["behaviour_weight_max"] == pytest.approx(2.71828, abs=1e-5)
    assert stale.metrics["behaviour_weight_truncated_ratio"] == pytest.approx(1 / 3)
    assert (stale.staleness, stale.metrics["staleness_updates"]) == (2, 2.0)
    assert (fresh.staleness, fresh.metrics["staleness_updates"]) == (0, 0.0)
    assert fresh.weights.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert "behaviour_weight_mean" not in fresh.metrics
    again = Experience.from_state(stale.to_state())
    assert torch.equal(again.weights, stale.weights)
    assert torch.equal(again.proximal_logprobs, proximal.logprobs)
    assert (again.staleness, again.weight_limit) == (2, 2.5)
