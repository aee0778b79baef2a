"""Defects planted into a real PPO run over gRPC: who sees them, what stops, and how it goes on."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch

import services.trainer.experience as experience_module
import services.trainer.stages.ppo_experience as ppo_experience_module
from andon.client.cord import Cord, CordClient
from andon.client.policy import PolicyClient
from andon.client.trainer import GuardAction, GuardAlarm, Run, RunState, TrainerClient
from andon.rpc.server import RunningServer
from services.trainer.controls import RunControls
from services.trainer.policy_optimizer import PolicyOptimizer
from services.trainer.ppo.rewards import compose_rewards
from tests.ppo_world import TIMEOUT_S, World, finish, published, world
from tests.tokens import TOKENS

__all__ = ["world"]


@pytest.fixture
def cord(labeling: RunningServer) -> Iterator[CordClient]:
    with CordClient(labeling.target, token=TOKENS["rita"]) as client:
        yield client


@pytest.fixture
def trainer(world: World, labeling: RunningServer) -> TrainerClient:
    world.serve_models()
    return world.serve_trainer(
        watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
    )


def wait_for_cord(cord: CordClient, *, pulled: bool) -> Cord:
    for state in cord.watch(timeout_s=TIMEOUT_S):
        if state.pulled is pulled:
            return state
    pytest.fail("the cord's stream ended")


def wait_for_state(client: TrainerClient, run: Run, state: RunState) -> Run:
    """Reads the run's events until it is in a state."""
    for _ in client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
        found = client.get(run.run_id)
        if found.state is state:
            return found
    return client.get(run.run_id)


def wait_for_metric(world: World, line: str) -> None:
    """Waits until the first sampler's metrics have this line."""
    deadline_s = time.monotonic() + TIMEOUT_S
    address = f"http://127.0.0.1:{world.policies[0].metrics_port}/metrics"
    while line not in httpx.get(address, trust_env=False).text.splitlines():
        assert time.monotonic() < deadline_s, line
        time.sleep(0.05)


def flipped_rewards(*arguments: Any, **options: Any) -> torch.Tensor:
    return -compose_rewards(*arguments, **options)


def test_a_flipped_sign_pulls_the_cord_before_the_first_step_and_only_a_release_lets_it_go_on(
    world: World, trainer: TrainerClient, cord: CordClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experience_module, "compose_rewards", flipped_rewards)
    run = trainer.start_run(
        "ppo", world.config(updates=1, guards={"rules": {"composition": {"action": "warn"}}})
    )
    state = wait_for_cord(cord, pulled=True)
    assert state.actor == "trainer"
    assert "preflight_composition" in state.reason
    held = wait_for_state(trainer, run, RunState.PAUSED)
    assert "preflight_composition" in held.status_message
    assert held.step == 0

    monkeypatch.undo()
    cord.release(actor="", reason="the sign is right again")
    events = finish(trainer, run)
    (alarm,) = [event.event for event in events if isinstance(event.event, GuardAlarm)]
    assert (alarm.guard, alarm.action, alarm.step) == ("preflight_composition", GuardAction.CORD, 0)
    assert alarm.statistic > alarm.threshold
    assert len(published(events, stored=False)) == 1


def test_weights_of_an_update_that_a_guard_does_not_trust_reach_no_sampler_and_the_last_good_ones_are_stored(
    world: World, trainer: TrainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = 0

    def flipped_from_the_third(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal rollouts
        rollouts += 1
        return (flipped_rewards if rollouts > 2 else compose_rewards)(*arguments, **options)

    monkeypatch.setattr(experience_module, "compose_rewards", flipped_from_the_third)
    rules = {"composition": {"action": "hold"}, "direction_tokens": {"action": "warn"}}
    guards = {"preflight": {"enabled": False}, "rules": rules}
    run = trainer.start_run("ppo", world.config(updates=4, guards=guards))
    held = wait_for_state(trainer, run, RunState.PAUSED)
    assert "composition" in held.status_message
    with PolicyClient(world.policies[0].target) as policy:
        assert policy.model_info().model.version == 2  # of update 2, the last that was trusted
        assert world.store.resolve("policy/2").version == policy.model_info().model
    wait_for_metric(world, 'andon_policy_weight_updates_total{result="withdrawn"} 1.0')  # it was offered them

    monkeypatch.undo()
    trainer.resume(run.run_id)  # overruled
    events = finish(trainer, run)
    assert [str(model) for model in published(events, stored=False)] == [
        f"policy/{number}" for number in (1, 2, 3, 4)
    ]
    told = [event.event for event in events if isinstance(event.event, GuardAlarm)]
    assert {alarm.step for alarm in told} == {3}
    assert "composition" in {alarm.guard for alarm in told}


def test_the_last_good_weights_outlast_a_process_that_ends_in_the_middle_of_an_update(
    world: World, trainer: TrainerClient, labeling: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts, pauses = 0, threading.Event()
    pause = RunControls.pause

    def note_pause(controls: RunControls, reason: str) -> None:
        pause(controls, reason)
        pauses.set()

    def pause_in_the_third(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal rollouts
        rollouts += 1
        if rollouts == 3:
            threading.Thread(target=trainer.pause, args=(run.run_id,)).start()
            assert pauses.wait(TIMEOUT_S)
        return compose_rewards(*arguments, **options)

    monkeypatch.setattr(RunControls, "pause", note_pause)
    monkeypatch.setattr(experience_module, "compose_rewards", pause_in_the_third)
    guards = {"preflight": {"enabled": False}, "rules": {"step_size": {"action": "hold"}}}
    run = trainer.start_run("ppo", world.config(updates=4, guards=guards))
    assert wait_for_state(trainer, run, RunState.PAUSED).step == 2
    world.stop(world.trainer)
    monkeypatch.undo()

    update = PolicyOptimizer.update

    def damage(optimizer: PolicyOptimizer, *arguments: Any, **options: Any) -> None:
        update(optimizer, *arguments, **options)
        with torch.no_grad():
            for weight in optimizer._actor_critic.policy.parameters():
                weight.mul_(100.0)

    monkeypatch.setattr(PolicyOptimizer, "update", damage)
    client = world.serve_trainer(
        watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
    )
    client.resume(run.run_id)
    held = wait_for_state(client, run, RunState.PAUSED)
    assert "step_size" in held.status_message
    with PolicyClient(world.policies[0].target) as policy:
        assert policy.model_info().model.version == 2
        assert world.store.resolve("policy/2").version == policy.model_info().model
    client.stop(run.run_id)


def test_a_run_that_is_shut_down_while_a_guard_holds_it_is_held_again(
    world: World, trainer: TrainerClient, labeling: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experience_module, "compose_rewards", flipped_rewards)
    guards = {"preflight": {"enabled": False}, "rules": {"composition": {"action": "hold"}}}
    run = trainer.start_run("ppo", world.config(updates=1, guards=guards))
    wait_for_state(trainer, run, RunState.PAUSED)
    world.stop(world.trainer)
    client = world.serve_trainer(
        watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
    )
    assert client.get(run.run_id).state is RunState.INTERRUPTED  # not by itself
    client.resume(run.run_id)
    held = wait_for_state(client, run, RunState.PAUSED)
    assert "composition" in held.status_message
    client.resume(run.run_id)
    events = finish(client, run)
    assert len(published(events, stored=False)) == 1


def test_a_number_that_is_none_fails_the_run_and_pulls_the_cord(
    world: World, trainer: TrainerClient, cord: CordClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ppo_experience_module.evaluate_rollout

    def with_nan(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        found.advantages[0, 0] = float("nan")
        return found

    monkeypatch.setattr(ppo_experience_module, "evaluate_rollout", with_nan)
    run = trainer.start_run("ppo", world.config(updates=1))
    events = list(trainer.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))
    ended = trainer.get(run.run_id)
    assert ended.state is RunState.FAILED
    assert "NOT_FINITE" in ended.status_message
    assert published(events, stored=False) == []
    assert [event.event.guard for event in events if isinstance(event.event, GuardAlarm)] == ["numbers"]
    assert wait_for_cord(cord, pulled=True).actor == "trainer"


def test_samplers_roll_back_to_stable_while_the_cord_holds_and_come_back_after_its_release(
    world: World, trainer: TrainerClient, cord: CordClient
) -> None:
    stable = world.publish_policy(seed=5)
    world.store.set_alias("policy@stable", stable)
    run = trainer.start_run("ppo", world.config(updates=4, guards={"when_cord_pulled": "stable"}))
    next(e for e in trainer.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S) if published([e], stored=False))
    cord.pull(actor="", reason="they became rude")
    wait_for_state(trainer, run, RunState.PAUSED)
    with PolicyClient(world.policies[0].target) as policy:
        _until(lambda: policy.model_info().model == stable)
        cord.release(actor="", reason="looked at it")
        finish(trainer, run)
        assert policy.model_info().model == world.store.resolve("policy@latest").version


def _until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(600):
        if holds():
            return
        waiting.wait(0.1)
    pytest.fail("it never came to that")
