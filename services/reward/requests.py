"""Decides which requests for scores are served, and turns them into groups of token ids.

The servicer calls it before anything is queued. Pure: messages in, values or errors out.
"""

from __future__ import annotations

from collections.abc import Iterable

from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.errors import InvalidArgumentError
from andon.modeling.sequences import PromptGroup
from andon.rpc.sequences import (
    SequenceEncoder,
    SequenceLimits,
    check_length,
    prompt_token_ids,
    response_token_ids,
)


def groups_of(
    items: Iterable[reward_pb2.ScoreItem], *, encoder: SequenceEncoder, limits: SequenceLimits
) -> list[PromptGroup]:
    """One group per document. Raises InvalidArgumentError with the place of the first mistake."""
    groups = [
        _group_of(item, encoder=encoder, limits=limits, field=f"items[{index}]")
        for index, item in enumerate(items)
    ]
    if not groups:
        raise InvalidArgumentError("the request has no items", reason="EMPTY_REQUEST", field="items")
    return groups


def _group_of(
    item: reward_pb2.ScoreItem, *, encoder: SequenceEncoder, limits: SequenceLimits, field: str
) -> PromptGroup:
    document = prompt_token_ids(item.document, encoder=encoder, limits=limits, field=f"{field}.document")
    if not item.summaries:
        raise InvalidArgumentError(
            f"{field} has no summaries", reason="EMPTY_RESPONSE", field=f"{field}.summaries"
        )
    summaries: list[list[int]] = []
    for index, message in enumerate(item.summaries):
        place = f"{field}.summaries[{index}]"
        summary = response_token_ids(message, encoder=encoder, limits=limits, field=place)
        check_length(prompt_tokens=len(document), response_tokens=len(summary), limits=limits, field=place)
        summaries.append(summary)
    return PromptGroup(document, summaries)
