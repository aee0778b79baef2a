from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from andon.modeling import cascade, dense_attention
from andon.modeling.attention import AttentionCall
from andon.modeling.cascade import CascadeAttention
from andon.modeling.padded_groups import PaddedGroups
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree

pytestmark = pytest.mark.skipif(
    not dense_attention.can_attend(torch.zeros(1)), reason="this torch has no such attention operators"
)

CALL = AttentionCall(layer_index=0, scaling=0.3)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def of_separate_sequences(trees: list[Tree], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every prompt with every response as a sequence of its own, by plain formulas. [N, heads, size]."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = (rows.repeat_interleave(repeats, dim=1) for rows in (key, value))
    outputs: list[Tensor] = []
    begin = 0
    for tree in trees:
        prompt = torch.arange(begin, begin + tree.prompt_tokens)
        begin += tree.prompt_tokens
        parts = [torch.arange(0)]
        for tokens in tree.response_tokens:
            parts.append(torch.arange(begin, begin + tokens))
            begin += tokens
        for number, part in enumerate(parts):
            sequence = torch.cat([prompt, part])
            scores = query[0, :, sequence] @ keys[0, :, sequence].transpose(1, 2) * 0.3
            later = torch.ones(len(sequence), len(sequence), dtype=torch.bool).triu(1)
            weights = scores.masked_fill(later, float("-inf")).softmax(-1)
            attended = (weights @ values[0, :, sequence]).transpose(0, 1)
            outputs.append(attended if number == 0 else attended[len(prompt) :])
    return torch.cat(outputs)


def assert_same_gradients(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    slope = random(*expected.shape)
    for mine, theirs in zip(
        torch.autograd.grad((ours * slope).sum(), leaves),
        torch.autograd.grad((expected * slope).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 150), st.lists(st.integers(1, 80), max_size=4)), min_size=1, max_size=4
    ),
    repeats=st.sampled_from([1, 2]),
    share_read=st.sampled_from([None, 0.02, 0.6]),
)
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_those_of_separate_sequences(
    sizes: list[tuple[int, list[int]]], repeats: int, share_read: float | None
) -> None:
    trees = [Tree(prompt_tokens=prompt, response_tokens=tuple(responses)) for prompt, responses in sizes]
    num_tokens = sum(tree.num_tokens for tree in trees)
    query = random(1, 2 * repeats, num_tokens, 8).requires_grad_()
    key, value = (random(1, 2, num_tokens, 8 + number)[..., :8].requires_grad_() for number in (0, 1))
    expected = of_separate_sequences(trees, query, key, value)
    if share_read is None:
        attention, asked = CascadeAttention(trees), query
    else:
        generator = torch.Generator().manual_seed(num_tokens)
        is_read = torch.rand(num_tokens, generator=generator) < share_read
        is_read[num_tokens // 2] = True
        read = is_read.nonzero()[:, 0]
        attention = CascadeAttention(trees, read=read)
        asked, expected = query[:, :, read], expected[read]
    ours = attention.attend(asked, key, value, CALL)[0]
    assert_same_gradients(ours, expected, [query, key, value])


@pytest.mark.parametrize("responses", [(30,), (24,) * 4, ()])
@pytest.mark.parametrize("is_read", [False, True])
def test_long_sequences_and_equal_neighbours_are_not_copied_into_groups(
    monkeypatch: pytest.MonkeyPatch, responses: tuple[int, ...], is_read: bool
) -> None:
    trees = [Tree(prompt_tokens=length, response_tokens=responses) for length in (100, 100, 130)]
    num_tokens = sum(tree.num_tokens for tree in trees)
    heads = [random(1, 2, num_tokens, 8 + number)[..., :8].requires_grad_() for number in range(3)]
    expected = of_separate_sequences(trees, *heads)
    parts = [tokens for tree in trees for tokens in (tree.prompt_tokens, *responses)]
    read = torch.tensor(parts).cumsum(0) - 1 if is_read else None  # the last token of each part
    asked = heads[0] if read is None else heads[0][:, :, read]
    attention = CascadeAttention(trees, read=read)
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "index_select", lambda *_: pytest.fail("rows were copied"))
        ours = attention.attend(asked, *heads[1:], CALL)[0]
    assert_same_gradients(ours, expected if read is None else expected[read], heads)


@pytest.mark.parametrize("length", [1, 31, 64, 129, 600])
def test_causal_blocks_give_what_one_rectangle_with_a_mask_gives(length: int) -> None:
    query, key, value, gradient = (random(2, length, 3, 8 + number)[..., :8] for number in range(4))
    mask = torch.full((length, length), float("-inf")).triu_(1).expand(2, 1, length, length)
    forward, backward = dense_attention.forward, dense_attention.backward
    output, logsumexp = forward(query, key, value, scaling=0.3, is_causal=True)
    whole, whole_logsumexp = forward(query, key, value, scaling=0.3, mask=mask)
    torch.testing.assert_close(output, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logsumexp, whole_logsumexp, rtol=1e-5, atol=1e-5)
    parts = (gradient, query, key, value, output, logsumexp)
    for mine, theirs in zip(
        backward(*parts, scaling=0.3, is_causal=True),
        backward(*parts, scaling=0.3, mask=mask),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_windows_and_dropout_are_left_to_padded_groups(
    monkeypatch: pytest.MonkeyPatch, window: int | None, dropout: float
) -> None:
    asked: list[str] = []
    attend = PaddedGroups.attend
    monkeypatch.setattr(
        PaddedGroups, "attend", lambda *args, **options: asked.append("padded") or attend(*args, **options)
    )
    layout = TreeLayout([Tree(prompt_tokens=5, response_tokens=(3, 4))])
    heads = [random(1, 2, 12, 8) for _ in range(3)]
    output = layout.attend(*heads, replace(CALL, sliding_window=window, dropout=dropout))
    assert output.shape == (1, 12, 2, 8)
    assert bool(asked) == (window is not None or dropout > 0.0)


def test_padded_groups_give_the_same() -> None:
    trees = [Tree(prompt_tokens=40, response_tokens=(9, 30, 2)), Tree(prompt_tokens=70, response_tokens=())]
    heads = [random(1, 4, 151, 8), *(random(1, 2, 151, 8 + number)[..., :8] for number in (0, 1))]
    padded = PaddedGroups(trees, device=torch.device("cpu"))
    torch.testing.assert_close(
        CascadeAttention(trees).attend(*heads, CALL),
        padded.attend(*heads, CALL),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_torch_with_other_operators_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_attention, "_HAS_OPERATORS", False)
    assert not cascade.can_attend(random(1, 2, 3, 8), CALL)
