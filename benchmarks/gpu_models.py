"""Which models the benchmark on a GPU uses, and what a pass through them costs.

Random weights, one GPT-2 of 124M and one Llama of 1.2B parameters, and two of the same kinds that are small
enough for a check on the CPU. Both sides load the same folders: ours through the product's functions, peers
through transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.text import TextCodec
from benchmarks import shapes
from benchmarks.flops import TreeSizes
from benchmarks.shapes import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A Hugging Face architecture without its vocabulary."""

    config: Mapping[str, Any]
    vocab_size: int
    positions: int = 1024

    @property
    def words(self) -> Shape:
        """What draws words for it; only the vocabulary counts."""
        return Shape(layers=0, width=0, heads=0, vocab_size=self.vocab_size, positions=self.positions)


def _gpt2(layers: int, width: int, heads: int, vocab_size: int) -> Architecture:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": 1024}
    return Architecture(config={"model_type": "gpt2", **sizes}, vocab_size=vocab_size)


def _llama(layers: int, width: int, heads: int, inner: int, vocab_size: int) -> Architecture:
    return Architecture(
        config={
            "model_type": "llama",
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 4),
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        vocab_size=vocab_size,
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "nano": _gpt2(1, 16, 2, 64),
    "nano-llama": _llama(1, 32, 4, 64, 64),
    "124m": _gpt2(12, 768, 12, 50257),
    "1b-llama": _llama(16, 2048, 32, 8192, 128256),  # the sizes of Llama 3.2 1B
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModels:
    """Two models on disk and their tokenizer."""

    lm: Path
    scorer: Path
    codec: TextCodec


def store_models(architecture: Architecture, folder: Path) -> StoredModels:
    """Draw a language model and a reward model, and write both."""
    codec = shapes.codec(architecture.words)
    stored = StoredModels(lm=folder / "lm", scorer=folder / "scorer", codec=codec)
    save_model(new_causal_lm(architecture.config, codec, 0), codec, stored.lm)
    save_model(scorer_from_causal_lm(stored.lm, seed=1), codec, stored.scorer)
    return stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a pass costs, from the model's own matrices. All layers and all tokens count, read or not."""

    layer_weights: int  # in the matrices of all layers
    attention_width: int  # heads times head size, over all layers
    head_weights: int  # of the language-model head

    @classmethod
    def of(cls, model: PreTrainedModel) -> Cost:
        """Count them."""
        config = model.config
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        embeddings = {id(model.get_input_embeddings().weight)}
        if model.get_output_embeddings() is not None:
            embeddings.add(id(model.get_output_embeddings().weight))
        matrices = [
            parameter
            for name, parameter in model.base_model.named_parameters()
            if parameter.ndim == 2 and id(parameter) not in embeddings and "wpe" not in name
        ]
        return cls(
            layer_weights=sum(matrix.numel() for matrix in matrices),
            attention_width=config.num_hidden_layers * heads * head_size,
            head_weights=config.vocab_size * config.hidden_size,
        )

    def of_trees(self, trees: Sequence[TreeSizes], *, logits: bool) -> float:
        """Each document once with all its responses. ``logits``: for each response token."""
        tokens = sum(tree.prompt + sum(tree.responses) for tree in trees)
        pairs = sum(
            _triangle(tree.prompt) + sum(tree.prompt * r + _triangle(r) for r in tree.responses)
            for tree in trees
        )
        predicted = sum(sum(tree.responses) for tree in trees) if logits else 0
        return self._flops(tokens, pairs, predicted)

    def of_sequences(self, trees: Sequence[TreeSizes], *, logits: bool) -> float:
        """Each response with a document of its own, as the peers read them; padding does not count."""
        return self.of_trees(
            [TreeSizes(prompt=t.prompt, responses=[r]) for t in trees for r in t.responses], logits=logits
        )

    def _flops(self, tokens: float, pairs: float, predicted: float) -> float:
        return (
            2 * self.layer_weights * tokens
            + 4 * self.attention_width * pairs
            + 2 * self.head_weights * predicted
        )


def _triangle(count: int) -> float:
    return count * (count + 1) / 2


def dtype_of(name: str) -> torch.dtype:
    """Of the two that are measured."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
