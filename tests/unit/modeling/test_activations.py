from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from andon.modeling import linear as linear_module
from andon.modeling.activations import use_fast_activations
from andon.modeling.linear import has_operator, use_fast_products
from andon.modeling.loading import new_causal_lm
from andon.modeling.text import TextCodec
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree

needs_operator = pytest.mark.skipif(not has_operator(), reason="this torch has no oneDNN linear layer")

# The layer of each architecture that applies the activation.
ACTIVE_LAYER = {"gpt2": "c_fc", "gpt_neox": "dense_h_to_4h", "llama": "gate_proj", "qwen2": "gate_proj"}


@pytest.fixture
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "has_slow_default", lambda: True)
    monkeypatch.setattr(linear_module, "_FEWEST_MULTIPLICATIONS", 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(model: nn.Module) -> nn.Module:
    model.eval()
    use_fast_products(model)
    use_fast_activations(model)
    return model


def active_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if getattr(module, "activation", None) is not None]


class Mlp(nn.Module):
    """Two layers with an activation between them, as Hugging Face's are written."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.c_fc = Conv1D(24, 8)
        self.c_proj = nn.Linear(24, 8)
        self.act = activation

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.c_proj(self.between(self.c_fc(hidden)))
        return output

    def between(self, wide: Tensor) -> Tensor:
        activated: Tensor = self.act(wide)
        return activated


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
@pytest.mark.parametrize(
    "activation",
    [
        NewGELUActivation,
        GELUTanh,
        GELUActivation,
        SiLUActivation,
        nn.SiLU,
        nn.GELU,
        lambda: nn.GELU(approximate="tanh"),
    ],
)
def test_an_activation_in_the_product_is_the_activation_after_it(activation: Callable[[], nn.Module]) -> None:
    mlp = Mlp(activation())
    rows = 4 * random(2, 50, 8)
    weights, expected = list(mlp.state_dict()), mlp.double()(rows.double())
    prepared(mlp.float())
    assert active_layers(mlp) == ["c_fc"]
    assert list(mlp.state_dict()) == weights
    with torch.inference_mode():
        torch.testing.assert_close(mlp(rows).double(), expected, rtol=1e-5, atol=2e-6)
    for dtype in (torch.bfloat16, torch.float64):  # which the product leaves to torch
        with torch.inference_mode():
            given = mlp.to(dtype)(rows.to(dtype)).double()
        torch.testing.assert_close(given, expected, rtol=0.05, atol=0.05)


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
def test_with_gradients_nothing_changes() -> None:
    plain, joined = Mlp(nn.GELU(approximate="tanh")), Mlp(NewGELUActivation())
    joined.load_state_dict(plain.state_dict())
    use_fast_products(plain)
    prepared(joined)
    rows = random(40, 8)
    outputs = [mlp(rows) for mlp in (plain, joined)]
    assert torch.equal(*outputs)
    gradients = [
        torch.autograd.grad(output.square().sum(), list(mlp.parameters()))
        for output, mlp in zip(outputs, (plain, joined), strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


class ReadTwice(Mlp):
    def between(self, wide: Tensor) -> Tensor:
        activated: Tensor = self.act(wide) + 0 * wide
        return activated


class NotDirect(Mlp):
    def between(self, wide: Tensor) -> Tensor:
        activated: Tensor = self.act(2 * wide)
        return activated


class ActivatedTwice(Mlp):
    def between(self, wide: Tensor) -> Tensor:
        activated: Tensor = self.act(self.act(wide))
        return activated


class UnderTwoNames(Mlp):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__(activation)
        self.other = activation

    def between(self, wide: Tensor) -> Tensor:
        activated: Tensor = self.other(wide)
        return activated


class WithMore(Mlp):
    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            raise LookupError("what is the residual?")
        return residual + super().forward(hidden)


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
@pytest.mark.parametrize("kind", [ReadTwice, NotDirect, ActivatedTwice, UnderTwoNames, WithMore])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_what_is_not_a_layer_with_its_activation_stays(kind: type[Mlp], scale: float) -> None:
    """Not even where weights of zero hide that the layer's output is read twice."""
    mlp = kind(nn.GELU())
    with torch.no_grad():
        mlp.c_proj.weight.mul_(scale)
    arguments = (random(5, 8), random(5, 8, seed=1)) if kind is WithMore else (random(5, 8),)
    expected = mlp(*arguments)
    prepared(mlp)
    assert active_layers(mlp) == []
    assert type(mlp.act) is nn.GELU
    with torch.inference_mode():
        torch.testing.assert_close(mlp(*arguments), expected)


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
def test_a_layer_that_others_call_too_stays() -> None:
    first, second = Mlp(nn.GELU()), nn.Sequential(nn.Linear(8, 8))
    second.append(first.c_fc)
    assert active_layers(prepared(nn.ModuleList([first, second]))) == []


class UpFirst(nn.Module):
    """A gated layer whose plain branch is made before the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act_fn = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down(self.up(hidden) * self.act_fn(self.gate(hidden)))
        return output


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
def test_the_gate_is_told_from_what_it_lets_through() -> None:
    layer = UpFirst()
    with torch.no_grad():
        layer.down.weight.zero_()
    assert active_layers(prepared(layer)) == ["gate"]


@needs_operator
@pytest.mark.usefixtures("_by_onednn")
def test_models_compute_what_plain_ones_do(architecture: dict[str, Any], codec: TextCodec) -> None:
    before = torch.get_rng_state()
    model = new_causal_lm(architecture, codec, seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # trying draws nothing
    layers = active_layers(model)
    assert [name.rpartition(".")[2] for name in layers] == [ACTIVE_LAYER[architecture["model_type"]]] * 2

    plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(5)[None]
    layout = TreeLayout([Tree(prompt_tokens=5, response_tokens=())])
    with torch.inference_mode():
        given = model(
            input_ids=ids, position_ids=torch.arange(5)[None], use_cache=False, layout=layout
        ).logits
        expected = plain(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
