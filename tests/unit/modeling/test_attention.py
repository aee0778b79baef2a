import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from andon.modeling.attention import AttentionCall, packed_attention
from andon.modeling.errors import UnsupportedArchitectureError
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree
from andon.modeling.varlen_attention import Kernel, VarlenAttention, can_attend
from tests.varlen_kernel import varlen_by_loops


def attention_by_loops(
    trees: list[Tree], query: Tensor, key: Tensor, value: Tensor, window: int | None
) -> Tensor:
    """Every token by itself: gathers what it may see and takes a weighted mean. [N, heads, size]."""
    places: list[tuple[int, int, int]] = []  # tree, response (-1 for the prompt), position
    for number, tree in enumerate(trees):
        places += [(number, -1, position) for position in range(tree.prompt_tokens)]
        for response, tokens in enumerate(tree.response_tokens):
            places += [(number, response, tree.prompt_tokens + position) for position in range(tokens)]
    heads, key_heads = query.shape[1], key.shape[1]
    output = torch.zeros(len(places), heads, query.shape[-1], dtype=query.dtype)
    for (i, mine), head in itertools.product(enumerate(places), range(heads)):
        seen = [
            j
            for j, other in enumerate(places)
            if other[0] == mine[0]
            and other[1] in (-1, mine[1])
            and other[2] <= mine[2]
            and (window is None or mine[2] - other[2] < window)
        ]
        keys = key[0, head * key_heads // heads, seen]
        weights = torch.softmax(keys @ query[0, head, i] * 0.3, dim=0)
        output[i, head] = weights @ value[0, head * key_heads // heads, seen]
    return output


def random_heads(num_tokens: int, *, heads: int = 4, key_heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, num_tokens, 8, generator=generator, dtype=torch.float64)
        for count in (heads, key_heads, key_heads)
    ]


TREES = [
    Tree(prompt_tokens=5, response_tokens=(3,)),
    Tree(prompt_tokens=6, response_tokens=(4,)),
    Tree(prompt_tokens=30, response_tokens=(2,)),
    Tree(prompt_tokens=7, response_tokens=()),
    Tree(prompt_tokens=4, response_tokens=(3, 1, 5)),
    Tree(prompt_tokens=6, response_tokens=(2, 2)),
    Tree(prompt_tokens=1, response_tokens=(1, 1, 1, 20)),
]


@pytest.mark.parametrize("window", [None, 1, 4, 1000])
def test_every_token_sees_its_prompt_and_its_own_past(window: int | None) -> None:
    layout = TreeLayout(TREES)
    query, key, value = random_heads(layout.num_tokens)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    output = layout.attend(
        query, key, value, AttentionCall(layer_index=0, scaling=0.3, sliding_window=window)
    )
    expected = attention_by_loops(TREES, query, key, value, window)
    torch.testing.assert_close(output[0], expected, rtol=1e-9, atol=1e-9)

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((output[0] * weight).sum(), (query, key, value))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-9)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 6), max_size=4)), min_size=1, max_size=6
    )
)
@settings(max_examples=25, deadline=None)
def test_any_mixture_of_trees_is_kept_apart(sizes: list[tuple[int, list[int]]]) -> None:
    trees = [Tree(prompt_tokens=prompt, response_tokens=tuple(responses)) for prompt, responses in sizes]
    layout = TreeLayout(trees)
    query, key, value = random_heads(layout.num_tokens, heads=2, key_heads=1)
    output = layout.attend(query, key, value, AttentionCall(layer_index=0, scaling=0.3))
    expected = attention_by_loops(trees, query, key, value, None)
    torch.testing.assert_close(output[0], expected, rtol=1e-9, atol=1e-9)


def test_equal_trees_need_no_padding_and_give_the_same() -> None:
    trees = [Tree(prompt_tokens=4, response_tokens=(2, 3))] * 3
    layout = TreeLayout(trees)
    query, key, value = random_heads(layout.num_tokens)
    output = layout.attend(query, key, value, AttentionCall(layer_index=0, scaling=0.3))
    torch.testing.assert_close(
        output[0], attention_by_loops(trees, query, key, value, None), rtol=1e-9, atol=1e-9
    )


def test_half_precision_stays_close() -> None:
    layout = TreeLayout(TREES)
    heads = random_heads(layout.num_tokens)
    call = AttentionCall(layer_index=0, scaling=0.3)
    exact = layout.attend(*heads, call)
    rounded = layout.attend(*(tensor.bfloat16() for tensor in heads), call)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_what_a_layout_cannot_compute_is_refused(option: str) -> None:
    layout = TreeLayout([Tree(prompt_tokens=3, response_tokens=())])
    query, key, value = random_heads(3)
    with pytest.raises(UnsupportedArchitectureError, match=option):
        packed_attention(torch.nn.Linear(1, 1), query, key, value, None, layout=layout, **{option: 1.0})


def test_a_call_without_layout_is_a_mistake() -> None:
    query, key, value = random_heads(3)
    with pytest.raises(TypeError, match="layout"):
        packed_attention(torch.nn.Linear(1, 1), query, key, value, None)


@pytest.mark.parametrize("shares_keys", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(
    "read", [None, [3, 4, 5], [0, 7, 9, 20], [40, 41, 50, 61, 70, 71, 90, 93], list(range(1, 95, 2))]
)
@pytest.mark.parametrize("trees", [TREES, TREES[:4]], ids=["trees", "sequences"])
def test_a_variable_length_kernel_gets_the_right_keys(
    trees: list[Tree], read: list[int] | None, window: int | None, shares_keys: bool
) -> None:
    query, key, value = random_heads(sum(tree.num_tokens for tree in trees))
    for tensor in (query, key, value):
        tensor.requires_grad_()
    if read is not None:
        read = [token for token in read if token < query.shape[2]]
    kernel = Kernel(function=varlen_by_loops, shares_keys=shares_keys)
    attention = VarlenAttention(trees, read=read, device=torch.device("cpu"), kernel=kernel)
    asked = query if read is None else query[:, :, read]
    output = attention.attend(
        asked, key, value, AttentionCall(layer_index=0, scaling=0.3, sliding_window=window)
    )[0]
    expected = attention_by_loops(trees, query, key, value, window)
    expected = expected if read is None else expected[read]
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-9)


def test_only_half_precision_on_a_gpu_goes_to_the_variable_length_kernel() -> None:
    assert not can_attend(
        torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), AttentionCall(layer_index=0, scaling=1.0)
    )
