"""Two processes that train together do what one does, and stay together."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from services.trainer.actor_critic import ActorCritic, ActorCriticSource, load_actor_critic
from services.trainer.errors import InvalidConfigError, NotFiniteError, RanksDisagreeError
from services.trainer.experience import Experience
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.ranks import join_ranks
from tests.policy_updates import experience_of, settings
from tests.rank_pair import SPOIL, Pair, learn, store_sources, two_ranks, variables, weights_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_ranks(tmp_path_factory.mktemp("ranks")) as both:
        yield both
    assert both.was_lost is False


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActorCriticSource]:
    return store_sources(tmp_path_factory.mktemp("models"))


def alone(
    source: ActorCriticSource, chosen: OptimizerSettings, experience: Experience
) -> tuple[ActorCritic, UpdateProgress]:
    actor_critic = load_actor_critic(source, device="cpu")
    progress = UpdateProgress()
    learn(PolicyOptimizer(actor_critic, chosen), experience, progress)
    return actor_critic, progress


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize("kind", ["shared head", "value network"])
@pytest.mark.parametrize("minibatches", [2, 6], ids=["shares of both", "one prompt: nothing for the other"])
def test_two_ranks_do_the_update_that_one_does(
    pair: Pair, sources: dict[str, ActorCriticSource], kind: str, minibatches: int
) -> None:
    chosen = settings(
        epochs=2,
        minibatches=minibatches,
        token_budget=30,
        max_grad_norm=0.2,
        adam_eps=1e-3,
        learning_rate=3e-3,
    )
    experience = experience_of(load_actor_critic(sources[kind], device="cpu").policy)
    expected, progress_alone = alone(sources[kind], chosen, experience)
    progress = UpdateProgress()
    with pair.training(sources[kind], chosen) as (actor_critic, optimizer):
        before = weights_of(actor_critic)
        learn(optimizer, experience, progress)

    weights = weights_of(actor_critic)
    assert_same_bits(weights, pair.weights_of_the_other())
    assert any(float((weights[name] - before[name]).abs().max()) > 5e-3 for name in weights)
    for name, weight in weights_of(expected).items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)
    reported, reported_alone = progress.metrics(), progress_alone.metrics()
    assert reported.keys() == reported_alone.keys()
    assert reported == pytest.approx(reported_alone, rel=1e-3, abs=1e-6)
    assert reported["ratio_max"] > 1.01


def test_the_noise_scale_is_that_of_the_whole_minibatch(
    pair: Pair, sources: dict[str, ActorCriticSource]
) -> None:
    source, chosen = sources["value network"], settings()
    experience = experience_of(load_actor_critic(source, device="cpu").policy)
    experience.advantages.add_(1.0)  # something that all responses agree on: a signal beside the noise
    _, expected = alone(source, chosen, experience)
    progress = UpdateProgress()
    with pair.training(source, chosen) as (_, optimizer):
        learn(optimizer, experience, progress)

    assert expected.gradient_noise_scale is not None
    assert progress.gradient_noise_scale == pytest.approx(expected.gradient_noise_scale, rel=1e-3)


def test_an_update_left_in_the_middle_is_taken_up_with_the_same_bits(
    pair: Pair, sources: dict[str, ActorCriticSource]
) -> None:
    source, chosen = sources["value network"], settings(epochs=2, minibatches=3)
    experience = experience_of(load_actor_critic(source, device="cpu").policy)
    straight = UpdateProgress()
    with pair.training(source, chosen) as (actor_critic, optimizer):
        learn(optimizer, experience, straight)
    expected = weights_of(actor_critic)

    class Leave(Exception):  # noqa: N818 - plays the run's halt
        pass

    progress = UpdateProgress()

    def leave_after_two() -> None:
        if progress.steps_done == 2:
            raise Leave

    with pytest.raises(Leave), pair.training(source, chosen) as (actor_critic, optimizer):
        learn(optimizer, experience, progress, leave_after_two)
    state = copy.deepcopy((actor_critic.state(), optimizer.state()))
    with pair.training(source, chosen, state=state) as (actor_critic, optimizer):
        learn(optimizer, experience, progress)

    assert progress.metrics() == straight.metrics()
    assert_same_bits(weights_of(actor_critic), expected)
    assert_same_bits(pair.weights_of_the_other(), expected)


def test_ranks_whose_weights_differ_say_so_and_can_go_on_with_another_run(
    pair: Pair, sources: dict[str, ActorCriticSource]
) -> None:
    source, chosen = sources["shared head"], settings()
    experience = experience_of(load_actor_critic(source, device="cpu").policy)
    with pair.training(source, chosen) as (_, optimizer), pytest.raises(RanksDisagreeError) as caught:
        learn(optimizer, replace(experience, metrics={SPOIL: 1.0}), UpdateProgress())
    assert caught.value.reason == "RANKS_DISAGREE"
    assert "1 of " in caught.value.message

    with pair.training(source, chosen) as (actor_critic, optimizer):
        learn(optimizer, experience, UpdateProgress())
    assert_same_bits(weights_of(actor_critic), pair.weights_of_the_other())


def test_a_gradient_that_is_not_finite_on_one_rank_ends_the_update_on_all(
    pair: Pair, sources: dict[str, ActorCriticSource]
) -> None:
    source, chosen = sources["shared head"], settings()
    experience = experience_of(load_actor_critic(source, device="cpu").policy)
    for row in (0, 2):  # of prompts 0 and 1: whichever rank has it
        spoiled = replace(experience, advantages=experience.advantages.clone())
        spoiled.advantages[row, 0] = float("inf")
        with pair.training(source, chosen) as (actor_critic, optimizer), pytest.raises(NotFiniteError):
            learn(optimizer, spoiled, UpdateProgress())
        assert all(bool(weight.isfinite().all()) for weight in weights_of(actor_critic).values())


def test_ranks_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(0, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfigError, match="say cuda"):
        join_ranks("cuda:0", timeout_s=1.0)


def test_ranks_that_would_meet_in_the_store_of_dead_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    restarting = {"TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**variables(0, 1), **restarting}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join_ranks("cpu", timeout_s=1.0)


def test_a_process_alone_is_a_set_of_one() -> None:
    ranks = join_ranks("cpu", timeout_s=1.0)
    numbers = [1.0, float("nan")]
    assert (ranks.rank, ranks.size, ranks.leads, ranks.device) == (0, 1, True, "cpu")
    assert ranks.totals(numbers)[0] == 1.0
    assert ranks.share_of([1, 2, 3]) == [1, 2, 3]
    state = {"weights": [torch.ones(2)]}
    assert ranks.share(state) is state
