"""How much is done at once on a GPU, and with which models; what a work there is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from andon.modeling.loading import load_causal_lm, load_scorer
from andon.modeling.sequences import PromptGroup
from benchmarks import shapes
from benchmarks.gpu_models import Architecture, StoredModels, dtype_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done at once."""

    documents: int
    prompt: tuple[int, int]  # shortest and longest, tokens
    response: int
    peer_batch: int
    peer_training_batch: int  # in a pass with gradients, whose logits and activations must fit beside ours
    token_budget: int
    training_token_budget: int
    epochs: int = 4


FULL = Size(
    documents=64,
    prompt=(128, 512),
    response=48,
    peer_batch=32,
    peer_training_batch=8,
    token_budget=16384,
    training_token_budget=16384,
)
NANO = Size(
    documents=4,
    prompt=(4, 12),
    response=4,
    peer_batch=2,
    peer_training_batch=2,
    token_budget=64,
    training_token_budget=64,
    epochs=1,
)
SIZES: Mapping[str, Size] = {
    "nano": NANO,
    "nano-llama": NANO,
    "124m": FULL,
    # Activations of two networks of 1.2B must fit beside the weights and Adam's moments of four.
    "1b-llama": replace(FULL, training_token_budget=8192),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to do a work."""

    run: Callable[[], object]
    flops: float  # of the model passes that it needs, without padding
    tokens: float  # response tokens, or tokens of documents and summaries, that the work is about


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Ours, and the peers by name; none where TRL is wanted and not installed."""

    ours: Way
    peers: dict[str, Way]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how a work is done."""

    architecture: Architecture
    stored: StoredModels
    size: Size
    device: str
    dtype: str

    @property
    def pad_token_id(self) -> int:
        """What the peers pad with."""
        token_id = self.stored.codec.pad_token_id
        assert token_id is not None  # every codec of ``shapes`` has one
        return token_id

    def groups(self, documents: int, samples: int) -> list[PromptGroup]:
        """Random documents, each with as many responses of equal length."""
        shape = self.architecture.words
        drawn = shapes.prompts(documents * (1 + samples), *self.size.prompt, shape, seed=0)
        rows = [shapes.token_ids(words) for words in drawn]
        return [
            PromptGroup(
                row,
                [
                    (rows[documents + number * samples + place] * self.size.response)[: self.size.response]
                    for place in range(samples)
                ],
            )
            for number, row in enumerate(rows[:documents])
        ]

    def lm(self) -> Any:
        """Ours, for serving: loaded once, nobody changes it."""
        return _lm(self.stored.lm, self.dtype, self.device)

    def scorer(self) -> Any:
        """Ours, for serving: loaded once, nobody changes it."""
        return _scorer(self.stored.scorer, self.dtype, self.device)

    def peer(self, auto_class: Any, folder: Path) -> Any:
        """Plain transformers: loaded once, nobody changes it."""
        return _peer(auto_class, folder, self.dtype, self.device)


@cache
def _lm(folder: Path, dtype: str, device: str) -> Any:
    return load_causal_lm(folder, dtype=dtype, device=device)


@cache
def _scorer(folder: Path, dtype: str, device: str) -> Any:
    return load_scorer(folder, dtype=dtype, device=device)


@cache
def _peer(auto_class: Any, folder: Path, dtype: str, device: str) -> Any:
    return auto_class.from_pretrained(folder, dtype=dtype_of(dtype)).to(device).eval()


def forget_models() -> None:
    """Free the models that were loaded for serving."""
    for loaded in (_lm, _scorer, _peer):
        loaded.cache_clear()


def has_trl() -> bool:
    """Whether TRL stands beside us in this environment."""
    return importlib.util.find_spec("trl") is not None
