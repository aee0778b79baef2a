"""Keeps torch's random numbers the same across a checkpoint.

The only use of the global generators in the supervised and the reward-model stage is dropout; everything else
draws from generators of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Start torch's global generators, of the CPU and of every GPU, from ``seed``."""
    torch.manual_seed(seed)


def capture_random_state(device: str) -> dict[str, Tensor]:
    """The global generators' states, for a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: dict[str, Tensor], device: str) -> None:
    """Take up what ``capture_random_state`` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
