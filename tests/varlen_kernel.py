"""Torch's variable-length attention, which only GPUs have, as a plain function."""

import itertools

import torch
from torch import Tensor


def varlen_by_loops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's variable-length kernel computes on GPUs: a sequence's last query sees its last key."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert longest_query == query_ends.diff().max()
    assert longest_key == key_ends.diff().max()
    assert enable_gqa == (query.shape[1] != key.shape[1])
    parts = []
    for (begin, past), (first, end) in zip(
        itertools.pairwise(query_ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True
    ):
        q, k, v = (rows.transpose(0, 1) for rows in (query[begin:past], key[first:end], value[first:end]))
        distance = torch.arange(end - first - (past - begin), end - first)[:, None] - torch.arange(
            end - first
        )
        visible = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] == -1))
        repeats = query.shape[1] // key.shape[1]
        attended = torch.nn.functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(repeats, 0),
            v.repeat_interleave(repeats, 0),
            attn_mask=visible,
            scale=scale,
        )
        parts.append(attended.transpose(0, 1))
    return torch.cat(parts)
