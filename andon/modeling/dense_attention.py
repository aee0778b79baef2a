"""Attention of rectangles on the CPU that returns the log-sum-exps of its scores, and its gradients.

Log-sum-exps are what joins attention over several sets of keys (``cascade``). torch's kernel behind
``scaled_dot_product_attention`` computes them and its public function hides them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# torch's operators are not part of its public interface: used only in this very form.
_SCHEMAS = {
    "_scaled_dot_product_flash_attention_for_cpu": (
        "(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *,"
        " Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)"
    ),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp,"
        " float dropout_p, bool is_causal, *, Tensor? attn_mask=None, float? scale=None)"
        " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
    ),
}


def can_attend(query: Tensor) -> bool:
    """Whether the queries are on the CPU and torch has the operators in the form that is known here."""
    return query.device.type == "cpu" and _HAS_OPERATORS


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """query: [batch, n, heads, size]; key, value: [batch, m, heads, size]; mask: [batch, 1, n, m] bool, True
    where a key is seen. ``is_causal``: query i sees keys 0..i.

    Returns the output, [batch, n, heads, size], and the log-sum-exps, [batch, n, heads].
    """
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        0.0,
        is_causal,
        attn_mask=_additive(mask, query.dtype),
        scale=scaling,
    )
    return output.transpose(1, 2), logsumexp.transpose(1, 2)


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    *,
    scaling: float,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value as far as these keys go, from that of the output.

    ``output`` and ``logsumexp`` may be those over more keys than these.
    """
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient.transpose(1, 2),
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        output.transpose(1, 2),
        logsumexp.transpose(1, 2),
        0.0,
        is_causal,
        attn_mask=_additive(mask, query.dtype),
        scale=scaling,
    )
    return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _has_operators() -> bool:
    return all(
        hasattr(torch.ops.aten, name)
        and str(getattr(torch.ops.aten, name).default._schema) == f"aten::{name}{schema}"
        for name, schema in _SCHEMAS.items()
    )


_HAS_OPERATORS = _has_operators()
