"""Decides which tokens of a packed row of trees see which, and computes that attention.

A tree is a prompt and the responses to it; a token sees the prompt and what stands before it in its own
response. The linear layers run on the packed row as it is. For the attention alone, trees of similar size are
brought into padded groups, one kernel call each; the padding costs a few per cent of the smallest part of the
work, while a call per tree would cost more than it saves for short sequences. Index tensors are made once per
row, not per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from andon.modeling.attention import AttentionLayout
from andon.modeling.last_layer import RowSelection

# Trees share a group while the smaller has at least this share of the larger one's size. Smaller groups pay
# for more kernel calls, larger ones for more padding; the optimum is flat.
_GROUP_RATIO = 0.85
# Up to this many tokens of padding are always accepted: the work is less than a kernel call.
_GROUP_SLACK_TOKENS = 8
# The position of padding: behind every token, so that none sees it.
_NOWHERE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The sizes of a prompt and of the responses to it, in tokens; all lie one after the other in the row."""

    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """All tokens of the tree."""
        return self.prompt_tokens + sum(self.response_tokens)


@dataclass(slots=True, kw_only=True)
class _Group:
    """Trees that are attended in one call, each in a slot of ``stem + branch`` tokens.

    With one response per tree the stem holds the whole sequence and there is no branch: plain causal
    attention. Otherwise the stem holds the prompt and the branch all responses, which need a mask.
    """

    trees: list[Tree]
    stem_tokens: int
    branch_tokens: int
    masks: dict[tuple[torch.dtype, int | None], tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict
    )

    @property
    def slot_tokens(self) -> int:
        return self.stem_tokens + self.branch_tokens


class TreeLayout:
    """Attention over a packed row of trees, without cross-talk; gradients flow."""

    def __init__(self, trees: Sequence[Tree], *, device: torch.device | str = "cpu") -> None:
        """``trees`` in the order of the row; neighbours of similar size make it fast."""
        self.num_tokens = sum(tree.num_tokens for tree in trees)
        self._device = torch.device(device)
        self._groups = _make_groups(trees)
        self._longest = max(
            (tree.prompt_tokens + max(tree.response_tokens, default=0) for tree in trees), default=0
        )
        slot_of_token, num_slots = _slots(self._groups)
        self._is_dense = num_slots == self.num_tokens
        self._slot_of_token = torch.tensor(slot_of_token, device=self._device)
        # A padded slot repeats token 0, a finite value that no real token ever sees.
        self._token_of_slot = torch.zeros(num_slots, dtype=torch.int64, device=self._device)
        self._token_of_slot[self._slot_of_token] = torch.arange(self.num_tokens, device=self._device)
        is_padding = torch.ones(num_slots, dtype=torch.bool, device=self._device)
        is_padding[self._slot_of_token] = False
        self._padded_slots = is_padding.nonzero()[:, 0]

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        dropout: float,
    ) -> Tensor:
        """See ``AttentionLayout``; every layer is treated alike."""
        sliding_window = self.window(sliding_window)
        outputs = [
            _attend_group(group, q, k, v, scaling=scaling, sliding_window=sliding_window, dropout=dropout)
            for group, q, k, v in zip(
                self._groups,
                self.to_groups(query),
                self.to_groups(key),
                self.to_groups(value),
                strict=True,
            )
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if self._is_dense:
            return output[None]
        places = (self._slot_of_token, self._token_of_slot, self._padded_slots)
        rows: Tensor = _FromSlots.apply(output, *places)  # type: ignore[no-untyped-call]
        return rows[None]

    def reading(self, index: Tensor) -> AttentionLayout:
        """This layout for a caller who reads the model's output only at some tokens; index: [M] int64."""
        rows = RowSelection.of(index, self.num_tokens)
        return _TreeReading(self, rows) if len(rows.read) else self

    def window(self, sliding_window: int | None) -> int | None:
        """None where no token is far enough from another for the window to matter."""
        return None if sliding_window is None or sliding_window >= self._longest else sliding_window

    @property
    def groups(self) -> Sequence[_Group]:
        """The groups in the order of the slots."""
        return self._groups

    def to_groups(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[1, heads, N, size] in the row's order to [slots, heads, size] for each group."""
        sizes = [len(group.trees) * group.slot_tokens for group in self._groups]
        return torch.split(self._to_slots(rows[0].transpose(0, 1)), sizes)

    def _to_slots(self, rows: Tensor) -> Tensor:
        """[N, heads, size] in the row's order to [slots, heads, size]."""
        if self._is_dense:
            return rows
        places = (self._token_of_slot, self._slot_of_token)
        slots: Tensor = _ToSlots.apply(rows, *places)  # type: ignore[no-untyped-call]
        return slots


class _TreeReading:
    """A ``TreeLayout`` of whose last layer only some tokens are read."""

    def __init__(self, layout: TreeLayout, rows: RowSelection) -> None:
        self.rows = rows
        self._layout = layout
        self._groups, query_of_read = _query_groups(layout.groups, rows.read.cpu())
        device = rows.read.device
        num_queries = sum(group.facts[0].numel() for group in self._groups)
        self._query_of_read = query_of_read.to(device)
        # A padded query repeats the first token that is read.
        self._read_of_query = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self._read_of_query[self._query_of_read] = torch.arange(len(query_of_read), device=device)
        is_padding = torch.ones(num_queries, dtype=torch.bool, device=device)
        is_padding[self._query_of_read] = False
        self._padded_queries = is_padding.nonzero()[:, 0]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """See ``AttentionLayout``; the layers below the last one read everything."""
        return self._layout.attend(layer_index, query, key, value, **options)

    def attend_read(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        dropout: float,
    ) -> Tensor:
        """See ``ReadingLayout``."""
        sliding_window = self._layout.window(sliding_window)
        queries: Tensor = _ToSlots.apply(  # type: ignore[no-untyped-call]
            query[0].transpose(0, 1), self._read_of_query, self._query_of_read
        )
        parts = torch.split(queries, [group.facts[0].numel() for group in self._groups])
        outputs = [
            _attend_queries(group, q, k, v, scaling=scaling, sliding_window=sliding_window, dropout=dropout)
            for group, q, k, v in zip(
                self._groups, parts, self._layout.to_groups(key), self._layout.to_groups(value), strict=True
            )
            if len(q)
        ]
        places = (self._query_of_read, self._read_of_query, self._padded_queries)
        read: Tensor = _FromSlots.apply(torch.cat(outputs), *places)  # type: ignore[no-untyped-call]
        return read[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _QueryGroup:
    """The tokens of a group that are read, padded to the most that one of its trees has."""

    group: _Group
    facts: Tensor  # [2, trees, queries] int64, as ``_slot_facts``


def _query_groups(groups: Sequence[_Group], read: Tensor) -> tuple[list[_QueryGroup], Tensor]:
    """The groups' queries, and for each of the M tokens that are read its place among them all, [M] int64."""
    sizes = torch.tensor([tree.num_tokens for group in groups for tree in group.trees])
    ends = sizes.cumsum(0)
    tree_of_read = torch.searchsorted(ends, read, right=True)
    counts = torch.bincount(tree_of_read, minlength=len(sizes))
    rank_in_tree = torch.arange(len(read)) - (counts.cumsum(0) - counts)[tree_of_read]
    token_in_tree = read - (ends - sizes)[tree_of_read]
    made: list[_QueryGroup] = []
    places: list[Tensor] = []
    first_tree = first_place = 0
    for group in groups:
        past = first_tree + len(group.trees)
        width = int(counts[first_tree:past].max())
        here = (tree_of_read >= first_tree) & (tree_of_read < past)
        tree, rank = tree_of_read[here] - first_tree, rank_in_tree[here]
        stems = torch.tensor([_stem_and_branch(member)[0] for member in group.trees])[tree]
        token = token_in_tree[here]
        slot = torch.where(token < stems, token, token - stems + group.stem_tokens)
        facts = torch.stack(
            [torch.full((len(group.trees), width), -1), torch.full((len(group.trees), width), _NOWHERE)]
        )
        facts[:, tree, rank] = _slot_facts(group)[:, tree, slot]
        made.append(_QueryGroup(group=group, facts=facts))
        places.append(first_place + tree * width + rank)
        first_tree, first_place = past, first_place + len(group.trees) * width
    return made, torch.cat(places)


def _attend_queries(
    group: _QueryGroup,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
    dropout: float,
) -> Tensor:
    """query: [trees * queries, heads, size]; key, value: [slots, heads, size] of the same group."""
    num_trees, num_heads, head_size = len(group.group.trees), query.shape[1], query.shape[2]
    q, k, v = (
        rows.view(num_trees, -1, rows.shape[1], head_size).transpose(1, 2) for rows in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(
        q,
        _repeated(k, num_heads),
        _repeated(v, num_heads),
        attn_mask=_mask(group.facts, _slot_facts(group.group), sliding_window, query),
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.transpose(1, 2).reshape(-1, num_heads, head_size)


def _make_groups(trees: Sequence[Tree]) -> list[_Group]:
    """Neighbouring trees of one kind and similar size form a group."""
    groups: list[_Group] = []
    for tree in trees:
        stem, branch = _stem_and_branch(tree)
        group = groups[-1] if groups else None
        if (
            group is not None
            and _fits(stem, group.stem_tokens)
            and _fits(branch, group.branch_tokens)
            and (branch == 0) == (group.branch_tokens == 0)
        ):
            group.trees.append(tree)
            group.stem_tokens = max(group.stem_tokens, stem)
            group.branch_tokens = max(group.branch_tokens, branch)
        else:
            groups.append(_Group(trees=[tree], stem_tokens=stem, branch_tokens=branch))
    return groups


def _stem_and_branch(tree: Tree) -> tuple[int, int]:
    if len(tree.response_tokens) <= 1:
        return tree.num_tokens, 0
    return tree.prompt_tokens, sum(tree.response_tokens)


def _fits(tokens: int, group_tokens: int) -> bool:
    small, large = sorted((tokens, group_tokens))
    return small >= large * _GROUP_RATIO or large - small <= _GROUP_SLACK_TOKENS


def _slots(groups: Sequence[_Group]) -> tuple[list[int], int]:
    """For every token of the row its place in the padded groups, and the number of places."""
    slot_of_token: list[int] = []
    begin = 0
    for group in groups:
        for tree in group.trees:
            stem, branch = _stem_and_branch(tree)
            slot_of_token += range(begin, begin + stem)
            slot_of_token += range(begin + group.stem_tokens, begin + group.stem_tokens + branch)
            begin += group.slot_tokens
    return slot_of_token, begin


def _attend_group(
    group: _Group,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
    dropout: float,
) -> Tensor:
    """[slots, heads, size] of one group to [slots, query heads, size]."""
    slots, num_heads, head_size = query.shape
    shape = (len(group.trees), group.slot_tokens, -1, head_size)
    q, k, v = (rows.view(shape).transpose(1, 2) for rows in (query, key, value))
    k, v = _repeated(k, num_heads), _repeated(v, num_heads)
    stem_mask, branch_mask = _masks(group, query, sliding_window)
    if group.branch_tokens == 0:
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=stem_mask, is_causal=stem_mask is None, dropout_p=dropout, scale=scaling
        )
    else:
        stem_query, branch_query = torch.split(q, [group.stem_tokens, group.branch_tokens], dim=2)
        stem = F.scaled_dot_product_attention(
            stem_query,
            k[:, :, : group.stem_tokens],
            v[:, :, : group.stem_tokens],
            attn_mask=stem_mask,
            is_causal=stem_mask is None,
            dropout_p=dropout,
            scale=scaling,
        )
        branches = F.scaled_dot_product_attention(
            branch_query, k, v, attn_mask=branch_mask, dropout_p=dropout, scale=scaling
        )
        attended = torch.cat([stem, branches], dim=2)
    return attended.transpose(1, 2).reshape(slots, num_heads, head_size)


def _repeated(rows: Tensor, num_heads: int) -> Tensor:
    """Every kernel takes repeated heads; few take grouped ones together with a mask."""
    return rows if rows.shape[1] == num_heads else rows.repeat_interleave(num_heads // rows.shape[1], dim=1)


def _masks(group: _Group, like: Tensor, sliding_window: int | None) -> tuple[Tensor | None, Tensor | None]:
    """The additive masks of stem and branch, kept for the layers to come; None means causal or no branch."""
    cache_key = (like.dtype, sliding_window)
    if cache_key not in group.masks:
        stem = branch = None
        if sliding_window is not None:
            position = torch.arange(group.stem_tokens, device=like.device)
            distance = position[:, None] - position[None, :]
            stem = _additive((distance >= 0) & (distance < sliding_window), like.dtype)
        if group.branch_tokens:
            facts = _slot_facts(group)
            branch = _mask(facts[..., group.stem_tokens :], facts, sliding_window, like)
        group.masks[cache_key] = (stem, branch)
    return group.masks[cache_key]


def _slot_facts(group: _Group) -> Tensor:
    """[2, trees, slot tokens] int64: of each token its response, -1 in the stem, and its position.

    Padding stands in the stem at a position behind all others.
    """
    facts = torch.stack(
        [
            torch.full((len(group.trees), group.slot_tokens), -1),
            torch.full((len(group.trees), group.slot_tokens), _NOWHERE),
        ]
    )
    for row, tree in enumerate(group.trees):
        stem, branch = _stem_and_branch(tree)
        facts[1, row, :stem] = torch.arange(stem)
        if branch:
            place = slice(group.stem_tokens, group.stem_tokens + branch)
            facts[:, row, place] = torch.tensor(_response_and_position(tree))
    return facts


def _mask(query: Tensor, key: Tensor, sliding_window: int | None, like: Tensor) -> Tensor:
    """What tokens with the facts ``query`` see of those with the facts ``key``, as [trees, 1, queries, keys].

    A padded query sees padding at least, so that its softmax is defined.
    """
    (query_response, query_position), (key_response, key_position) = query[..., None], key[:, :, None]
    distance = query_position - key_position
    visible = ((key_response == -1) | (key_response == query_response)) & (distance >= 0)
    if sliding_window is not None:
        visible &= distance < sliding_window
    return _additive(visible[:, None].to(like.device), like.dtype)


def _response_and_position(tree: Tree) -> tuple[list[int], list[int]]:
    """For every response token the response it belongs to and its position in the sequence."""
    response: list[int] = []
    position: list[int] = []
    for index, tokens in enumerate(tree.response_tokens):
        response += [index] * tokens
        position += range(tree.prompt_tokens, tree.prompt_tokens + tokens)
    return response, position


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, float("-inf")
    )


class _ToSlots(torch.autograd.Function):
    """Rows to padded slots. Every row has one slot, so the backward pass is a selection too, not a sum."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, token_of_slot: Tensor, slot_of_token: Tensor
    ) -> Tensor:  # Any: torch's context
        ctx.save_for_backward(slot_of_token)
        return rows.index_select(0, token_of_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slot_of_token,) = ctx.saved_tensors
        return gradient.index_select(0, slot_of_token), None, None


class _FromSlots(torch.autograd.Function):
    """Padded slots back to rows; padding gets a gradient of zero."""

    @staticmethod
    def forward(
        ctx: Any, slots: Tensor, slot_of_token: Tensor, token_of_slot: Tensor, padded_slots: Tensor
    ) -> Tensor:
        ctx.save_for_backward(token_of_slot, padded_slots)
        return slots.index_select(0, slot_of_token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        token_of_slot, padded_slots = ctx.saved_tensors
        return gradient.index_select(0, token_of_slot).index_fill_(0, padded_slots, 0.0), None, None, None
