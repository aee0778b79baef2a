"""Attention over a packed row of trees by a variable-length kernel, as GPUs have it.

The kernel takes sequences of any lengths end to end, each with its own keys, and aligns the last query with
the last key. A tree becomes one sequence per branch: the prompt over itself, and each response over the
prompt and itself, for which the prompt's keys and values are repeated. Queries stay where they are in the
row. Of a row that is read in part (``last_layer``), every run of neighbouring tokens is a sequence whose keys
end at its last token. ``tree_layout`` uses this where ``can_attend`` says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andon.modeling.attention import AttentionCall
from andon.modeling.trees import Tree

_HALF = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256  # of the kernels in torch
_OLDEST_GPU = (8, 0)  # compute capability


def can_attend(query: Tensor, call: AttentionCall) -> bool:
    """Whether torch's kernel takes such heads: half precision on a GPU that has it, no dropout."""
    head_size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _HALF
        and call.dropout == 0.0
        and head_size <= _LARGEST_HEAD
        and head_size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= _OLDEST_GPU
        and _torch_kernel() is not None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A function like torch's ``varlen_attn``."""

    function: Callable[..., Any]
    shares_keys: bool  # whether it knows ``enable_gqa``; torch 2.11 does not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sequence:
    """Neighbouring queries and the keys that the last of them sees, in tokens of the row."""

    queries: range
    keys: tuple[range, ...]  # the prompt's part and the response's


class VarlenAttention:
    """The attention of one packed row, or of the part of it that is read."""

    def __init__(
        self,
        trees: Sequence[Tree],
        *,
        read: Sequence[int] | None = None,
        device: torch.device,
        kernel: Kernel | None = None,
    ) -> None:
        """``read``: ascending tokens whose attention is wanted; None: all. ``kernel``: torch's where it is
        None, which ``can_attend`` has found there.
        """
        num_tokens = sum(tree.num_tokens for tree in trees)
        is_read = None
        if read is not None:
            is_read = np.zeros(num_tokens, dtype=np.bool_)
            is_read[read] = True
        sequences = [sequence for sequence in _sequences(trees, is_read) if len(sequence.queries)]
        parts = [part for sequence in sequences for part in sequence.keys]
        self._key_index: Tensor | None = None
        if not _is_row(parts, num_tokens):
            index = np.concatenate([np.arange(part.start, part.stop) for part in parts])
            self._key_index = torch.from_numpy(index).to(device)
        query_lengths = [len(sequence.queries) for sequence in sequences]
        key_lengths = [sum(map(len, sequence.keys)) for sequence in sequences]
        self._query_ends = _cumulative(query_lengths, device)
        self._key_ends = _cumulative(key_lengths, device)
        self._longest = max(query_lengths), max(key_lengths)
        found = _torch_kernel() if kernel is None else kernel
        assert found is not None
        self._kernel = found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """query: [1, query heads, M, head size] of the tokens that are read; key, value: [1, key heads, N,
        head size]. Returns [1, M, query heads, head size].
        """
        queries, keys, values = (rows[0].transpose(0, 1) for rows in (query, key, value))
        if self._key_index is not None:
            keys, values = (rows.index_select(0, self._key_index) for rows in (keys, values))
        if (group := query.shape[1] // key.shape[1]) > 1 and not self._kernel.shares_keys:
            keys, values = (rows.repeat_interleave(group, dim=1) for rows in (keys, values))
        options = {"enable_gqa": group > 1} if self._kernel.shares_keys else {}
        attended: Tensor = self._kernel.function(
            queries.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            self._query_ends,
            self._key_ends,
            *self._longest,
            scale=call.scaling,
            window_size=(-1 if call.sliding_window is None else call.sliding_window - 1, 0),
            **options,
        )
        return attended[None]


@cache
def _torch_kernel() -> Kernel | None:
    """None where torch has none that takes windows."""
    # Imported where it is used: only a torch with CUDA has kernels behind it.
    from torch.nn.attention.varlen import varlen_attn

    options = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= options.keys():
        return None
    return Kernel(function=varlen_attn, shares_keys="enable_gqa" in options)


def _is_row(parts: Sequence[range], num_tokens: int) -> bool:
    """Whether these parts are, one behind the other, the tokens of the row as they stand there."""
    begins, ends = [part.start for part in parts], [part.stop for part in parts]
    return begins == [0, *ends[:-1]] and ends[-1] == num_tokens


def _sequences(trees: Sequence[Tree], is_read: NDArray[np.bool_] | None) -> Iterator[_Sequence]:
    begin = 0
    for tree in trees:
        if len(tree.response_tokens) <= 1:
            yield from _runs(range(begin, begin + tree.num_tokens), (), is_read)
        else:
            place = begin + tree.prompt_tokens
            prompt = range(begin, place)
            yield from _runs(prompt, (), is_read)
            for tokens in tree.response_tokens:
                yield from _runs(range(place, place + tokens), (prompt,), is_read)
                place += tokens
        begin += tree.num_tokens


def _runs(part: range, before: tuple[range, ...], is_read: NDArray[np.bool_] | None) -> Iterator[_Sequence]:
    """The runs of tokens of ``part`` that are read; all of them see ``before`` and their past in ``part``."""
    if is_read is None:
        yield _Sequence(queries=part, keys=(*before, part))
        return
    # Where reading begins and where it ends, in turn.
    reading = np.diff(is_read[part.start : part.stop].astype(np.int8), prepend=0, append=0)
    bounds = (part.start + reading.nonzero()[0]).tolist()
    for first, past in zip(bounds[::2], bounds[1::2], strict=True):
        yield _Sequence(queries=range(first, past), keys=(*before, range(part.start, past)))


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[len(lengths) + 1] int32, as the kernel wants the bounds of sequences."""
    bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return torch.from_numpy(bounds).to(device)
