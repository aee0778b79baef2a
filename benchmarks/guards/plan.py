"""Which runs make up the benchmark: healthy ones, and every fault on every seed, with pre-flight and not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.guards.faults import FAULTS, Fault

SEEDS = range(5)
SEEDS_WITHOUT_PREFLIGHT = range(2)
NUM_WORLDS = 5  # a seed's runs happen in the world of its remainder
UPDATES_WITH_PEOPLE = 40
HEALTHY_RUNS = 100
HEALTHY_SEED = 2000  # of the first one; new ones are drawn whenever thresholds were set with these in view
ALL_GUARDS = "all"
NO_PREFLIGHT = "no pre-flight"

# What a run is told unless its fault, or the drawing of healthy configurations, says otherwise.
LOOP: Mapping[str, Any] = {
    "updates": 12,
    "batch_prompts": 16,
    "samples_per_prompt": 4,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 0.0003,
    "temperature": 1.0,
    "max_new_tokens": 36,
    "kl": {"kind": "fixed", "beta": 0.1},
    "checkpoint_interval": 100,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run."""

    key: str  # names it among the results
    seed: int
    fault: Fault | None = None
    guards: str = ALL_GUARDS
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> int:
        """The seed of the world in which it happens."""
        return self.seed % NUM_WORLDS

    @property
    def full_config(self) -> dict[str, Any]:
        """Everything that the run is told, but for models, prompts and labels."""
        return {**LOOP, **(self.fault.config if self.fault else {}), **self.config}


def planned_runs(*, faults: Sequence[str] | None, healthy: int) -> list[PlannedRun]:
    """Healthy runs first: they say most about what is still wrong. ``faults`` None: all of them."""
    runs = [_healthy(number) for number in range(healthy)]
    for fault in FAULTS:
        if faults is not None and fault.name not in faults:
            continue
        for seed in SEEDS:
            runs.append(PlannedRun(key=f"{fault.name}/{seed}", seed=seed, fault=fault, config={"seed": seed}))
            if fault.without_preflight and seed in SEEDS_WITHOUT_PREFLIGHT:
                runs.append(
                    PlannedRun(
                        key=f"{fault.name}/{seed}/no-preflight",
                        seed=seed,
                        fault=fault,
                        guards=NO_PREFLIGHT,
                        config={"seed": seed, **_without_preflight(fault)},
                    )
                )
    return runs


def _without_preflight(fault: Fault) -> dict[str, Any]:
    """What such a run is told: people need some time until they have said enough."""
    people = {"people": {"pairs": fault.labelers}} if fault.labelers else {}
    guards = {**fault.config.get("guards", {}), "preflight": {"enabled": False}, **people}
    return {"guards": guards, **({"updates": UPDATES_WITH_PEOPLE} if people else {})}


def _healthy(number: int) -> PlannedRun:
    """A configuration that somebody may well choose, drawn by its number."""
    chance = random.Random(f"healthy/{HEALTHY_SEED + number}")
    samples = chance.choice([1, 2, 4])
    kl: dict[str, Any] = {"kind": "fixed", "beta": chance.choice([0.02, 0.05, 0.1, 0.2])}
    if chance.random() < 0.3:
        kl = {"kind": "adaptive", "beta": 0.1, "target": chance.choice([2.0, 4.0]), "horizon": 2000}
    config: dict[str, Any] = {
        "seed": HEALTHY_SEED + number,
        "updates": 10,
        "samples_per_prompt": samples,
        "batch_prompts": chance.choice([32, 48, 64]) // samples,
        "epochs": chance.choice([1, 2, 4]),
        "minibatches": chance.choice([1, 2, 4]),
        "learning_rate": chance.choice([0.0001, 0.0002, 0.0003, 0.0005]),
        "temperature": chance.choice([0.7, 1.0]),
        "kl": kl,
        "schedule": chance.choice(["linear", "constant", "cosine"]),
        "value_init": chance.choice(["reward_model", "reward_model", "shared_head"]),
        "whiten_rewards": chance.random() < 0.2,
        "stop_rule": {"kind": "eos", "missing_penalty": chance.choice([-1.0, -2.0])},
    }
    seed = number % len(SEEDS)
    return PlannedRun(key=f"healthy/{number}/{seed}", seed=seed, config=config)
