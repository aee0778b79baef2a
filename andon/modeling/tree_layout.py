"""Decides which tokens of a packed row of trees see which, and by what kernel that is computed.

A tree is a prompt and the responses to it; a token sees the prompt and what stands before it in its own
response. The linear layers run on the packed row as it is; for the attention alone the row is taken apart,
by a variable-length kernel where there is one (``varlen_attention``), on the CPU in two steps (``cascade``),
and into padded groups for what neither computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from andon.modeling import cascade, varlen_attention
from andon.modeling.attention import AttentionCall, AttentionLayout
from andon.modeling.cascade import CascadeAttention
from andon.modeling.last_layer import RowSelection
from andon.modeling.padded_groups import PaddedGroups, PaddedQueries
from andon.modeling.trees import Tree
from andon.modeling.varlen_attention import VarlenAttention


class TreeLayout:
    """Attention over a packed row of trees, without cross-talk; gradients flow."""

    def __init__(self, trees: Sequence[Tree], *, device: torch.device | str = "cpu") -> None:
        """``trees`` in the order of the row; neighbours of similar size make it fast."""
        self.trees = trees
        self.num_tokens = sum(tree.num_tokens for tree in trees)
        self.device = torch.device(device)
        self._longest = max(
            (tree.prompt_tokens + max(tree.response_tokens, default=0) for tree in trees), default=0
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """See ``AttentionLayout``; every layer is treated alike."""
        call = self.that_matters(call)
        if varlen_attention.can_attend(query, call):
            return self._varlen.attend(query, key, value, call)
        if cascade.can_attend(query, call):
            return self._cascade.attend(query, key, value, call)
        return self.padded.attend(query, key, value, call)

    def reading(self, index: Tensor) -> AttentionLayout:
        """This layout for a caller who reads the model's output only at some tokens; index: [M] int64."""
        return _TreeReading(self, RowSelection.of(index, self.num_tokens)) if len(index) else self

    def that_matters(self, call: AttentionCall) -> AttentionCall:
        """Without the window where no token is far enough from another for it to matter."""
        if call.sliding_window is None or call.sliding_window < self._longest:
            return call
        return replace(call, sliding_window=None)

    @cached_property
    def padded(self) -> PaddedGroups:
        """The row in padded groups."""
        return PaddedGroups(self.trees, device=self.device)

    @cached_property
    def _cascade(self) -> CascadeAttention:
        return CascadeAttention(self.trees)

    @cached_property
    def _varlen(self) -> VarlenAttention:
        return VarlenAttention(self.trees, device=self.device)


class _TreeReading:
    """A ``TreeLayout`` of whose last layer only some tokens are read."""

    def __init__(self, layout: TreeLayout, rows: RowSelection) -> None:
        self.rows = rows
        self._layout = layout

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """See ``AttentionLayout``; the layers below the last one read everything."""
        return self._layout.attend(query, key, value, call)

    def attend_read(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """See ``ReadingLayout``; asked once, by the last layer."""
        layout = self._layout
        call = layout.that_matters(call)
        if varlen_attention.can_attend(query, call):
            varlen = VarlenAttention(layout.trees, read=self.rows.read.tolist(), device=layout.device)
            return varlen.attend(query, key, value, call)
        if cascade.can_attend(query, call):
            return CascadeAttention(layout.trees, read=self.rows.read).attend(query, key, value, call)
        return PaddedQueries(layout.padded, self.rows.read).attend(query, key, value, call)
