"""Decides how the values that several services share look to a client: texts or token ids, model
descriptions.

The conversions from and to protobuf that more than one client needs stand here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from andon.api.common.v1 import model_pb2, sequence_pb2, timing_pb2
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import duration_to_seconds, model_version_from_proto, timestamp_to_datetime

TextOrIds: TypeAlias = (
    str | Sequence[int]
)  # text is rendered and cut by the service; token ids are used as they stand


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model a service serves at this moment."""

    model: ModelVersion
    architecture: str  # the Hugging Face class
    parameter_count: int
    vocab_size: int
    max_sequence_tokens: int  # prompt and response together
    eos_token_id: int
    tokenizer_fingerprint: str
    dtype: str
    device: str
    load_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTiming:
    """Where the time of one call went inside the service."""

    queue_s: float
    compute_s: float


def prompt_to_proto(prompt: TextOrIds) -> sequence_pb2.Prompt:
    """A document as text, or a finished prompt as token ids."""
    if isinstance(prompt, str):
        return sequence_pb2.Prompt(text=prompt)
    return sequence_pb2.Prompt(token_ids=sequence_pb2.TokenIds(ids=prompt))


def response_to_proto(response: TextOrIds) -> sequence_pb2.Response:
    """A summary as text, or as token ids."""
    if isinstance(response, str):
        return sequence_pb2.Response(text=response)
    return sequence_pb2.Response(token_ids=sequence_pb2.TokenIds(ids=response))


def model_info_from_proto(info: model_pb2.ModelInfo) -> ModelInfo:
    """The description as a value."""
    return ModelInfo(
        model=model_version_from_proto(info.model),
        architecture=info.architecture,
        parameter_count=info.parameter_count,
        vocab_size=info.vocab_size,
        max_sequence_tokens=info.max_sequence_tokens,
        eos_token_id=info.eos_token_id,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        dtype=info.dtype,
        device=info.device,
        load_time=timestamp_to_datetime(info.load_time),
    )


def timing_from_proto(timing: timing_pb2.Timing) -> CallTiming:
    """The timing as a value."""
    return CallTiming(
        queue_s=duration_to_seconds(timing.queue_duration),
        compute_s=duration_to_seconds(timing.compute_duration),
    )
