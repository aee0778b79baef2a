from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionLayout
from andon.modeling.last_layer import RowSelection
from andon.modeling.loading import new_causal_lm
from andon.modeling.text import TextCodec
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree

TREES = [
    Tree(prompt_tokens=5, response_tokens=(3,)),
    Tree(prompt_tokens=6, response_tokens=(3,)),
    Tree(prompt_tokens=7, response_tokens=()),
    Tree(prompt_tokens=4, response_tokens=(3, 1, 5)),
    Tree(prompt_tokens=3, response_tokens=(2, 2)),
]


@pytest.fixture
def model(architecture: dict[str, Any], codec: TextCodec) -> PreTrainedModel:
    made = new_causal_lm(architecture, codec, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return made


def positions() -> list[int]:
    found: list[int] = []
    for tree in TREES:
        found += range(tree.prompt_tokens)
        for tokens in tree.response_tokens:
            found += range(tree.prompt_tokens, tree.prompt_tokens + tokens)
    return found


def hidden(model: PreTrainedModel, layout: AttentionLayout) -> Tensor:
    row = positions()
    ids = torch.tensor([[4 + (3 * place + 7) % 17 for place in range(len(row))]])
    output: Tensor = model.base_model(
        input_ids=ids, position_ids=torch.tensor([row]), use_cache=False, layout=layout
    ).last_hidden_state[0]
    return output


@pytest.mark.parametrize(
    "read",
    [[7, 15], [0], [4, 5, 6, 7, 12, 13, 24, 25, 26, 30, 31], [27, 3, 27, 11], range(40)],
    ids=["two", "first", "branches", "repeated", "all"],
)
def test_what_is_read_is_what_a_whole_pass_gives(model: PreTrainedModel, read: list[int]) -> None:
    layout = TreeLayout(TREES)
    index = torch.tensor([place for place in read if place < layout.num_tokens])
    whole = hidden(model, layout)[index]
    part = hidden(model, layout.reading(index))[index]
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)

    slope = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    parameters = [parameter for name, parameter in model.named_parameters() if "lm_head" not in name]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    expected = torch.autograd.grad((whole * slope).sum(), parameters, allow_unused=True)
    found = torch.autograd.grad((part * slope).sum(), parameters, allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            assert mine is not None
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_last_layer_sees_only_what_is_read(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = new_causal_lm(architecture, codec, 0)
    rows: list[int] = []
    for layer in model.transformer.h:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    layout = TreeLayout(TREES)
    hidden(model, layout.reading(torch.tensor([2, 9, 9])))
    assert rows == [layout.num_tokens, 2]


def test_a_selection_knows_where_every_token_goes() -> None:
    rows = RowSelection.of(torch.tensor([4, 1, 4]), 6)
    assert rows.read.tolist() == [1, 4]
    assert rows.rest.tolist() == [0, 2, 3, 5]
    assert torch.cat([rows.read, rows.rest])[rows.place].tolist() == list(range(6))
