"""Tiny models of every tested architecture, with one small vocabulary."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from andon.modeling.text import TextCodec, word_level_codec

WORDS = [
    "my",
    "cat",
    "dog",
    "sat",
    "ate",
    "on",
    "under",
    "the",
    "mat",
    "fish",
    ".",
    ",",
    "a",
    "red",
    "blue",
    "very",
    "happy",
    "today",
]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "llama": {  # grouped queries
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "qwen2": {  # grouped queries, tied embeddings, a sliding window in the second layer
        "model_type": "qwen2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return word_level_codec(WORDS)


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ARCHITECTURES[request.param]
