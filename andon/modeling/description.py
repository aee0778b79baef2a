"""Decides what a service tells of the model it serves.

The model services describe what they loaded; ``andon.rpc.convert`` turns the description into a message.
Needs no torch itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from andon.modeling.versions import ModelVersion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from andon.modeling.text import TextCodec

NO_LENGTH_LIMIT = 2**31 - 1  # told of models whose positions have no end


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a service tells of the model it serves."""

    model: ModelVersion
    architecture: str
    parameter_count: int
    vocab_size: int
    max_sequence_tokens: int
    eos_token_id: int
    tokenizer_fingerprint: str
    dtype: str
    device: str
    load_time: datetime


def describe_model(
    model: PreTrainedModel, codec: TextCodec, *, version: ModelVersion, load_time: datetime
) -> ModelDescription:
    """Describe a loaded model. ``version`` carries the digest of its weights."""
    return ModelDescription(
        model=version,
        architecture=type(model).__name__,
        parameter_count=model.num_parameters(),
        vocab_size=model.config.vocab_size,
        max_sequence_tokens=getattr(model.config, "max_position_embeddings", None) or NO_LENGTH_LIMIT,
        eos_token_id=codec.eos_token_id,
        tokenizer_fingerprint=codec.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        load_time=load_time,
    )
