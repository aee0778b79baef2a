"""Decides how much of a large request passes through a model at a time, and puts the results back in order.

The scoring services call ``results_by_response`` with what they want to know of each packed row. No pass
has more tokens than the budget, unless one prompt with one response already has: a group with many
responses is cut, and its prompt is read once per part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from andon.modeling.sequences import PackedBatch, PromptGroup, pack, plan_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some of the responses of one group, from ``first_response`` on."""

    group: PromptGroup
    group_index: int
    first_response: int


def results_by_response(
    groups: Sequence[PromptGroup],
    *,
    token_budget: int,
    device: torch.device | str,
    forward: Callable[[PackedBatch], Sequence[Tensor]],
    between_batches: Callable[[], None],
) -> list[list[Tensor]]:
    """What ``forward`` gives for each response, as [group][response], whatever the batches were.

    ``forward`` returns one tensor per response of a batch, in the batch's order. ``between_batches`` runs
    before each pass and may raise to break off.
    """
    parts = [part for index, group in enumerate(groups) for part in _parts(group, index, token_budget)]
    results: list[list[Tensor | None]] = [[None] * len(group.responses) for group in groups]
    for batch in plan_batches([part.group for part in parts], token_budget):
        between_batches()
        outputs = iter(forward(pack([parts[index].group for index in batch], device)))
        for index in batch:
            part = parts[index]
            for offset in range(len(part.group.responses)):
                results[part.group_index][part.first_response + offset] = next(outputs)
    return [[result for result in row if result is not None] for row in results]


def _parts(group: PromptGroup, group_index: int, token_budget: int) -> list[_Part]:
    parts: list[_Part] = []
    first, room = 0, token_budget - len(group.prompt)
    for index, response in enumerate(group.responses):
        if index > first and len(response) > room:
            parts.append(_part(group, group_index, first, index))
            first, room = index, token_budget - len(group.prompt)
        room -= len(response)
    parts.append(_part(group, group_index, first, len(group.responses)))
    return parts


def _part(group: PromptGroup, group_index: int, first: int, end: int) -> _Part:
    return _Part(
        group=PromptGroup(group.prompt, group.responses[first:end]),
        group_index=group_index,
        first_response=first,
    )
