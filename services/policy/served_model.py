"""Decides what belongs to a policy in use, and loads it by name.

The runner holds one ``ServedModel`` at a time; the servicer reads from it what requests are checked against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionCall
from andon.modeling.loading import ModelDescription, describe, load_causal_lm
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.rpc.sequences import SequenceLimits
from services.policy.errors import LoadedWeightsNotFiniteError, NotALanguageModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model in use, with what belongs to it. A weight update makes a new value around the same
    ``model``.
    """

    version: ModelVersion
    model: PreTrainedModel
    codec: TextCodec
    facts: ModelDescription
    load_time: datetime
    cache_bytes_per_token: int

    @property
    def limits(self) -> SequenceLimits:
        """What a request may contain."""
        return SequenceLimits(
            vocab_size=self.facts.vocab_size, max_sequence_tokens=self.facts.max_sequence_tokens
        )

    def with_version(self, version: ModelVersion) -> ServedModel:
        """The same model after its weights have been replaced, now."""
        return replace(self, version=version, load_time=datetime.now(UTC))


def load_served_model(name: str, *, store: ModelStore, dtype: str, device: str) -> ServedModel:
    """Load a model by its name in the store, its folder, or its Hugging Face name.

    Raises the store's and the loader's errors, NotALanguageModelError, LoadedWeightsNotFiniteError.
    """
    located = store.locate(name)
    if located.stored is not None and located.stored.manifest.draft.kind != "causal_lm":
        raise NotALanguageModelError(model=str(located.version), kind=located.stored.manifest.draft.kind)
    model = load_causal_lm(located.source, dtype=dtype, device=device)
    return serve_model(model, codec=TextCodec.load(located.source), version=located.version)


def serve_model(model: PreTrainedModel, *, codec: TextCodec, version: ModelVersion) -> ServedModel:
    """Get a loaded model ready; raises LoadedWeightsNotFiniteError."""
    for tensor_name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LoadedWeightsNotFiniteError(model=str(version), tensor=tensor_name)
    # The first use sets the tokenizer's options; from then on two threads only read it.
    codec.decode(codec.encode_document("first use"))
    return ServedModel(
        version=version,
        model=model.requires_grad_(False).eval(),
        codec=codec,
        facts=describe(model),
        load_time=datetime.now(UTC),
        cache_bytes_per_token=_measure_cache(model),
    )


@dataclass(slots=True)
class _CacheMeter:
    """An attention layout that computes nothing and adds up what a cache would have to keep."""

    size_bytes: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """Note the size of one token's keys and values."""
        self.size_bytes += key.nbytes + value.nbytes
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


@torch.inference_mode()
def _measure_cache(model: PreTrainedModel) -> int:
    """Bytes of keys and values per token over all layers, from one token's passage."""
    meter = _CacheMeter()
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    model(input_ids=token, position_ids=token, use_cache=False, layout=meter)
    return meter.size_bytes
