"""Attention over a packed row of trees in padded groups, for kernels that take rectangles only.

Trees of similar size are brought into one group and attended in one kernel call; the padding costs a few per
cent of the smallest part of the work, while a call per tree would cost more than it saves for short
sequences. Index tensors are made once per row, not per layer. Called by ``tree_layout``
for windows, dropout and devices that neither ``cascade`` nor ``varlen_attention`` serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from andon.modeling.attention import AttentionCall
from andon.modeling.trees import Tree

# Trees share a group while the smaller has at least this share of the larger one's size. Smaller groups pay
# for more kernel calls, larger ones for more padding; the optimum is flat.
_GROUP_RATIO = 0.85
# Up to this many tokens of padding are always accepted: the work is less than a kernel call.
_GROUP_SLACK_TOKENS = 8
# The position of padding: behind every token, so that none sees it.
_NOWHERE = 1 << 30


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


class PaddedGroups:
    """The groups of one packed row."""

    def __init__(self, trees: Sequence[Tree], *, device: torch.device) -> None:
        """``trees`` in the order of the row; neighbours of similar size make it fast."""
        self.groups: Sequence[_Group] = _make_groups(trees)
        num_tokens = sum(tree.num_tokens for tree in trees)
        slot_of_token, num_slots = _slots(self.groups)
        self._places = _Places(torch.tensor(slot_of_token, dtype=torch.int64), num_slots, device)
        self._is_dense = num_slots == num_tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """As ``AttentionLayout.attend``."""
        parts = (self.split(query), self.split(key), self.split(value))
        outputs = [
            _attend_group(group, q, k, v, call) for group, q, k, v in zip(self.groups, *parts, strict=True)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output[None] if self._is_dense else self._places.back(output)[None]

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[1, heads, N, size] in the row's order to [slots, heads, size] for each group."""
        tokens = rows[0].transpose(0, 1)
        slots = tokens if self._is_dense else self._places.there(tokens)
        return torch.split(slots, [len(group.trees) * group.slot_tokens for group in self.groups])


class PaddedQueries:
    """Some tokens of the row as queries, in the groups of all as keys."""

    def __init__(self, groups: PaddedGroups, read: Tensor) -> None:
        """read: [M] int64, ascending tokens."""
        self._padded = groups
        self._groups, query_of_read = _query_groups(groups.groups, read.cpu())
        self._sizes = [group.facts[0].numel() for group in self._groups]
        self._places = _Places(query_of_read, sum(self._sizes), read.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """As ``ReadingLayout.attend_read``."""
        queries = torch.split(self._places.there(query[0].transpose(0, 1)), self._sizes)
        parts = (queries, self._padded.split(key), self._padded.split(value))
        outputs = [
            _attend_queries(group, q, k, v, call)
            for group, q, k, v in zip(self._groups, *parts, strict=True)
            if len(q)
        ]
        return self._places.back(torch.cat(outputs))[None]


class _Places:
    """Where rows stand among places of which some are padding; rows go there and back, with gradients."""

    def __init__(self, place_of_row: Tensor, num_places: int, device: torch.device) -> None:
        self._place_of_row = place_of_row.to(device)
        # Padding repeats row 0, a finite value that nobody sees.
        self._row_of_place = torch.zeros(num_places, dtype=torch.int64, device=device)
        self._row_of_place[self._place_of_row] = torch.arange(len(place_of_row), device=device)
        is_padding = torch.ones(num_places, dtype=torch.bool, device=device)
        is_padding[self._place_of_row] = False
        self._padding = is_padding.nonzero()[:, 0]

    def there(self, rows: Tensor) -> Tensor:
        """[rows, ...] to [places, ...]."""
        places = (self._row_of_place, self._place_of_row)
        moved: Tensor = _ToPlaces.apply(rows, *places)  # type: ignore[no-untyped-call]
        return moved

    def back(self, rows: Tensor) -> Tensor:
        """[places, ...] to [rows, ...]."""
        places = (self._place_of_row, self._row_of_place, self._padding)
        moved: Tensor = _FromPlaces.apply(rows, *places)  # type: ignore[no-untyped-call]
        return moved


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
    group: _QueryGroup, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall
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
        attn_mask=_mask(group.facts, _slot_facts(group.group), call.sliding_window, query),
        dropout_p=call.dropout,
        scale=call.scaling,
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


def _attend_group(group: _Group, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
    """[slots, heads, size] of one group to [slots, query heads, size]."""
    slots, num_heads, head_size = query.shape
    shape = (len(group.trees), group.slot_tokens, -1, head_size)
    q, k, v = (rows.view(shape).transpose(1, 2) for rows in (query, key, value))
    k, v = _repeated(k, num_heads), _repeated(v, num_heads)
    stem_mask, branch_mask = _masks(group, query, call.sliding_window)
    if group.branch_tokens == 0:
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=stem_mask,
            is_causal=stem_mask is None,
            dropout_p=call.dropout,
            scale=call.scaling,
        )
    else:
        stem_query, branch_query = torch.split(q, [group.stem_tokens, group.branch_tokens], dim=2)
        stem = F.scaled_dot_product_attention(
            stem_query,
            k[:, :, : group.stem_tokens],
            v[:, :, : group.stem_tokens],
            attn_mask=stem_mask,
            is_causal=stem_mask is None,
            dropout_p=call.dropout,
            scale=call.scaling,
        )
        branches = F.scaled_dot_product_attention(
            branch_query, k, v, attn_mask=branch_mask, dropout_p=call.dropout, scale=call.scaling
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


class _ToPlaces(torch.autograd.Function):
    """Every row has one place, so the backward pass is a selection too, not a sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, row_of_place: Tensor, place_of_row: Tensor) -> Tensor:  # Any: torch's
        ctx.save_for_backward(place_of_row)
        return rows.index_select(0, row_of_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place_of_row,) = ctx.saved_tensors
        return gradient.index_select(0, place_of_row), None, None


class _FromPlaces(torch.autograd.Function):
    """Padding gets a gradient of zero."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, place_of_row: Tensor, row_of_place: Tensor, padding: Tensor
    ) -> Tensor:
        ctx.save_for_backward(row_of_place, padding)
        return rows.index_select(0, place_of_row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        row_of_place, padding = ctx.saved_tensors
        return gradient.index_select(0, row_of_place).index_fill_(0, padding, 0.0), None, None, None
