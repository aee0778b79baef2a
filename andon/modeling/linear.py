"""Decides which library multiplies the matrices of linear layers on the CPU.

torch leaves float32 products to MKL, which keeps its AVX-512 kernels from processors that are not Intel's: on
an AMD core with AVX-512 it reaches less than half the rate of oneDNN, which torch also contains. There, and
only there, linear layers are given to oneDNN: the same products of the same float32 numbers, summed in
another order. ``loading`` calls ``use_fast_products`` on every model; weights, names and types of modules
stay what they were to everyone who looks. A service's ``__main__`` says by ``keep_kernels`` how many kernels
are worth their memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

# torch's operator for a oneDNN linear layer is not part of its public interface: used only in this very form.
_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm)"
    " -> Tensor Y"
)

# A sampler with one or two sequences has fewer rows: reading the weights is all there, and MKL reads faster.
_FEWEST_ROWS = 3
# Multiplications below which MKL has finished before oneDNN has begun: 128 rows of a layer 128 wide.
_FEWEST_MULTIPLICATIONS = 1 << 21

# Numbers of a weight from which on a product reads it faster as [out, in] than as [in, out]: 8 MiB.
_FEWEST_TO_ORDER = 1 << 21

# The two caches that a product goes through, torch's and oneDNN's own. Each has room for 1024 unless told.
_CACHE_CAPACITIES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
# Packed rows hardly ever have a number of rows twice, so a pass makes its kernels anew. Log-probabilities
# keep one, for their memory; scores, whose rows are short, all that a pass has. A sampler's steps repeat a
# few small ones, and layers with gradients have several each.
KERNELS_OF_LOGPROBS = 1
KERNELS_OF_SCORES = 8
KERNELS_OF_TRAINING = 16
KERNELS_OF_SAMPLING = 32


def keep_kernels(count: int) -> None:
    """Keep what oneDNN prepared for the last ``count`` shapes of products; call it before the first product.

    A shape's kernel holds 0.6 MB and takes 0.1 to 0.4 ms to make anew. Those that are kept lie in the midst
    of activations, whose memory can then not be used in one piece. Child processes inherit the number.
    """
    for variable in _CACHE_CAPACITIES:
        os.environ[variable] = str(count)


def use_fast_products(model: nn.Module) -> None:
    """Let the linear layers of ``model`` multiply with oneDNN where that is known to be faster."""
    if not has_slow_default():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
        elif type(module) is Conv1D:
            module.__class__ = OneDnnConv1D


def order_weights(model: nn.Module) -> None:
    """Lay the large weights of GPT-2's linear layers out in memory as oneDNN reads them faster.

    Their values and shapes stay, their strides do not. For models that learn no more: a backward pass would
    lose what the forward pass gains. One weight exists twice at a time.
    """
    for module in model.modules():
        if isinstance(module, OneDnnConv1D) and _is_worth_ordering(module.weight):
            module.weight.data = module.weight.data.t().contiguous().t()


def _is_worth_ordering(weight: Tensor) -> bool:
    is_float_on_cpu = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return is_float_on_cpu and weight.numel() >= _FEWEST_TO_ORDER


@cache
def has_slow_default() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use, and torch has the operator."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    return _vendor() == "AuthenticAMD" and has_operator()


def has_operator() -> bool:
    """Whether this torch has oneDNN's linear layer in the form that is known here."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return str(torch.ops.mkldnn._linear_pointwise.default._schema) == _SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What follows a linear layer, number by number."""

    module: nn.Module  # without parameters
    attribute: str  # the operator's name for it
    algorithm: str  # and for the formula, where there are several

    def __call__(self, output: Tensor) -> Tensor:
        """Apply it to a product that is there already."""
        activated: Tensor = self.module(output)
        return activated


class OneDnnLinear(nn.Linear):
    """A linear layer that multiplies with oneDNN in float32 on the CPU, and as ever otherwise."""

    activation: Activation | None = None  # part of the layer, if ``activations`` has put it here

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """input: [..., in]. Returns [..., out]."""
        if _is_fit(input, self.weight):
            return linear(input, self.weight, self.bias, self.activation)
        output = super().forward(input)
        return output if self.activation is None else self.activation(output)

    @property
    def in_width(self) -> int:
        """The numbers of an input."""
        return self.weight.shape[1]


class OneDnnConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight is [in, out], in the same way."""

    activation: Activation | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]. Returns [..., out]."""
        if _is_fit(x, self.weight):
            return linear(x, self.weight.t(), self.bias, self.activation)
        output: Tensor = super().forward(x)
        return output if self.activation is None else self.activation(output)

    @property
    def in_width(self) -> int:
        """The numbers of an input."""
        width: int = self.weight.shape[0]
        return width


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Tensor:
    """activation(rows @ weight.T + bias) by oneDNN; gradients flow.

    rows: [..., in]; weight: [out, in], in any memory order; bias: [out]; all float32 on the CPU.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    shape = (*rows.shape[:-1], weight.shape[0])
    if not _wants_gradients(rows, weight, bias):
        return _product(flat, weight, bias, activation).view(shape)
    output: Tensor = _Linear.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
    output = output.view(shape)
    return output if activation is None else activation(output)


def _wants_gradients(*parts: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:  # Any: torch's context
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wants_rows else None,
            _weight_gradient(rows, gradient) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )


def _weight_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    """[out, in]. The operator copies a transposed first factor: let that be the narrower one."""
    if gradient.shape[1] <= rows.shape[1]:
        return _product(gradient.t(), rows.t())
    return _product(rows.t(), gradient.t()).t()


def _product(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """[N, in] and [out, in] to [N, out]."""
    attribute, algorithm = (
        ("none", "") if activation is None else (activation.attribute, activation.algorithm)
    )
    output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, attribute, [], algorithm)
    return output


def _is_fit(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and rows.device.type == weight.device.type == "cpu"
        and rows.numel() >= _FEWEST_ROWS * rows.shape[-1]
        and rows.numel() * weight.numel() >= _FEWEST_MULTIPLICATIONS * rows.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def _vendor() -> str:
    """The processor's maker as it names itself; empty where the system does not say."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text().splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return ""
