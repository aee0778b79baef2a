"""Decides how the common messages of the contract map to our own values. Used by servicers and clients
alike.

Values of one service's contract are converted beside that service. Prompts and responses:
``andon.rpc.sequences``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from andon.api.common.v1 import model_pb2, timing_pb2
from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion


class ModelFacts(Protocol):
    """Facts about loaded weights, as ``andon.modeling.loading.describe`` gives them; no torch is imported."""

    @property
    def architecture(self) -> str: ...  # noqa: D102 - the message's comments say what each one is
    @property
    def parameter_count(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def max_sequence_tokens(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102


def seconds_to_duration(seconds: float) -> Duration:
    """Seconds as a Duration, to the nanosecond."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def duration_to_seconds(duration: Duration) -> float:
    """A Duration as seconds."""
    return duration.ToNanoseconds() / 1e9


def datetime_to_timestamp(moment: datetime) -> Timestamp:
    """A moment with its time zone as a Timestamp. Raises ValueError for one without: it would be a guess."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone(UTC))
    return timestamp


def timestamp_to_datetime(timestamp: Timestamp) -> datetime:
    """A Timestamp as a moment in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)


def timing_to_proto(*, queue_s: float, compute_s: float) -> timing_pb2.Timing:
    """Where the time of a call went."""
    return timing_pb2.Timing(
        queue_duration=seconds_to_duration(queue_s), compute_duration=seconds_to_duration(compute_s)
    )


def model_version_to_proto(version: ModelVersion) -> model_pb2.ModelVersion:
    """A version as a message."""
    return model_pb2.ModelVersion(
        name=version.family, version=version.version, weights_sha256=version.weights_sha256
    )


def model_version_from_proto(message: model_pb2.ModelVersion) -> ModelVersion:
    """A message as a version. Whether that version exists is not checked."""
    return ModelVersion(message.name, message.version, message.weights_sha256)


def model_info_to_proto(
    facts: ModelFacts,
    *,
    version: ModelVersion,
    eos_token_id: int,
    tokenizer_fingerprint: str,
    load_time: datetime,
) -> model_pb2.ModelInfo:
    """What a service tells of the model it serves."""
    return model_pb2.ModelInfo(
        model=model_version_to_proto(version),
        architecture=facts.architecture,
        parameter_count=facts.parameter_count,
        vocab_size=facts.vocab_size,
        max_sequence_tokens=facts.max_sequence_tokens,
        eos_token_id=eos_token_id,
        tokenizer_fingerprint=tokenizer_fingerprint,
        dtype=facts.dtype,
        device=facts.device,
        load_time=datetime_to_timestamp(load_time),
    )


def check_required_model(required: ModelVersion, served: ModelVersion) -> None:
    """Raise MODEL_VERSION_MISMATCH unless ``served`` is ``required``; an empty digest asks for any
    weights.
    """
    same_name = required.is_same_name(served)
    if same_name and required.weights_sha256 in ("", served.weights_sha256):
        return
    raise FailedPreconditionError(
        f"the call requires {required}, served is {served}{' with other weights' if same_name else ''}",
        reason="MODEL_VERSION_MISMATCH",
        required=required,
        served=served,
        required_weights_sha256=required.weights_sha256,
        served_weights_sha256=served.weights_sha256,
    )
