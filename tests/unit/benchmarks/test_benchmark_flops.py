"""The least work, counted again by going through every token and every layer."""

import pytest

from benchmarks.flops import (
    TreeSizes,
    flops_only,
    logprob_flops,
    sampling_needs,
    score_flops,
    value_flops,
)
from benchmarks.limits import limit_seconds
from benchmarks.shapes import Shape

SHAPE = Shape(layers=3, width=8, heads=2, vocab_size=32)
TREES = [TreeSizes(prompt=5, responses=[3, 2]), TreeSizes(prompt=4, responses=[6])]


def by_token(shape: Shape, tree: TreeSizes, read: set[tuple[int, int]]) -> float:
    """``read`` holds (response, place in its sequence); -1 is the document."""
    tokens = [(-1, place) for place in range(tree.prompt)]
    for number, response in enumerate(tree.responses):
        tokens += [(number, tree.prompt + place) for place in range(response)]
    square = shape.width * shape.width
    flops = 0.0
    for layer in range(shape.layers):
        for token in tokens:
            flops += 2 * 2 * square  # its key and its value
            if layer < shape.layers - 1 or token in read:
                flops += 2 * (square + square + 8 * square)  # query, output, the two layers behind
                seen = token[1] + 1
                flops += 2 * shape.width * seen + 2 * shape.width * seen  # weights, and what they weigh
    return flops


def test_scores_are_read_at_last_tokens() -> None:
    expected = by_token(SHAPE, TREES[0], {(0, 7), (1, 6)}) + by_token(SHAPE, TREES[1], {(0, 9)})
    assert score_flops(SHAPE, TREES) == expected


def test_values_are_read_before_every_response_token() -> None:
    first = {(-1, 4), (0, 5), (0, 6), (1, 5)}
    second = {(-1, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8)}
    expected = by_token(SHAPE, TREES[0], first) + by_token(SHAPE, TREES[1], second)
    assert value_flops(SHAPE, TREES) == expected


def test_log_probabilities_take_the_head_for_every_response_token() -> None:
    assert logprob_flops(SHAPE, TREES) == value_flops(SHAPE, TREES) + 11 * 2 * 32 * 8


def test_sampling_reads_weights_once_per_step_and_a_prompts_keys_once_for_its_samples() -> None:
    weights = 12 * 3 * 64 + 32 * 8
    reading, writing = sampling_needs(SHAPE, [TreeSizes(prompt=5, responses=[2, 2])])
    assert reading["read_bytes"] == 4 * weights
    assert reading["flops"] == by_token(SHAPE, TreeSizes(prompt=5, responses=[]), {(-1, 4)})
    seen = 2 * ((5 + 1) + (5 + 2))  # per sample: the prompt, and its own tokens so far
    assert writing["flops"] == 2 * weights * 4 + 3 * 4 * 8 * seen
    kept = 2 * 5 + 2 * (1 + 2)  # per step the prompt, and per sample its own
    assert writing["read_bytes"] == 4 * (2 * weights + 3 * 2 * 8 * kept)


def test_the_slower_of_processor_and_memory_is_the_limit_of_each_part() -> None:
    machine = {"flops_per_s": 10.0, "bytes_per_s": 2.0}
    needs = [{"flops": 100.0, "read_bytes": 4.0}, {"flops": 10.0, "read_bytes": 6.0}]
    assert limit_seconds([*needs, *flops_only(50.0)], machine) == pytest.approx(10 + 3 + 5)  # type: ignore[list-item]
