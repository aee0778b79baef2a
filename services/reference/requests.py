"""Decides which requests for log-probabilities are served, and turns them into groups of token ids.

The servicer calls it before anything is queued. Pure: messages in, values or errors out.
"""

from __future__ import annotations

from collections.abc import Iterable

from andon.api.reference.v1 import reference_service_pb2 as reference_pb2
from andon.errors import InvalidArgumentError
from andon.modeling.sequences import PromptGroup
from andon.rpc.sequences import (
    SequenceEncoder,
    SequenceLimits,
    check_length,
    prompt_token_ids,
    response_token_ids,
)
from services.reference.errors import InvalidTemperatureError

# Logits lie within some thousands; divided by these they are still far from what float32 can hold.
MIN_TEMPERATURE = 1e-4
MAX_TEMPERATURE = 1e4


def groups_of(
    items: Iterable[reference_pb2.LogProbsItem], *, encoder: SequenceEncoder, limits: SequenceLimits
) -> list[PromptGroup]:
    """One group per item. Raises InvalidArgumentError with the place of the first mistake."""
    groups = [
        _group_of(item, encoder=encoder, limits=limits, field=f"items[{index}]")
        for index, item in enumerate(items)
    ]
    if not groups:
        raise InvalidArgumentError("the request has no items", reason="EMPTY_REQUEST", field="items")
    return groups


def temperature_of(request: reference_pb2.LogProbsRequest) -> float:
    """The temperature, 1 when absent. Raises InvalidTemperatureError, also for NaN."""
    temperature = request.temperature if request.HasField("temperature") else 1.0
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidTemperatureError(
            temperature=temperature, lowest=MIN_TEMPERATURE, highest=MAX_TEMPERATURE
        )
    return temperature


def _group_of(
    item: reference_pb2.LogProbsItem, *, encoder: SequenceEncoder, limits: SequenceLimits, field: str
) -> PromptGroup:
    prompt = prompt_token_ids(item.prompt, encoder=encoder, limits=limits, field=f"{field}.prompt")
    if not item.responses:
        raise InvalidArgumentError(
            f"{field} has no responses", reason="EMPTY_RESPONSE", field=f"{field}.responses"
        )
    responses: list[list[int]] = []
    for index, message in enumerate(item.responses):
        place = f"{field}.responses[{index}]"
        response = response_token_ids(message, encoder=encoder, limits=limits, field=place)
        check_length(prompt_tokens=len(prompt), response_tokens=len(response), limits=limits, field=place)
        responses.append(response)
    return PromptGroup(prompt, responses)
