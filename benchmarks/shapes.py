"""Decides which models and inputs all benchmarks use: random GPT-2 shapes, so that no hub is needed.

Sizes and lengths are those of the peers' scripts, so that both sides do the same work. Models come through
the same functions as in the services.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.text import TextCodec, word_level_codec

NUM_SPECIAL_TOKENS = 4  # of a word-level codec: padding, unknown, the prompt's end, end of sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a GPT-2."""

    layers: int
    width: int
    heads: int
    vocab_size: int
    positions: int = 1024

    @property
    def num_words(self) -> int:
        """Tokens that are no special ones; word n is token n + NUM_SPECIAL_TOKENS."""
        return self.vocab_size - NUM_SPECIAL_TOKENS


SHAPES: Mapping[str, Shape] = {
    "nano": Shape(layers=1, width=16, heads=2, vocab_size=64),  # for a check that everything runs
    "tiny": Shape(layers=4, width=256, heads=8, vocab_size=8192),
    "small": Shape(layers=12, width=768, heads=12, vocab_size=50257),
}


def codec(shape: Shape) -> TextCodec:
    """A tokenizer with the words t0, t1 and so on; it cuts nothing."""
    words = [f"t{number}" for number in range(shape.num_words)]
    return word_level_codec(words, max_document_tokens=shape.positions)


def causal_lm(shape: Shape, shape_codec: TextCodec, *, seed: int = 0) -> PreTrainedModel:
    """A random language model that never writes the end-of-sequence token.

    The peers write all tokens they are asked for. Here the end token is made improbable instead: the last
    norm's bias points a little away from the token's embedding, which changes the other logits by less than
    their random spread and the amount of work by nothing.
    """
    architecture = {
        "model_type": "gpt2",
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": shape.positions,
    }
    model = new_causal_lm(architecture, shape_codec, seed)
    direction = torch.zeros(shape.width)
    direction[0] = 10.0
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(direction)
        model.get_input_embeddings().weight[shape_codec.eos_token_id] = -direction
    return model


def scorer(shape: Shape, shape_codec: TextCodec, *, seed: int = 1) -> PreTrainedModel:
    """A random reward model."""
    with TemporaryDirectory() as folder:
        save_model(causal_lm(shape, shape_codec, seed=seed), shape_codec, Path(folder))
        return scorer_from_causal_lm(folder, seed=seed)


def random_words(source: random.Random, count: int, shape: Shape) -> list[int]:
    """Numbers of words. The peers draw from two words more; drawn alike, what follows has equal lengths."""
    return [source.randrange(shape.vocab_size - 2) % shape.num_words for _ in range(count)]


def prompts(count: int, shortest: int, longest: int, shape: Shape, *, seed: int) -> list[list[int]]:
    """Random words of evenly distributed numbers, as the peers draw them."""
    source = random.Random(seed)
    return [random_words(source, source.randint(shortest, longest), shape) for _ in range(count)]


def token_ids(words: list[int]) -> list[int]:
    """The tokens of words."""
    return [word + NUM_SPECIAL_TOKENS for word in words]


def text(words: list[int]) -> str:
    """What the codec encodes to the words' tokens."""
    return " ".join(f"t{word}" for word in words)


def lognormal_lengths(
    count: int, *, median: int, sigma: float, shortest: int, longest: int, seed: int = 0
) -> list[int]:
    """Lengths like those of posts: a long tail to the right."""
    source = random.Random(seed)
    return [
        min(longest, max(shortest, int(median * math.exp(sigma * source.gauss(0, 1))))) for _ in range(count)
    ]
