"""Decides how the reference model is loaded and how log-probabilities are computed with it.

Everything here runs in the model thread. Requests are checked before, in ``requests``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.batches import results_by_response
from andon.modeling.forward import response_statistics
from andon.modeling.loading import ModelDescription, describe, freeze, load_causal_lm
from andon.modeling.sequences import PackedBatch, PromptGroup
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.rpc.sequences import SequenceLimits
from services.reference.config import ReferenceConfig
from services.reference.errors import LogProbsNotFiniteError, NotALanguageModelError, WeightsNotFiniteError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceModel:
    """A model in use, with what belongs to it."""

    version: ModelVersion
    model: PreTrainedModel
    codec: TextCodec
    facts: ModelDescription
    load_time: datetime

    @property
    def limits(self) -> SequenceLimits:
        """What a request may contain."""
        return SequenceLimits(
            vocab_size=self.facts.vocab_size, max_sequence_tokens=self.facts.max_sequence_tokens
        )


def load_reference_model(name: str, config: ReferenceConfig) -> ReferenceModel:
    """Load a model by its name in the store, its folder, or its Hugging Face name, ready for use.

    Raises the store's and the loader's errors, NotALanguageModelError, WeightsNotFiniteError.
    """
    located = config.open_store().locate(name)
    if located.stored is not None and located.stored.manifest.draft.kind != "causal_lm":
        raise NotALanguageModelError(model=str(located.version), kind=located.stored.manifest.draft.kind)
    model = freeze(load_causal_lm(located.source, dtype=config.dtype, device=config.device))
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WeightsNotFiniteError(model=str(located.version), tensor=tensor_name)
    return ReferenceModel(
        version=located.version,
        model=model,
        codec=TextCodec.load(located.source),
        facts=describe(model),
        load_time=datetime.now(UTC),
    )


@torch.inference_mode()
def response_logprobs(
    served: ReferenceModel,
    groups: Sequence[PromptGroup],
    *,
    temperature: float,
    token_budget: int,
    between_batches: Callable[[], None],
) -> list[list[list[float]]]:
    """Log-probability of each token, as [group][response][token]. Raises LogProbsNotFiniteError."""

    def forward(batch: PackedBatch) -> Sequence[Tensor]:
        statistics = response_statistics(served.model, batch, temperature=temperature)
        return torch.split(statistics.logprobs.cpu(), batch.response_lengths.tolist())

    results = results_by_response(
        groups,
        token_budget=token_budget,
        device=served.model.device,
        forward=forward,
        between_batches=between_batches,
    )
    logprobs: list[list[list[float]]] = [[tensor.tolist() for tensor in row] for row in results]
    for item, row in enumerate(logprobs):
        for response, values in enumerate(row):
            if not all(map(math.isfinite, values)):
                raise LogProbsNotFiniteError(model=str(served.version), item=item, response=response)
    return logprobs
