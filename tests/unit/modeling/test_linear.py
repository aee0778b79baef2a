import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from andon.modeling import linear as linear_module
from andon.modeling.linear import (
    OneDnnConv1D,
    OneDnnLinear,
    has_operator,
    linear,
    order_weights,
    use_fast_products,
)

needs_operator = pytest.mark.skipif(not has_operator(), reason="this torch has no oneDNN linear layer")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@needs_operator
@pytest.mark.parametrize("rows", [(1, 7), (300, 64), (2, 5, 24)])
@pytest.mark.parametrize("width", [3, 96])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_products_and_gradients_are_those_of_torch(
    rows: tuple[int, ...], width: int, has_bias: bool, is_transposed: bool
) -> None:
    inputs = random(*rows).requires_grad_()
    weight = random(rows[-1], width).t() if is_transposed else random(width, rows[-1])
    weight.requires_grad_()
    bias = random(width).requires_grad_() if has_bias else None
    leaves = [inputs, weight] if bias is None else [inputs, weight, bias]

    ours = linear(inputs, weight, bias)
    expected = nn.functional.linear(inputs, weight, bias)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    slope = random(*expected.shape)
    for mine, theirs in zip(
        torch.autograd.grad((ours * slope).sum(), leaves),
        torch.autograd.grad((expected * slope).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)


@needs_operator
def test_only_gradients_that_are_wanted_are_computed() -> None:
    inputs, weight = random(4, 3), random(2, 3).requires_grad_()
    linear(inputs, weight, None).sum().backward()
    assert inputs.grad is None
    torch.testing.assert_close(weight.grad, inputs.sum(0).expand(2, 3))


class Pair(nn.Module):
    """Two layers, one of each kind, with one weight shared with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.narrow = Conv1D(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.head(self.narrow(self.embedding(ids)))
        return hidden


@needs_operator
def test_a_model_keeps_its_weights_names_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Pair()
    names, before = list(model.state_dict()), model(torch.arange(6))
    monkeypatch.setattr(linear_module, "has_slow_default", lambda: True)
    monkeypatch.setattr(linear_module, "_FEWEST_MULTIPLICATIONS", 1)
    use_fast_products(model)
    assert type(model.head) is OneDnnLinear
    assert isinstance(model.head, nn.Linear)
    assert type(model.narrow) is OneDnnConv1D
    assert isinstance(model.narrow, Conv1D)
    assert list(model.state_dict()) == names
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model(torch.arange(6)), before)


def test_where_torch_is_fast_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "has_slow_default", lambda: False)
    model = Pair()
    use_fast_products(model)
    assert type(model.head) is nn.Linear
    assert type(model.narrow) is Conv1D


@needs_operator
def test_large_weights_are_laid_out_for_speed_and_stay_what_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_module, "has_slow_default", lambda: True)
    monkeypatch.setattr(linear_module, "_FEWEST_MULTIPLICATIONS", 1)
    monkeypatch.setattr(linear_module, "_FEWEST_TO_ORDER", 96)
    layers = nn.Sequential(Conv1D(12, 8), Conv1D(7, 12), nn.Linear(7, 20))
    use_fast_products(layers)
    inputs = random(5, 8)
    with torch.inference_mode():
        expected = layers(inputs)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    order_weights(layers)
    after = layers.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [layer.weight.stride() for layer in layers] == [(1, 8), (7, 1), (7, 1)]
    with torch.inference_mode():
        torch.testing.assert_close(layers(inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_the_usual_way(dtype: torch.dtype) -> None:
    layer = nn.Linear(5, 3).to(dtype)
    inputs = random(2, 5, dtype=dtype)
    expected = layer(inputs)
    layer.__class__ = OneDnnLinear
    assert torch.equal(layer(inputs), expected)
    layer = nn.Linear(5, 3)
    layer.__class__ = OneDnnLinear
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs.float()).dtype == torch.bfloat16
    assert layer(torch.zeros(0, 5)).shape == (0, 3)


@needs_operator
def test_small_products_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Size] = []

    def note(rows: torch.Tensor, *layer: Any) -> torch.Tensor:
        given.append(rows.shape)
        return linear(rows, *layer)

    monkeypatch.setattr(linear_module, "linear", note)
    layer = nn.Linear(128, 128)
    layer.__class__ = OneDnnLinear
    for rows in (1, 127, 128, 500):
        layer(torch.zeros(rows, 128))
    wide = nn.Linear(2048, 2048)
    wide.__class__ = OneDnnLinear
    for rows in (2, 3):
        wide(torch.zeros(rows, 2048))
    assert given == [(128, 128), (500, 128), (3, 2048)]


KEPT_BYTES = """
import ctypes, torch
from andon.modeling.linear import keep_kernels, linear

class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def used_bytes():
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd

library = ctypes.CDLL("libc.so.6")
library.mallinfo2.restype = Mallinfo2
keep_kernels({count})
torch.set_num_threads(1)
inputs, weight = torch.ones(200, 64), torch.ones(64, 64)
linear(inputs, weight, None)
before = used_bytes()
for rows in range(100, 150):
    linear(inputs[:rows], weight, None)
print(used_bytes() - before)
"""


def bytes_after_fifty_shapes(count: int) -> int:
    program = KEPT_BYTES.format(count=count)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_operator
@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc for what is held")
def test_only_so_many_kernels_are_kept() -> None:
    assert bytes_after_fifty_shapes(count=1) < 2_000_000 < 10_000_000 < bytes_after_fifty_shapes(count=100)
