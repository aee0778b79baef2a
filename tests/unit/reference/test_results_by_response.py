"""Batches by token budget: whatever the budget, each response gets its own result and no pass is too large.

The pass itself is replaced by arithmetic on the packed ids that tells every prompt and response apart.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andon.modeling.batches import results_by_response
from andon.modeling.sequences import PackedBatch, PromptGroup

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=12)
groups_strategy = st.lists(
    st.builds(PromptGroup, tokens, st.lists(tokens, min_size=1, max_size=6)), min_size=1, max_size=8
)


def prompt_and_response_sums(batch: PackedBatch, sizes: list[int]) -> list[torch.Tensor]:
    """For each response: the sum of its ids, and the id at the end of its prompt."""
    sizes.append(batch.num_tokens)
    ids = batch.input_ids[0]
    results, begin = [], 0
    for length in batch.response_lengths.tolist():
        places = batch.token_index[begin : begin + length]
        prompt_end = batch.predict_index[begin]
        results.append(torch.stack([ids[places].sum(), ids[prompt_end]]))
        begin += length
    return results


@settings(max_examples=25, deadline=None)
@given(groups_strategy, st.integers(1, 80))
def test_each_response_gets_its_own_result_under_any_budget(groups, token_budget):
    sizes: list[int] = []
    results = results_by_response(
        groups,
        token_budget=token_budget,
        device="cpu",
        forward=lambda batch: prompt_and_response_sums(batch, sizes),
        between_batches=lambda: None,
    )
    expected = [[[sum(response), group.prompt[-1]] for response in group.responses] for group in groups]
    assert [[result.tolist() for result in row] for row in results] == expected
    largest_pair = max(len(group.prompt) + max(map(len, group.responses)) for group in groups)
    assert max(sizes) <= max(token_budget, largest_pair)


def test_a_prompt_is_read_once_when_the_budget_allows():
    sizes: list[int] = []
    results_by_response(
        [PromptGroup([1] * 10, [[2], [3], [4]])],
        token_budget=13,
        device="cpu",
        forward=lambda batch: prompt_and_response_sums(batch, sizes),
        between_batches=lambda: None,
    )
    assert sizes == [13]


def test_work_can_be_broken_off_between_batches():
    passes = []

    def stop_after_two() -> None:
        if len(passes) == 2:
            raise InterruptedError

    def forward(batch: PackedBatch) -> list[torch.Tensor]:
        passes.append(batch)
        return prompt_and_response_sums(batch, [])

    with pytest.raises(InterruptedError):
        results_by_response(
            [PromptGroup([1, 2], [[3]]) for _ in range(5)],
            token_budget=3,
            device="cpu",
            forward=forward,
            between_batches=stop_after_two,
        )
    assert len(passes) == 2
