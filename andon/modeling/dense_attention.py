"""Attention of rectangles on the CPU that returns the log-sum-exps of its scores, and its gradients.

Log-sum-exps are what joins attention over several sets of keys (``cascade``). torch's kernel behind
``scaled_dot_product_attention`` computes them, and its public function hides them. Of causal attention the
kernel computes all scores of fewer than 512 keys and drops those of later keys; here it gets the queries in
blocks, each with no more keys than its last query sees.
"""

from __future__ import annotations

from collections.abc import Iterator

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

# Of causal attention n blocks compute (n + 1) / 2n of all scores. More and smaller ones save no more: the
# kernel works on 32 queries at a time, or on 64.
_CAUSAL_BLOCKS = 4
_FEWEST_QUERIES_OF_A_BLOCK = 32


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
    """query: [batch, n, heads, size]; key, value: [batch, m, heads, size]; mask: [batch, 1, n, m],
    added to the scores. ``is_causal``: query i sees keys 0..i, and there is no mask.

    Returns the output, [batch, n, heads, size], and the log-sum-exps, [batch, n, heads].
    """
    output, logsumexp = empty_result(query)
    forward_into(output, logsumexp, query, key, value, scaling=scaling, is_causal=is_causal, mask=mask)
    return output, logsumexp


def empty_result(query: Tensor) -> tuple[Tensor, Tensor]:
    """query: [..., heads, size]. Returns room for the output of these queries and their log-sum-exps."""
    sums_type = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=sums_type)


def forward_into(
    output: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> None:
    """The same into tensors that are there, whatever their strides."""
    everything = slice(None)
    blocks = _causal_blocks(query) if is_causal else [(everything, everything, mask)]
    for rows, seen, block_mask in blocks:
        attended, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, rows].transpose(1, 2),
            key[:, seen].transpose(1, 2),
            value[:, seen].transpose(1, 2),
            attn_mask=None if block_mask is None else block_mask.to(query.dtype),
            scale=scaling,
        )
        output[:, rows] = attended.transpose(1, 2)
        logsumexp[:, rows] = sums.transpose(1, 2)


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
    if is_causal:
        of_query, of_key, of_value = (
            torch.zeros_like(rows, memory_format=torch.contiguous_format) for rows in (query, key, value)
        )
        for rows, seen, block_mask in _causal_blocks(query):
            of_block = backward(
                *(part[:, rows] for part in (gradient, query)),
                *(part[:, seen] for part in (key, value)),
                *(part[:, rows] for part in (output, logsumexp)),
                scaling=scaling,
                mask=block_mask,
            )
            of_query[:, rows] = of_block[0]
            of_key[:, seen] += of_block[1]
            of_value[:, seen] += of_block[2]
        return of_query, of_key, of_value
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient.transpose(1, 2),
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        output.transpose(1, 2),
        logsumexp.transpose(1, 2),
        0.0,
        False,
        attn_mask=None if mask is None else mask.to(query.dtype),
        scale=scaling,
    )
    return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2)


def _causal_blocks(query: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The queries of each block, the keys that any of them sees, and their mask, [1, 1, queries, keys]."""
    length = query.shape[1]
    count = max(1, min(_CAUSAL_BLOCKS, length // _FEWEST_QUERIES_OF_A_BLOCK))
    size = -(-length // count)
    for begin in range(0, length, size):
        end = min(begin + size, length)
        later = torch.full((end - begin, end), float("-inf")).triu_(begin + 1)
        yield slice(begin, end), slice(0, end), later[None, None]


def _has_operators() -> bool:
    return all(
        hasattr(torch.ops.aten, name)
        and str(getattr(torch.ops.aten, name).default._schema) == f"aten::{name}{schema}"
        for name, schema in _SCHEMAS.items()
    )


_HAS_OPERATORS = _has_operators()
