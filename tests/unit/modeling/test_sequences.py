import pytest
import torch

from andon.errors import InvalidArgumentError
from andon.modeling.sequences import (
    PromptGroup,
    check_groups,
    flatten,
    pack,
    plan_batches,
    unpack,
    valid_mask,
)

GROUPS = [
    PromptGroup([1, 2, 3], [[10, 11], [12]]),
    PromptGroup([4, 5], [[13, 14, 15]]),
    PromptGroup([6], [[16], [17, 18], [19]]),
]


def test_a_prompt_stands_once_and_its_responses_continue_it() -> None:
    batch = pack(GROUPS[:1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 10, 11, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.predict_index.tolist() == [2, 3, 2]
    assert batch.token_index.tolist() == [3, 4, 5]
    assert batch.target_ids.tolist() == [10, 11, 12]
    assert batch.response_lengths.tolist() == [2, 1]
    assert batch.response_of_token.tolist() == [0, 0, 1]
    assert batch.last_token_index.tolist() == [4, 5]


def test_results_keep_the_order_of_the_groups_wherever_the_tokens_stand() -> None:
    batch = pack(GROUPS)
    assert batch.num_tokens == sum(group.num_tokens for group in GROUPS) == 16
    assert batch.num_responses == 6
    assert batch.target_ids.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert batch.input_ids[0, batch.token_index].tolist() == batch.target_ids.tolist()
    # What predicts a token is the last of the prompt or the token before it.
    before = batch.input_ids[0, batch.predict_index].tolist()
    assert before == [3, 10, 3, 5, 13, 14, 6, 6, 17, 6]
    positions = batch.position_ids[0]
    assert (positions[batch.token_index] - positions[batch.predict_index]).tolist() == [1] * 10
    assert batch.response_of_token.tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([], "EMPTY_REQUEST"),
        ([PromptGroup([], [[1]])], "EMPTY_PROMPT"),
        ([PromptGroup([1], [])], "EMPTY_RESPONSE"),
        ([PromptGroup([1], [[1], []])], "EMPTY_RESPONSE"),
    ],
)
def test_empty_parts_are_refused(groups: list[PromptGroup], reason: str) -> None:
    for refuse in (pack, lambda groups: check_groups(groups, vocab_size=9, max_sequence_tokens=None)):
        with pytest.raises(InvalidArgumentError) as caught:
            refuse(groups)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("group", "reason", "facts"),
    [
        (PromptGroup([1, 50], [[1]]), "TOKEN_OUT_OF_VOCABULARY", {"token": "50"}),
        (PromptGroup([1], [[1], [2, -1]]), "TOKEN_OUT_OF_VOCABULARY", {"token": "-1"}),
        (PromptGroup([1] * 5, [[1], [2] * 6]), "SEQUENCE_TOO_LONG", {"tokens": "11", "limit": "10"}),
    ],
)
def test_what_a_model_cannot_read_is_refused(group: PromptGroup, reason: str, facts: dict[str, str]) -> None:
    fine = PromptGroup([0] * 5, [[49] * 5])
    check_groups([fine], vocab_size=50, max_sequence_tokens=10)
    with pytest.raises(InvalidArgumentError) as caught:
        check_groups([fine, group], vocab_size=50, max_sequence_tokens=10)
    assert caught.value.reason == reason
    assert caught.value.metadata["item"] == "1"
    assert facts.items() <= caught.value.metadata.items()


def test_batches_hold_the_budget_and_everything_once() -> None:
    groups = [PromptGroup([1] * (7 * number % 23 + 1), [[2] * (number % 5 + 1)]) for number in range(50)]
    batches = plan_batches(groups, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    sizes = [sum(groups[index].num_tokens for index in batch) for batch in batches]
    assert max(sizes) <= 100
    assert sum(sizes) / len(sizes) > 80
    assert plan_batches(groups, 100) == batches


def test_a_group_above_the_budget_stands_alone() -> None:
    groups = [PromptGroup([1], [[1]]), PromptGroup([1] * 100, [[1]]), PromptGroup([1], [[1]])]
    assert plan_batches(groups, 10) == [[1], [0, 2]]
    assert plan_batches([], 10) == []
    with pytest.raises(InvalidArgumentError):
        plan_batches(groups, 0)


def test_unpack_pads_and_flatten_takes_the_padding_away() -> None:
    lengths = torch.tensor([2, 1, 3])
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], requires_grad=True)
    padded = unpack(flat, lengths, -9.0)
    assert padded.tolist() == [[1, 2, -9], [3, -9, -9], [4, 5, 6]]
    assert flatten(padded, lengths).tolist() == flat.tolist()
    assert valid_mask(lengths).tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    (padded * torch.arange(9.0).view(3, 3)).sum().backward()
    assert flat.grad is not None
    assert flat.grad.tolist() == [0, 1, 3, 6, 7, 8]
