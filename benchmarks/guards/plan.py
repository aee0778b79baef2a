"""Which runs make up the benchmark: healthy ones, and every fault on every seed, with pre-flight and without."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.guards.faults import FAULTS, Fault

# What only pre-flight can see in a run of this length, or what it has no part in.
WITHOUT_A_SECOND_ARM = frozenset({"swapped_labels", "hackable_reward_model"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run."""

    key: str  # names it among the results
    seed: int
    fault: Fault | None = None
    arm: str = "all guards"  # or "no pre-flight"
    config: Mapping[str, Any] = field(default_factory=dict)


def planned_runs(*, seeds: Sequence[int], faults: Sequence[str] | None, healthy: int) -> list[PlannedRun]:
    """Healthy runs first: they say most about what is still wrong."""
    runs = [_healthy(number, seeds) for number in range(healthy)]
    for fault in FAULTS:
        if faults is not None and fault.name not in faults:
            continue
        for seed in seeds:
            runs.append(PlannedRun(key=f"{fault.name}/{seed}", seed=seed, fault=fault, config={"seed": seed}))
            if fault.after_update == 0 and fault.name not in WITHOUT_A_SECOND_ARM:
                runs.append(
                    PlannedRun(
                        key=f"{fault.name}/{seed}/no-preflight",
                        seed=seed,
                        fault=fault,
                        arm="no pre-flight",
                        config={"seed": seed, "guards": {"preflight": {"enabled": False}}},
                    )
                )
    return runs


def _healthy(number: int, seeds: Sequence[int]) -> PlannedRun:
    """A configuration that somebody may well choose, drawn by its number."""
    chance = random.Random(f"healthy/{number}")
    samples = chance.choice([1, 2, 4])
    adaptive = chance.random() < 0.3
    config: dict[str, Any] = {
        "seed": 1000 + number,
        "samples_per_prompt": samples,
        "batch_prompts": chance.choice([48, 64]) // samples,
        "epochs": chance.choice([1, 2, 4]),
        "minibatches": chance.choice([1, 2, 4]),
        "learning_rate": chance.choice([0.0001, 0.0002, 0.0003, 0.0005]),
        "temperature": chance.choice([0.7, 1.0]),
        "kl": {"kind": "adaptive", "beta": 0.1, "target": 4.0, "horizon": 2000}
        if adaptive
        else {"kind": "fixed", "beta": chance.choice([0.02, 0.05, 0.1, 0.2])},
        "schedule": chance.choice(["linear", "constant", "cosine"]),
        "value_init": chance.choice(["reward_model", "reward_model", "shared_head"]),
        "whiten_rewards": chance.random() < 0.2,
        "stop_rule": {"kind": "eos", "missing_penalty": chance.choice([-1.0, -2.0])},
    }
    return PlannedRun(key=f"healthy/{number}", seed=seeds[number % len(seeds)], config=config)
