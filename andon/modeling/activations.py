"""Decides how a model's activations are computed: in one pass, and with the product before them where it can.

Between a product and what follows it an activation reads and writes all of the widest tensor of a layer. A
product by oneDNN applies it to each number before the number leaves the processor. ``linear`` does that in
passes without gradients, which need the number itself too; here the layers are found whose output goes into
an activation and nowhere else. ``loading`` calls ``use_fast_activations`` on every model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

from andon.modeling.linear import Activation, OneDnnConv1D, OneDnnLinear

# Hugging Face's classes, some of which spell the formula out in seven passes, and torch's for the same.
_IN_ONE_PASS: Mapping[type[nn.Module], Callable[[], nn.Module]] = {
    NewGELUActivation: lambda: nn.GELU(approximate="tanh"),
    GELUTanh: lambda: nn.GELU(approximate="tanh"),
    GELUActivation: nn.GELU,
    SiLUActivation: nn.SiLU,
}


def use_fast_activations(model: nn.Module) -> None:
    """Compute the activations of ``model`` in fewer passes over memory; call it after ``use_fast_products``.

    The model is in evaluation mode and on the device of its weights.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in _IN_ONE_PASS:
                setattr(parent, name, _IN_ONE_PASS[type(child)]())
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for parent in list(model.modules()):
        _join_with_product(parent, uses)


def _join_with_product(parent: nn.Module, uses: Mapping[nn.Module, int]) -> None:
    """Give the only activation of ``parent`` to the layer before it, if a trial shows that there is one.

    Neither may have another name or another place in the model: ``uses`` counts them.
    """
    children = {name: child for name, child in parent.named_children() if uses[child] == 1}
    known = {name: found for name, child in children.items() if (found := _known(child)) is not None}
    if len(known) != 1 or any(True for child in children.values() for _ in child.children()):
        return
    ((name, activation),) = known.items()
    for layer in children.values():
        if isinstance(layer, (OneDnnLinear, OneDnnConv1D)) and _feeds_only(parent, layer, activation.module):
            layer.activation = activation
            setattr(parent, name, nn.Identity())
            return


def _known(module: nn.Module) -> Activation | None:
    """What oneDNN calls an activation."""
    if type(module) is nn.GELU:
        return Activation(module=module, attribute="gelu", algorithm=module.approximate)
    if type(module) is nn.SiLU:
        return Activation(module=module, attribute="swish", algorithm="")
    return None


def _feeds_only(parent: nn.Module, layer: OneDnnLinear | OneDnnConv1D, activation: nn.Module) -> bool:
    """Whether the output of ``layer`` is the input of ``activation`` and nothing else reads it.

    In the trial the layer gives NaN and the activation ones, whatever it gets: NaN comes out if anything but
    the activation has read it, by whatever weights it is multiplied.
    """
    given: list[Tensor] = []
    taken: list[Tensor] = []

    def give(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        given.append(torch.full_like(output, torch.nan))
        return given[-1]

    def take(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(*inputs)
        return torch.ones_like(output)

    hooks = [layer.register_forward_hook(give), activation.register_forward_hook(take)]
    try:
        with torch.inference_mode():
            output = parent(layer.weight.new_ones((1, 2, layer.in_width)))
    except Exception:  # noqa: BLE001 - whatever a module does with one input, it is none that is known here
        return False
    finally:
        for hook in hooks:
            hook.remove()
    is_one_to_one = len(given) == len(taken) == 1 and taken[0] is given[0]
    return is_one_to_one and isinstance(output, Tensor) and bool(output.isfinite().all())
