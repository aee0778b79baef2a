"""Decides the least work that a result needs: floating-point operations, and bytes that must be read.

Pure. A multiplication and an addition are two operations. Scripts of ours put it beside what they measured;
``benchmarks.run`` divides it by what the machine can do (``benchmarks.limits``). Counted are matrix products
and attention, of each document once and of the last layer only what is read; norms, activations, softmax and
the optimizer are not, so nothing reaches the limit.

Legend: L layers, D width, V tokens in the vocabulary. A layer has 12 D^2 weights in matrices: 3 D^2 make
query, key and value, 1 D^2 the attention's output, 8 D^2 the two layers behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from benchmarks.shapes import Shape

BACKWARD = 2  # times the forward pass: gradients of inputs and of weights
WITH_GRADIENTS = 1 + BACKWARD
FLOAT_BYTES = 4  # of float32


class Need(TypedDict):
    """What a part of the work needs at the least; the larger of the two times is its limit."""

    flops: float
    read_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSizes:
    """The tokens of a document and of each response to it."""

    prompt: int
    responses: Sequence[int]


def score_flops(shape: Shape, trees: Sequence[TreeSizes]) -> float:
    """A pass that is read at each response's last token."""
    flops = 0.0
    for tree in trees:
        seen = sum(tree.prompt + response for response in tree.responses)
        flops += _trunk_flops(shape, tree, tokens_read=len(tree.responses), pairs_read=seen)
    return flops


def value_flops(shape: Shape, trees: Sequence[TreeSizes]) -> float:
    """A pass that is read wherever a response token is predicted."""
    flops = 0.0
    for tree in trees:
        # The first token of every response is predicted at the document's last one.
        tokens = 1 + sum(response - 1 for response in tree.responses)
        seen = tree.prompt + sum(
            (response - 1) * tree.prompt + _triangle(response - 1) for response in tree.responses
        )
        flops += _trunk_flops(shape, tree, tokens_read=tokens, pairs_read=seen)
    return flops


def logprob_flops(shape: Shape, trees: Sequence[TreeSizes]) -> float:
    """The same with the language-model head: V logits for every response token."""
    tokens = sum(sum(tree.responses) for tree in trees)
    return value_flops(shape, trees) + 2 * shape.vocab_size * shape.width * tokens


def sampling_needs(shape: Shape, trees: Sequence[TreeSizes]) -> list[Need]:
    """Reading the prompts, each once; then as many steps as the longest response has tokens.

    A step reads all weights once, and of each sequence the keys and values; a prompt's are read once for all
    its samples.
    """
    reading = score_flops(
        shape, [TreeSizes(prompt=tree.prompt - 1, responses=[1]) for tree in trees if tree.prompt > 1]
    )
    weights = 12 * shape.layers * shape.width**2 + shape.vocab_size * shape.width
    steps = max(max(tree.responses) for tree in trees)
    tokens = sum(sum(tree.responses) for tree in trees)
    seen = kept = 0.0  # tokens attended to; tokens whose keys and values are read
    for tree in trees:
        own = sum(_triangle(response) for response in tree.responses)
        seen += tree.prompt * sum(tree.responses) + own
        kept += tree.prompt * max(tree.responses) + own
    return [
        Need(flops=reading, read_bytes=weights * FLOAT_BYTES),
        Need(
            flops=2 * weights * tokens + 4 * shape.layers * shape.width * seen,
            read_bytes=FLOAT_BYTES * (weights * steps + 2 * shape.layers * shape.width * kept),
        ),
    ]


def flops_only(flops: float) -> list[Need]:
    """Work that the processor limits, not the memory."""
    return [Need(flops=flops, read_bytes=0.0)]


def _trunk_flops(shape: Shape, tree: TreeSizes, *, tokens_read: int, pairs_read: float) -> float:
    """``tokens_read`` tokens leave the last layer; they attend to ``pairs_read`` tokens in all."""
    tokens = tree.prompt + sum(tree.responses)
    pairs = _triangle(tree.prompt) + sum(
        tree.prompt * response + _triangle(response) for response in tree.responses
    )
    square = shape.width**2
    below = (shape.layers - 1) * (24 * square * tokens + 4 * shape.width * pairs)
    # Keys and values of all tokens; query, output and what follows of those that are read.
    last = 4 * square * tokens + 20 * square * tokens_read + 4 * shape.width * pairs_read
    return below + last


def _triangle(count: int) -> float:
    """Pairs of tokens in a causal sequence, each token with itself included."""
    return count * (count + 1) / 2
