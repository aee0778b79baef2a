"""A part of the guard benchmark on tiny models: planted faults are caught before a bad version is published.

What needs models that learned something (swapped labels, hacking, another reference, directions that a real
reward gives) is measured by ``make bench-guards`` alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import andon.modeling.weight_codec
import services.policy.weight_receiver
from benchmarks.guards.faults import BY_NAME
from benchmarks.guards.loop import Outcome, run_loop
from benchmarks.guards.world import World as BenchmarkWorld
from tests.ppo_world import World, world
from tests.servers import serve, server_loop

__all__ = ["serve", "server_loop", "world"]

UPDATES = 5

# Each with a guard that must be among those that speak first, and the update at which they do.
BEFORE_THE_FIRST = {
    "reward_sign": "preflight_composition",
    "kl_sign": "preflight_composition",
    "both_signs": "preflight_composition",
    "advantage_sign": "preflight_composition",
    "reward_position": "preflight_composition",
    "reward_model_head_sign": "preflight_models",
    "reward_at_padding": "preflight_models",
}
DURING_TRAINING = {
    "reward_sign": ("composition", 1),
    "kl_sign": ("composition", 2),
    "both_signs": ("composition", 1),
    "advantage_sign": ("composition", 1),
    "reward_scale": ("composition", 1),
    "nan_weights": ("numbers", 1),
    "frozen_sampler": ("sampler_mismatch", 2),
    "reward_model_head_sign_midway": ("probe", 4),
}


class Applied:
    """Counts the weights that the sampler really took into use."""

    def __init__(self) -> None:
        self.count = 0

    def exchange(self, own: Any, ready: Any) -> None:
        self.count += 1
        andon.modeling.weight_codec.exchange_weights(own, ready)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Applied:
    counter = Applied()
    monkeypatch.setattr(services.policy.weight_receiver, "exchange_weights", counter.exchange)
    return counter


def plant(world: World, name: str | None, *, preflight: bool = True, **changes: Any) -> Outcome:
    (world.folder / "world.json").write_text(json.dumps({"sft": "sft/1"}))
    config = world.config(updates=UPDATES, batch_prompts=8, checkpoint_interval=100, **changes)
    config["guards"] = {"preflight": {"enabled": preflight}}
    run = world.folder / f"run-{name}"
    fault = None if name is None else BY_NAME[name]
    return run_loop(BenchmarkWorld(seed=0, folder=world.folder), run, config=config, fault=fault)


def test_a_healthy_run_goes_to_its_end(world: World, applied: Applied) -> None:
    outcome = plant(world, None)
    assert outcome.held_by == []
    assert outcome.ended_as.startswith("succeeded")
    assert outcome.updates == applied.count == UPDATES


@pytest.mark.parametrize("name", BEFORE_THE_FIRST)
def test_preflight_catches_it_before_the_first_update(world: World, applied: Applied, name: str) -> None:
    outcome = plant(world, name)
    assert BEFORE_THE_FIRST[name] in outcome.held_by
    assert outcome.at_update == 0
    assert applied.count == outcome.bad_published == 0


@pytest.mark.parametrize("name", DURING_TRAINING)
def test_without_preflight_the_guards_of_an_update_catch_it(
    world: World, applied: Applied, name: str
) -> None:
    guard, update = DURING_TRAINING[name]
    outcome = plant(world, name, preflight=False)
    assert guard in outcome.held_by
    assert outcome.at_update == update
    assert outcome.bad_published == 0
    # A frozen sampler takes the version of update 1 for used; nothing that it should have used was bad.
    assert applied.count == (0 if name == "frozen_sampler" else update - 1)
    assert outcome.updates == update - 1


def test_a_wrong_kl_sign_has_done_nothing_before_the_policy_has_left_the_reference(world: World) -> None:
    """Why the version of update 1 is not counted as bad."""
    plant(world, "kl_sign", preflight=False)
    plant(world, None, store_interval=1)
    wrong, right = (
        load_file(world.folder / run / "store" / "policy" / "000001" / "model.safetensors")
        for run in ("run-kl_sign", "run-None")
    )
    for name, weights in right.items():
        torch.testing.assert_close(wrong[name], weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["nan_loss", "nan_reward"])
def test_what_is_no_number_ends_the_run(world: World, applied: Applied, name: str) -> None:
    outcome = plant(world, name, preflight=False)
    assert "numbers" in outcome.held_by
    assert outcome.at_update == 1
    assert applied.count == outcome.bad_published == 0


@pytest.mark.slow
def test_weights_that_are_damaged_on_the_wire_are_never_used(world: World, applied: Applied) -> None:
    outcome = plant(world, "corrupted_on_the_wire", preflight=False)
    assert outcome.held_by == ["PEER_LOST"]  # after all the patience for a sampler that takes them
    assert outcome.at_update == 1
    assert applied.count == outcome.bad_published == 0


def test_the_benchmark_leaves_the_worlds_models_alone(world: World, applied: Applied) -> None:
    before = _files(world.folder / "store")
    plant(world, "wrong_reference_midway", preflight=False)
    assert _files(world.folder / "store") == before


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
