"""Decides which tokens of a packed row see which, and computes that attention.

A model loaded with ``attn_implementation="andon"`` hands the queries, keys and values of every layer to the
``AttentionLayout`` that its caller passed as ``layout=``. ``TreeLayout`` serves training and scoring: the row
holds trees, each a prompt and the responses to it; a token sees the prompt and what stands before it in its
own response. The sampler has a layout of its own, with a cache.

The linear layers run on the packed row as it is. For the attention alone, trees of similar size are brought
into padded groups, one kernel call each; the padding costs a few per cent of the smallest part of the work,
while a call per tree would cost more than it saves for short sequences. Index tensors are made once per row,
not per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from andon.modeling.errors import UnsupportedArchitectureError

ATTENTION_NAME = "andon"

# Trees share a group while the smaller has at least this share of the larger one's size. Smaller groups pay
# for more kernel calls, larger ones for more padding; the optimum is flat.
_GROUP_RATIO = 0.85
# Up to this many tokens of padding are always accepted: the work is less than a kernel call.
_GROUP_SLACK_TOKENS = 8

# What some architectures ask of an attention function and a layout cannot give; None means "not asked".
_UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")


class AttentionLayout(Protocol):
    """Computes one layer's attention over a packed row."""

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
        """Attention of one layer.

        query: [1, query heads, N, head size]; key, value: [1, key heads, N, head size]. Returns
        [1, N, query heads, head size]. ``sliding_window`` limits how far back a token sees, itself included.
        """
        ...


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
        if sliding_window is not None and sliding_window >= self._longest:
            sliding_window = None
        queries, keys, values = (self._to_slots(rows[0].transpose(0, 1)) for rows in (query, key, value))
        sizes = [len(group.trees) * group.slot_tokens for group in self._groups]
        outputs = [
            _attend_group(group, q, k, v, scaling=scaling, sliding_window=sliding_window, dropout=dropout)
            for group, q, k, v in zip(
                self._groups,
                torch.split(queries, sizes),
                torch.split(keys, sizes),
                torch.split(values, sizes),
                strict=True,
            )
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if self._is_dense:
            return output[None]
        places = (self._slot_of_token, self._token_of_slot, self._padded_slots)
        rows: Tensor = _FromSlots.apply(output, *places)  # type: ignore[no-untyped-call]
        return rows[None]

    def _to_slots(self, rows: Tensor) -> Tensor:
        """[N, heads, size] in the row's order to [slots, heads, size]."""
        if self._is_dense:
            return rows
        places = (self._token_of_slot, self._slot_of_token)
        slots: Tensor = _ToSlots.apply(rows, *places)  # type: ignore[no-untyped-call]
        return slots


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: AttentionLayout | None = None,
    **options: Any,  # whatever an architecture passes on; only the unsupported ones matter
) -> tuple[Tensor, None]:
    """The attention function that Hugging Face models call; everything is left to ``layout``."""
    if layout is None:
        raise TypeError('a model with attn_implementation="andon" must be called with layout=')
    asked = [name for name in _UNSUPPORTED_OPTIONS if options.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if asked:
        raise UnsupportedArchitectureError(
            f"attention with {', '.join(asked)} is not supported on packed rows",
            architecture=type(module).__name__,
        )
    output = layout.attend(
        _layer_index(module),
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        dropout=dropout,
    )
    return output, None


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise UnsupportedArchitectureError(
            "its attention layers do not know their index", architecture=type(module).__name__
        )
    return index


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
    if k.shape[1] != num_heads:
        # Every kernel takes repeated heads; few take grouped ones together with a mask.
        k, v = (rows.repeat_interleave(num_heads // rows.shape[1], dim=1) for rows in (k, v))
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
            visible = torch.stack([_branch_visibility(group, tree, sliding_window) for tree in group.trees])
            branch = _additive(visible[:, None].to(like.device), like.dtype)
        group.masks[cache_key] = (stem, branch)
    return group.masks[cache_key]


def _branch_visibility(group: _Group, tree: Tree, sliding_window: int | None) -> Tensor:
    """[branch, stem + branch] bool: what each response token of one tree sees."""
    response, position = _response_and_position(tree)
    padding = group.branch_tokens - len(response)
    # Padded queries see the first key, so that their softmax is defined; padded keys are seen by nobody.
    branch_response = torch.tensor(response + [-1] * padding)
    branch_position = torch.tensor(position + [0] * padding)
    stem_position = torch.arange(group.stem_tokens)
    distance_to_stem = branch_position[:, None] - stem_position[None, :]
    sees_stem = (stem_position < tree.prompt_tokens).expand(group.branch_tokens, -1)
    distance = branch_position[:, None] - branch_position[None, :]
    sees_branch = (branch_response[:, None] == branch_response[None, :]) & (distance >= 0)
    if sliding_window is not None:
        sees_stem = sees_stem & (distance_to_stem < sliding_window)
        sees_branch = sees_branch & (distance < sliding_window)
    visible = torch.cat([sees_stem, sees_branch], dim=1)
    visible[len(response) :] = False
    visible[len(response) :, 0] = True
    return visible


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


AttentionInterface.register(ATTENTION_NAME, packed_attention)
