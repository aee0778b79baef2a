"""One update: however a minibatch is cut into pieces, the step is the same; signs go the right way."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from andon.modeling.forward import response_statistics
from andon.modeling.normalization import Normalization
from andon.modeling.sequences import pack, unpack
from andon.modeling.text import TextCodec
from services.trainer.actor_critic import (
    ActorCritic,
    SeparateValueNetwork,
    SharedValueHead,
    statistics_and_values,
)
from services.trainer.policy_optimizer import ExperienceSlices, PolicyOptimizer, UpdateProgress
from tests.policy_updates import TEMPERATURE, experience_of, settings, tiny_codec, tiny_policy, train


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return tiny_codec()


@pytest.fixture(scope="module")
def policy(codec: TextCodec) -> PreTrainedModel:
    return tiny_policy(codec)


def actor_critic_of(policy: PreTrainedModel) -> ActorCritic:
    return SharedValueHead(copy.deepcopy(policy))


@pytest.mark.parametrize("token_budget", [1, 20, 50])
def test_the_pieces_of_a_minibatch_do_not_matter(policy: PreTrainedModel, token_budget: int) -> None:
    experience = experience_of(policy)
    whole, cut = actor_critic_of(policy), actor_critic_of(policy)
    in_one = train(whole, experience, settings())
    in_pieces = train(cut, experience, settings(token_budget=token_budget))

    for name, expected in in_one.step_metrics[0].items():
        assert in_pieces.step_metrics[0][name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert in_pieces.metrics()["entropy_nats"] == pytest.approx(in_one.metrics()["entropy_nats"], rel=1e-5)
    for one, other in zip(whole.parts[0].parameters, cut.parts[0].parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_the_first_step_sees_the_samplers_own_log_probabilities(policy: PreTrainedModel) -> None:
    progress = train(actor_critic_of(policy), experience_of(policy), settings())

    assert progress.sampler_logprob_max_error < 1e-5
    assert progress.step_metrics[0]["approx_kl_nats"] == pytest.approx(0.0, abs=1e-9)
    assert progress.step_metrics[0]["policy_clip_ratio"] == 0


def test_a_sampler_at_another_temperature_is_noticed(policy: PreTrainedModel) -> None:
    progress = train(actor_critic_of(policy), experience_of(policy), settings(temperature=1.0))

    assert progress.sampler_logprob_max_error > 0.05


def test_turning_the_advantages_around_turns_the_policy_around(policy: PreTrainedModel) -> None:
    """The first step's policy gradient is linear in the advantages."""
    gradients = []
    for sign in (1.0, -1.0):
        actor_critic = actor_critic_of(policy)
        before = [parameter.detach().clone() for parameter in actor_critic.policy.parameters()]
        chosen = settings(
            value_coefficient=1e-12, adam_eps=1e3, learning_rate=1e3
        )  # Adam is then a plain step
        train(actor_critic, experience_of(policy, advantage_sign=sign), chosen)
        after = actor_critic.policy.parameters()
        gradients.append(torch.cat([(b - a.detach()).flatten() for a, b in zip(after, before, strict=True)]))
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=1e-3, atol=1e-6)
    assert float(gradients[0].norm()) > 1e-3


def test_learning_raises_what_was_better_than_expected(policy: PreTrainedModel) -> None:
    experience = experience_of(policy)
    actor_critic = actor_critic_of(policy)
    train(actor_critic, experience, settings(epochs=4, value_coefficient=1e-12))

    responses = experience.rollout.responses
    with torch.no_grad():
        flat = response_statistics(
            actor_critic.policy, pack(responses.groups), temperature=TEMPERATURE
        ).logprobs
    gained = unpack(flat, responses.lengths, 0.0) - responses.behaviour_logprobs
    mask = responses.mask
    assert float((gained * experience.advantages)[mask].mean()) > 0


def test_the_ratios_extremes_are_those_of_all_steps(policy: PreTrainedModel) -> None:
    """Measured apart: one step per update, and the ratios under the weights that each step began with."""
    experience = experience_of(policy)
    responses = experience.rollout.responses
    actor_critic = actor_critic_of(policy)
    ratios = []
    optimizer = PolicyOptimizer(actor_critic, settings(epochs=4, learning_rate=1e-2))

    def measure() -> None:
        with torch.no_grad():
            flat = response_statistics(
                actor_critic.policy, pack(responses.groups), temperature=TEMPERATURE
            ).logprobs
        behaviour = responses.behaviour_logprobs[responses.mask]
        ratios.append((flat - behaviour).exp())

    measure()
    progress = UpdateProgress()
    optimizer.update(experience, update=1, learning_rate_factor=1.0, progress=progress, between_steps=measure)
    seen = torch.cat(ratios[:-1])  # nothing is taken from the last step's weights
    assert progress.metrics()["ratio_max"] == pytest.approx(float(seen.max()), rel=1e-4)
    assert progress.metrics()["ratio_min"] == pytest.approx(float(seen.min()), rel=1e-4)
    assert progress.ratio_min < 0.9
    assert progress.ratio_max > 1.1


def test_an_update_can_be_left_and_taken_up_between_any_two_steps(policy: PreTrainedModel) -> None:
    experience = experience_of(policy)
    chosen = settings(epochs=2, minibatches=3)
    straight = actor_critic_of(policy)
    expected = train(straight, experience, chosen)
    assert expected.steps_done == 6

    class Leave(Exception):  # noqa: N818 - plays the run's halt
        pass

    def leave() -> None:
        raise Leave

    actor_critic = actor_critic_of(policy)
    progress = UpdateProgress()
    optimizer_state = None
    for _ in range(6):
        halted = copy.deepcopy(actor_critic.state())
        resumed = actor_critic_of(policy)
        resumed.restore(halted)
        optimizer = PolicyOptimizer(resumed, chosen)
        if optimizer_state is not None:
            optimizer.restore(optimizer_state)
        with pytest.raises(Leave):
            optimizer.update(
                experience, update=1, learning_rate_factor=1.0, progress=progress, between_steps=leave
            )
        progress = UpdateProgress(**copy.deepcopy(progress.to_state()))
        optimizer_state = copy.deepcopy(optimizer.state())
        actor_critic = resumed

    assert progress.metrics() == expected.metrics()
    for one, other in zip(straight.parts[0].parameters, actor_critic.parts[0].parameters, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(policy: PreTrainedModel) -> None:
    experience = experience_of(policy)
    experience.advantages[0, 0] = float("inf")
    actor_critic = actor_critic_of(policy)
    with pytest.raises(Exception, match="not finite"):
        train(actor_critic, experience, settings())
    assert all(bool(parameter.isfinite().all()) for parameter in actor_critic.policy.parameters())


def test_values_are_on_the_scale_of_the_normalised_reward(policy: PreTrainedModel, codec: TextCodec) -> None:
    class Scorer(torch.nn.Module):
        """A trunk that says nothing and a head that says 2."""

        def __init__(self) -> None:
            super().__init__()
            self.config = policy.config
            self.base_model = policy.base_model
            self.score = torch.nn.Linear(16, 1)
            torch.nn.init.zeros_(self.score.weight)
            torch.nn.init.constant_(self.score.bias, 2.0)

    groups = experience_of(policy).rollout.responses.groups
    critic = SeparateValueNetwork(
        copy.deepcopy(policy),
        Scorer(),  # type: ignore[arg-type]
        Normalization(method="policy_unit", gain=3.0, bias=-1.0),
    )
    with torch.no_grad():
        values = critic.values(pack(groups))
    assert values.tolist() == pytest.approx([5.0] * len(values))


def test_the_noise_scale_is_that_of_the_halves_own_gradients(policy: PreTrainedModel) -> None:
    """Against the gradients of the first half and of the whole minibatch, each taken by itself (M18, A.1)."""
    experience = experience_of(policy)
    experience.advantages.add_(1.0)  # something that all responses agree on: a signal beside the noise
    chosen = settings(value_coefficient=1e-12)
    order = list(range(len(experience.rollout.responses.groups)))
    random.Random(f"{chosen.seed}/1/0").shuffle(order)
    slices = ExperienceSlices(experience, device="cpu")

    def mean_gradient(prompts: list[int]) -> torch.Tensor:
        fresh = actor_critic_of(policy)
        part = slices.of(prompts)
        statistics, _ = statistics_and_values(fresh, part.batch, temperature=TEMPERATURE)
        # Before the first step the ratio is 1 and its gradient is that of the log-probability.
        (-(statistics.logprobs * part.advantages).mean()).backward()
        gradients = [parameter.grad for parameter in fresh.parts[0].parameters]
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    half = order[: len(order) // 2]
    responses = experience.rollout.responses.groups
    small = sum(len(responses[prompt].responses) for prompt in half)
    big = sum(len(responses[prompt].responses) for prompt in order)
    small_sq, big_sq = (float(mean_gradient(prompts).norm()) ** 2 for prompts in (half, order))
    signal = (big * big_sq - small * small_sq) / (big - small)
    noise = (small_sq - big_sq) / (1 / small - 1 / big)

    measured = train(actor_critic_of(policy), experience, chosen).gradient_noise_scale
    assert signal > 0
    assert noise > 0
    assert measured == pytest.approx(noise / signal, rel=1e-3)


def test_a_stale_experience_moves_the_policy_by_the_weighted_tokens_alone(policy: PreTrainedModel) -> None:
    """The first step's gradient, against one that autograd takes of the formula (Hilton et al. 2021)."""
    fresh = experience_of(policy)
    mask = fresh.rollout.responses.mask
    weights = torch.where(
        mask, torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) + 0.5, torch.zeros(())
    )
    written = fresh.rollout.responses.behaviour_logprobs - weights.clamp(min=1e-9).log() * mask
    responses = replace(fresh.rollout.responses, behaviour_logprobs=written)
    stale = replace(fresh, rollout=replace(fresh.rollout, responses=responses), weights=weights, staleness=1)
    plain_step = settings(value_coefficient=1e-12, adam_eps=1e3, learning_rate=1e3, token_budget=20)
    actor_critic = actor_critic_of(policy)
    progress = train(actor_critic, stale, plain_step)
    moved = torch.cat(
        [
            (before - after.detach()).flatten()
            for before, after in zip(policy.parameters(), actor_critic.policy.parameters(), strict=True)
        ]
    )

    model = copy.deepcopy(policy)
    logprobs = response_statistics(model, pack(responses.groups), temperature=TEMPERATURE).logprobs
    ratio = (logprobs - written[mask]).exp()  # straight to the policy that wrote them: nothing is clipped yet
    (-(ratio * fresh.advantages[mask]).mean()).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    expected = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    torch.testing.assert_close(moved.detach(), expected, rtol=1e-3, atol=1e-6)
    assert float(expected.norm()) > 1e-3
    # What is clipped and compared is the distance to the weights that the update began with.
    assert progress.sampler_logprob_max_error < 1e-5
    assert progress.step_metrics[0]["approx_kl_nats"] == pytest.approx(0.0, abs=1e-9)
