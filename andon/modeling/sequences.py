"""Decides how many prompts with their responses become one row of tokens without padding.

A prompt stands once in the row, its responses behind it; every response continues the prompt as if it stood
alone, with the same positions. Scorers and training stages call ``plan_batches`` and ``pack``;
``tree_layout.TreeLayout`` keeps the sequences apart. How the row passes through a model is decided in
``forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andon.errors import InvalidArgumentError
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt and the responses to it, as token ids."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def num_tokens(self) -> int:
        """The tokens of the group in a packed row."""
        return len(self.prompt) + sum(len(response) for response in self.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """A packed row. N tokens; T response tokens of R responses, by group, then response, then position.

    Response token t stands at ``token_index[t]`` and is predicted from ``predict_index[t]``, which for the
    first token of each response is the last one of the prompt.
    """

    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64
    layout: TreeLayout
    predict_index: Tensor  # [T] int64
    token_index: Tensor  # [T] int64
    target_ids: Tensor  # [T] int64
    response_lengths: Tensor  # [R] int64
    response_of_token: Tensor  # [T] int64, 0..R-1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.input_ids.shape[1]

    @property
    def num_responses(self) -> int:
        """R."""
        return self.response_lengths.shape[0]

    @property
    def last_token_index(self) -> Tensor:
        """[R] int64: where each response's last token stands."""
        return self.token_index[self.response_lengths.cumsum(0) - 1]


def check_groups(groups: Sequence[PromptGroup], *, vocab_size: int, max_sequence_tokens: int | None) -> None:
    """Raise InvalidArgumentError for what a model cannot read, with the place of the first fault.

    Reasons: EMPTY_REQUEST, EMPTY_PROMPT, EMPTY_RESPONSE, TOKEN_OUT_OF_VOCABULARY, SEQUENCE_TOO_LONG.
    """
    if not groups:
        raise InvalidArgumentError("there is nothing to do", reason="EMPTY_REQUEST")
    for number, group in enumerate(groups):
        _check_ids(group.prompt, vocab_size, reason_if_empty="EMPTY_PROMPT", item=number)
        if not group.responses:
            raise InvalidArgumentError(f"item {number} has no response", reason="EMPTY_RESPONSE", item=number)
        for response in group.responses:
            _check_ids(response, vocab_size, reason_if_empty="EMPTY_RESPONSE", item=number)
            tokens = len(group.prompt) + len(response)
            if max_sequence_tokens is not None and tokens > max_sequence_tokens:
                raise InvalidArgumentError(
                    f"item {number} has {tokens} tokens, the model takes {max_sequence_tokens}",
                    reason="SEQUENCE_TOO_LONG",
                    item=number,
                    tokens=tokens,
                    limit=max_sequence_tokens,
                )


def _check_ids(ids: Sequence[int], vocab_size: int, *, reason_if_empty: str, item: int) -> None:
    if not ids:
        raise InvalidArgumentError(f"item {item} has an empty part", reason=reason_if_empty, item=item)
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise InvalidArgumentError(
            f"item {item} has token {wrong}, the vocabulary ends at {vocab_size - 1}",
            reason="TOKEN_OUT_OF_VOCABULARY",
            item=item,
            token=wrong,
            vocab_size=vocab_size,
        )


def plan_batches(groups: Sequence[PromptGroup], token_budget: int) -> list[list[int]]:
    """Cut groups into batches of at most ``token_budget`` tokens, similar sizes together; deterministic.

    Returns the indices of the groups of each batch, largest groups first. A group above the budget stands
    alone.
    """
    if token_budget < 1:
        raise InvalidArgumentError("token_budget must be at least 1", reason="INVALID_TOKEN_BUDGET")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(groups)), key=lambda index: (-groups[index].num_tokens, index)):
        tokens = groups[index].num_tokens
        if tokens > room or not batches:
            batches.append([])
            room = token_budget
        batches[-1].append(index)
        room -= tokens
    return batches


def pack(groups: Sequence[PromptGroup], device: torch.device | str = "cpu") -> PackedBatch:
    """Put groups into one row. Every prompt and every response must have at least one token."""
    if not groups:
        raise InvalidArgumentError("there is nothing to pack", reason="EMPTY_REQUEST")
    # Neighbours of similar size share a kernel call in the attention; the results keep the order of
    # ``groups``.
    order = sorted(range(len(groups)), key=lambda index: _size_key(groups[index]))
    begin_of_group = [0] * len(groups)
    num_tokens = 0
    rows: list[NDArray[np.int64]] = []  # of one part of one group each, as all lists below
    positions: list[NDArray[np.int64]] = []
    trees: list[Tree] = []
    for index in order:
        group = groups[index]
        if not group.prompt:
            raise InvalidArgumentError("a prompt is empty", reason="EMPTY_PROMPT", item=index)
        if not group.responses or not all(group.responses):
            raise InvalidArgumentError("a response is empty or missing", reason="EMPTY_RESPONSE", item=index)
        begin_of_group[index] = num_tokens
        prompt_tokens = len(group.prompt)
        sizes = tuple(len(response) for response in group.responses)
        rows += [np.asarray(part, dtype=np.int64) for part in (group.prompt, *group.responses)]
        positions.append(np.arange(prompt_tokens))
        positions += [np.arange(prompt_tokens, prompt_tokens + size) for size in sizes]
        trees.append(Tree(prompt_tokens=prompt_tokens, response_tokens=sizes))
        num_tokens += trees[-1].num_tokens
    input_ids = np.concatenate(rows)

    predicting: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    for begin, group in zip(begin_of_group, groups, strict=True):
        prompt_end = place = begin + len(group.prompt)
        for response in group.responses:
            end = place + len(response)
            predicting += [np.asarray([prompt_end - 1]), np.arange(place, end - 1)]
            places.append(np.arange(place, end))
            lengths.append(len(response))
            place = end
    token_index = np.concatenate(places)

    def tensor(numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(device)

    return PackedBatch(
        input_ids=tensor(input_ids)[None],
        position_ids=tensor(np.concatenate(positions))[None],
        layout=TreeLayout(trees, device=device),
        predict_index=tensor(np.concatenate(predicting)),
        token_index=tensor(token_index),
        target_ids=tensor(input_ids[token_index]),
        response_lengths=torch.tensor(lengths, device=device),
        response_of_token=tensor(np.repeat(np.arange(len(lengths)), lengths)),
    )


def _size_key(group: PromptGroup) -> tuple[bool, int, int]:
    has_branches = len(group.responses) > 1
    return has_branches, len(group.prompt) if has_branches else group.num_tokens, group.num_tokens


def unpack(flat: Tensor, lengths: Tensor, fill: float) -> Tensor:
    """[T] by response to [R, longest], with ``fill`` behind shorter responses; differentiable."""
    padded = torch.full((len(lengths), int(lengths.max())), fill, dtype=flat.dtype, device=flat.device)
    return padded.masked_scatter(valid_mask(lengths), flat)


def flatten(padded: Tensor, lengths: Tensor) -> Tensor:
    """[R, longest] to [T]: the inverse of ``unpack``."""
    return padded[valid_mask(lengths)]


def valid_mask(lengths: Tensor) -> Tensor:
    """[R, longest] bool: True on the tokens of each response."""
    return torch.arange(int(lengths.max()), device=lengths.device)[None, :] < lengths[:, None]
