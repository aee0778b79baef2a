"""Attention of rectangles on the CPU that returns the log-sum-exps of its scores, and its gradients.

Log-sum-exps are what joins attention over several sets of keys (``cascade``). torch's kernel behind
``scaled_dot_product_attention`` computes them and its public function hides them. It multiplies by MKL; where
that is slow (``linear``), larger rectangles are computed here, head by head, with oneDNN's products. There
the exponential is taken to the base of 2, because torch's to the base of e is MKL's too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from andon.modeling.linear import has_slow_default, product

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

# Multiplications in a head's scores below which calls of oneDNN cost more than they save.
_FEWEST_MULTIPLICATIONS = 1 << 21
# Scores of a head that exist at a time: few enough for the processor's cache.
_SCORES_AT_A_TIME = 1 << 17
_LOG2_E = math.log2(math.e)


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
    if _is_faster_by_products(query, key):
        return _forward_by_products(query, key, value, scaling, is_causal, mask)
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
    if _is_faster_by_products(query, key):
        return _backward_by_products(
            gradient, query, key, value, output, logsumexp, scaling, is_causal, mask
        )
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


def _is_faster_by_products(query: Tensor, key: Tensor) -> bool:
    multiplications = query.shape[1] * key.shape[1] * query.shape[3]
    return multiplications >= _FEWEST_MULTIPLICATIONS and query.dtype == torch.float32 and has_slow_default()


def _forward_by_products(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, num_queries, heads, size = query.shape
    blocks = _Blocks(num_queries, key.shape[1], is_causal, mask)
    outputs: list[Tensor] = []
    highest: list[Tensor] = []
    totals: list[Tensor] = []
    for head, (q, k, v) in enumerate(
        zip(_by_head(query * (scaling * _LOG2_E)), _by_head(key), _by_head(value), strict=True)
    ):
        for rows, seen in blocks.slices:
            weights = blocks.scores(q, k, rows, seen, item=head // heads)
            highest.append(weights.amax(-1, keepdim=True))
            weights.sub_(highest[-1]).exp2_()
            totals.append(weights.sum(-1, keepdim=True))
            outputs.append(product(weights, v[seen].t()))
    total = torch.cat(totals)
    output = torch.cat(outputs).div_(total).view(batch, heads, num_queries, size)
    logsumexp = total.log2_().add_(torch.cat(highest)).div_(_LOG2_E).view(batch, heads, num_queries)
    return output.transpose(1, 2), logsumexp.transpose(1, 2)


def _backward_by_products(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    scaling: float,
    is_causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Legend: p = exp(scores - logsumexp), dp = gradient @ value.T, d scores = p (dp - gradient . output)."""
    batch, num_queries, heads, size = query.shape
    blocks = _Blocks(num_queries, key.shape[1], is_causal, mask)
    shift = logsumexp[..., None] * _LOG2_E
    mean = (gradient * output).sum(-1, keepdim=True)
    parts = (query * (scaling * _LOG2_E), key, value, gradient, shift, mean)
    of_queries: list[Tensor] = []
    of_keys: list[Tensor] = []  # [size, m] of each head
    of_values: list[Tensor] = []
    for head, (q, k, v, slope, sums, means) in enumerate(zip(*map(_by_head, parts), strict=True)):
        of_query, of_key, of_value = torch.empty_like(q), torch.zeros_like(k.t()), torch.zeros_like(v.t())
        for rows, seen in blocks.slices:
            weights = blocks.scores(q, k, rows, seen, item=head // heads)
            weights.sub_(sums[rows]).exp2_()
            of_scores = product(slope[rows], v[seen]).sub_(means[rows]).mul_(weights)
            of_query[rows] = product(of_scores, k[seen].t())
            of_key[:, seen] += product(q[rows].t(), of_scores.t())
            of_value[:, seen] += product(slope[rows].t(), weights.t())
        of_queries.append(of_query)
        of_keys.append(of_key)
        of_values.append(of_value)

    def joined(of_heads: list[Tensor]) -> Tensor:
        return torch.stack(of_heads).unflatten(0, (batch, heads))

    return (
        joined(of_queries).mul_(scaling).transpose(1, 2),
        joined(of_keys).div_(_LOG2_E).permute(0, 3, 1, 2),
        joined(of_values).permute(0, 3, 1, 2),
    )


class _Blocks:
    """Cuts a head's scores into rows that are computed at a time, and knows what they see."""

    def __init__(self, num_queries: int, num_keys: int, is_causal: bool, mask: Tensor | None) -> None:
        count = math.ceil(num_queries * num_keys / _SCORES_AT_A_TIME)
        size = math.ceil(num_queries / count)
        ends = [min(begin + size, num_queries) for begin in range(0, num_queries, size)]
        # The rows of each block and the keys that any of them sees.
        self.slices = [
            (slice(begin, end), slice(0, end if is_causal else num_keys))
            for begin, end in zip([0, *ends], ends, strict=False)
        ]
        self._later = torch.full((size, size), float("-inf")).triu_(1) if is_causal else None
        self._mask = _additive(mask, torch.float32)

    def scores(self, query: Tensor, key: Tensor, rows: slice, seen: slice, *, item: int) -> Tensor:
        """query @ key.T of one head and item of the batch, minus infinity where a key is not seen."""
        scores = product(query[rows], key[seen])
        if self._later is not None:
            size = len(scores)
            scores[:, rows].add_(self._later[:size, :size])
        if self._mask is not None:
            scores.add_(self._mask[item, 0, rows, seen])
        return scores


def _by_head(rows: Tensor) -> tuple[Tensor, ...]:
    """[batch, n, heads, size] to batch * heads tensors [n, size], each in one piece of memory."""
    return rows.transpose(1, 2).contiguous().flatten(0, 1).unbind()


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _has_operators() -> bool:
    return all(
        hasattr(torch.ops.aten, name)
        and str(getattr(torch.ops.aten, name).default._schema) == f"aten::{name}{schema}"
        for name, schema in _SCHEMAS.items()
    )


_HAS_OPERATORS = _has_operators()
