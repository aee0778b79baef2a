"""The PPO maths against numbers that other codebases' own code produced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from services.trainer.ppo.advantages import generalized_advantages
from services.trainer.ppo.kl import (
    AdaptiveKlController,
    FixedKlController,
    KlController,
    KlEstimator,
    summarize_kl,
    token_kl,
)
from services.trainer.ppo.losses import policy_loss, value_loss
from services.trainer.ppo.masking import masked_mean, response_mask, sequence_sums
from services.trainer.ppo.noise_scale import NoiseScaleAverage, noise_scale
from services.trainer.ppo.rewards import compose_rewards
from services.trainer.ppo.schedules import ScheduleKind, learning_rate_factor
from services.trainer.ppo.stopping import EosRule, replace_improper_scores
from services.trainer.ppo.whitening import whiten

Golden = Callable[[str], Any]


def test_padded_reward_composition(golden: Golden) -> None:
    vector = golden("01_reward_composition_padded")
    rule = EosRule(eos_token_id=vector.inputs["eos_id"], penalty=vector.inputs["no_eos_score"])
    cuts = [rule.cut(response) for response in vector.inputs["responses_raw"]]
    assert [cut.length for cut in cuts] == vector.outputs["lengths"]
    assert [cut.ended_properly for cut in cuts] == vector.outputs["has_eos"]

    mask = response_mask(torch.tensor([cut.length for cut in cuts]), 6)
    assert mask.tolist() == vector.outputs["mask"]
    scores = replace_improper_scores(
        vector.given("scores"), torch.tensor([cut.ended_properly for cut in cuts]), penalty=rule.penalty
    )
    vector.close(scores, vector.outputs["scores_after_eos_rule"])
    kl = token_kl(vector.given("logprobs"), vector.given("ref_logprobs"), mask)
    vector.close(kl, vector.outputs["kl_per_token"])
    vector.close(sequence_sums(kl, mask), vector.outputs["kl_sum_per_sequence"])
    rewards = compose_rewards(scores, kl, mask, beta=vector.inputs["beta"])
    vector.close(rewards, vector.outputs["rewards"])
    vector.close(sequence_sums(rewards, mask), vector.outputs["reward_sum_per_sequence"])
    penalty_alone = compose_rewards(torch.zeros_like(scores), kl, mask, beta=vector.inputs["beta"])
    vector.close(penalty_alone, vector.outputs["kl_reward"])


def test_reward_composition_of_fixed_length_responses(golden: Golden) -> None:
    vector = golden("01_reward_composition_openai_fixed_length")
    logprobs = vector.given("logprobs")
    mask = torch.ones(logprobs.shape, dtype=torch.bool)
    kl = token_kl(logprobs, vector.given("ref_logprobs"), mask)
    vector.close(
        compose_rewards(vector.given("scores"), kl, mask, beta=vector.inputs["beta"]),
        vector.outputs["rewards"],
    )
    vector.close(summarize_kl(kl, mask).per_response, vector.outputs["kl_observed_by_controller"])


@pytest.mark.parametrize("name", ["02_gae_g1_l095", "02_gae_second", "02_gae_g1_l1"])
def test_advantage_estimation(golden: Golden, name: str) -> None:
    vector = golden(name)
    estimate = generalized_advantages(
        vector.given("rewards"),
        vector.given("values"),
        vector.mask(),
        gamma=vector.inputs["gamma"],
        lam=vector.inputs["lam"],
    )
    vector.close(estimate.advantages, vector.outputs["advantages"])
    vector.close(estimate.returns, vector.outputs["returns"])


def test_whitening(golden: Golden) -> None:
    vector = golden("03_masked_whiten")
    x, mask = vector.given("x"), vector.mask()
    vector.close(whiten(x, mask, subtract_mean=True), vector.outputs["whitened_biased"])
    vector.close(whiten(x, mask, subtract_mean=False), vector.outputs["whitened_keep_mean_biased"])


def test_whitening_when_the_variance_is_about_the_epsilon(golden: Golden) -> None:
    vector = golden("03_masked_whiten_tiny_variance")
    mask = vector.mask()
    for source, suffix in [("x", ""), ("x_constant", "_constant")]:
        values = vector.given(source)
        vector.close(whiten(values, mask, subtract_mean=True), vector.outputs[f"whitened{suffix}"])
        vector.close(whiten(values, mask, subtract_mean=False), vector.outputs[f"whitened{suffix}_keep_mean"])


def test_whitening_of_a_full_batch(golden: Golden) -> None:
    vector = golden("03_whiten_openai_unmasked")
    x = vector.given("x")
    mask = torch.ones(x.shape, dtype=torch.bool)
    vector.close(whiten(x, mask, subtract_mean=True), vector.outputs["whitened"])
    vector.close(whiten(x, mask, subtract_mean=False), vector.outputs["whitened_keep_mean"])


def test_policy_and_value_losses_with_gradients(golden: Golden) -> None:
    vector = golden("04_ppo_losses")
    mask = vector.mask()
    new_logprobs = vector.given("new_logprobs").requires_grad_()
    new_values = vector.given("new_values").requires_grad_()
    policy = policy_loss(
        new_logprobs,
        vector.given("old_logprobs"),
        vector.given("advantages"),
        mask,
        clip_ratio=vector.inputs["cliprange"],
    )
    value = value_loss(
        new_values,
        vector.given("old_values"),
        vector.given("returns"),
        mask,
        clip_value=vector.inputs["cliprange_value"],
    )
    out = vector.outputs
    vector.close(policy.loss.detach(), out["policy_loss"])
    vector.close(value.loss.detach(), out["value_loss"])
    vector.close((policy.loss + vector.inputs["vf_coef"] * value.loss).detach(), out["total_loss"])
    vector.close(policy.clip_fraction, out["policy_clip_fraction"])
    vector.close(value.clip_fraction, out["value_clip_fraction"])
    vector.close(policy.approx_kl, out["approx_kl"])
    vector.close(policy.approx_kl_k1, out["approx_kl_k1"])
    vector.close(policy.approx_kl_k3, out["approx_kl_k3"])
    vector.close(policy.ratio_mean, out["mean_ratio"])
    (policy_gradient,) = torch.autograd.grad(policy.loss, new_logprobs)
    (value_gradient,) = torch.autograd.grad(value.loss, new_values)
    vector.close(policy_gradient, out["grad_policy_loss_wrt_new_logprobs"])
    vector.close(value_gradient, out["grad_value_loss_wrt_new_values"])


def test_policy_loss_from_logits_with_a_temperature(golden: Golden) -> None:
    vector = golden("04_ppo_policy_loss_from_logits")
    mask = vector.mask()
    logits = vector.given("logits").requires_grad_()
    tempered = torch.log_softmax(logits / vector.inputs["temperature"], dim=-1)
    responses = torch.tensor(vector.inputs["responses"])
    new_logprobs = tempered.gather(-1, responses[..., None])[..., 0]
    loss = policy_loss(
        new_logprobs,
        vector.given("old_logprobs"),
        vector.given("advantages"),
        mask,
        clip_ratio=vector.inputs["cliprange"],
    )
    vector.close(loss.loss.detach(), vector.outputs["policy_loss"])
    vector.close(loss.clip_fraction, vector.outputs["policy_clip_fraction"])
    vector.close(loss.approx_kl, vector.outputs["approx_kl"])
    (gradient,) = torch.autograd.grad(loss.loss, logits)
    vector.close(gradient, vector.outputs["grad_policy_loss_wrt_logits"])
    entropies = vector.tensor(vector.outputs["entropy_per_token"])
    vector.close(masked_mean(entropies, mask), vector.outputs["entropy_mean"])


def test_the_chain_from_scores_to_whitened_advantages(golden: Golden) -> None:
    vector = golden("04_rollout_pipeline")
    given = vector.inputs
    mask = response_mask(torch.tensor(given["lengths"]), 6)
    kl = token_kl(vector.given("logprobs"), vector.given("ref_logprobs"), mask)
    rewards = compose_rewards(vector.given("scores_after_eos_rule"), kl, mask, beta=given["beta"])
    vector.close(rewards, vector.outputs["rewards"])
    rewards = whiten(rewards, mask, subtract_mean=False)
    vector.close(rewards, vector.outputs["rewards_whitened"])
    estimate = generalized_advantages(
        rewards, vector.given("values"), mask, gamma=given["gamma"], lam=given["lam"]
    )
    vector.close(estimate.advantages, vector.outputs["advantages_raw"])
    vector.close(estimate.returns, vector.outputs["returns"])
    vector.close(whiten(estimate.advantages, mask, subtract_mean=True), vector.outputs["advantages_whitened"])


@pytest.mark.parametrize("name", ["05_adaptive_kl_a", "05_adaptive_kl_b"])
def test_kl_controllers(golden: Golden, name: str) -> None:
    vector = golden(name)
    given = vector.inputs
    controllers: dict[str, KlController] = {
        "betas": AdaptiveKlController(
            beta=given["init_beta"], target_nats=given["target"], horizon_episodes=given["horizon"]
        ),
        "fixed_controller_betas": FixedKlController(beta=given["init_beta"]),
    }
    for output, controller in controllers.items():
        betas = []
        for kl in given["kls"]:
            controller = controller.after(kl_nats=kl, num_episodes=given["n_steps"])
            betas.append(controller.beta)
        vector.close(vector.tensor(betas), vector.outputs[output])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators(golden: Golden, estimator: KlEstimator) -> None:
    vector = golden("05_kl_estimators")
    mask = vector.mask()
    kl = token_kl(vector.given("logprobs"), vector.given("ref_logprobs"), mask, estimator=estimator)
    expected = vector.outputs[estimator]
    vector.close(kl, expected["per_token"])
    summary = summarize_kl(kl, mask)
    vector.close(summary.per_token, expected["masked_token_mean"])
    vector.close(summary.per_response, expected["mean_of_sequence_sums"])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expectation_of_kl_estimators(golden: Golden, estimator: KlEstimator) -> None:
    vector = golden("05_kl_estimators_expectation")
    p, q = vector.given("p_unnormalised"), vector.given("q_unnormalised")
    p, q = p / p.sum(), q / q.sum()
    everything = torch.ones((1, len(p)), dtype=torch.bool)
    kl = token_kl(p.log()[None], q.log()[None], everything, estimator=estimator)[0]
    vector.close((p * kl).sum(), vector.outputs[f"expected_{estimator}"])


@pytest.mark.parametrize(
    ("output", "kind", "warmup", "final_ratio"),
    [
        ("openai_linear", "linear", 0, 0.0),
        ("linear_warmup", "linear", 2, 0.0),
        ("cosine_no_warmup_to_0", "cosine", 0, 0.0),
        ("cosine_warmup_to_0", "cosine", 2, 0.0),
        ("cosine_warmup_to_10pct", "cosine", 2, 0.1),
        ("cosine_no_warmup_to_10pct", "cosine", 0, 0.1),
    ],
)
def test_schedules(golden: Golden, output: str, kind: ScheduleKind, warmup: int, final_ratio: float) -> None:
    vector = golden("08_lr_schedules")
    total, peak = vector.inputs["total_updates"], vector.inputs["lr"]
    expected = vector.outputs[output]
    rates = [
        peak * learning_rate_factor(step, total, kind=kind, warmup_steps=warmup, final_ratio=final_ratio)
        for step in range(len(expected))
    ]
    vector.close(vector.tensor(rates), expected)


@pytest.mark.parametrize("name", ["08_adamw_wd0", "08_adamw_wd"])
def test_the_optimizer_is_the_one_the_vectors_describe(golden: Golden, name: str) -> None:
    vector = golden(name)
    given = vector.inputs
    parameter = torch.nn.Parameter(vector.given("params"))
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=given["lr"],
        betas=tuple(given["betas"]),
        eps=given["eps"],
        weight_decay=given["weight_decay"],
    )
    for gradient, expected in zip(given["grads_per_step"], vector.outputs["params_per_step"], strict=True):
        parameter.grad = vector.tensor(gradient)
        optimizer.step()
        vector.close(parameter.detach(), expected)


def test_noise_scale_from_per_example_gradients(golden: Golden) -> None:
    vector = golden("13_gradient_noise_scale")
    gradients = torch.tensor(vector.inputs["per_example_gradients"], dtype=torch.float64)
    big = vector.inputs["B_big"]
    sq_norm_big = float(gradients.mean(0).square().sum())
    for small, expected in [
        (vector.inputs["B_small"], vector.outputs),
        (1, vector.outputs["with_B_small_1"]),
    ]:
        sq_norm_small = float(gradients.view(big // small, small, -1).mean(1).square().sum(1).mean())
        observed = noise_scale(sq_norm_small=sq_norm_small, sq_norm_big=sq_norm_big, small=small, big=big)
        vector.close(observed.gradient_sq_norm, expected["grad_norm_sq"])
        vector.close(observed.noise_trace, expected["trace_noise"])
        vector.close(observed.batch_size, expected["b_simple"])


def test_noise_scale_averaged_over_steps(golden: Golden) -> None:
    vector = golden("13_gradient_noise_scale_two_norms")
    average = NoiseScaleAverage(decay=vector.inputs["ema_decay"])
    steps = zip(
        vector.inputs["sq_norms"], vector.outputs["per_step"], vector.outputs["b_simple_ema"], strict=True
    )
    for (sq_norm_small, sq_norm_big), expected, expected_average in steps:
        observed = noise_scale(
            sq_norm_small=sq_norm_small,
            sq_norm_big=sq_norm_big,
            small=vector.inputs["B_small"],
            big=vector.inputs["B_big"],
        )
        average = average.after(observed)
        vector.close(observed.batch_size, expected["b_simple"])
        vector.close(average.batch_size, expected_average)
