"""Decides how a reward model is loaded and how summaries are scored with it.

The score is the head's output at the summary's last token, normalised as the model carries it: gain * raw +
bias. The summaries of one document share one reading of it. Everything here runs in the model thread;
requests are checked before, in ``requests``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.batches import results_by_response
from andon.modeling.forward import final_scores
from andon.modeling.loading import ModelDescription, describe, freeze, load_scorer, read_normalization
from andon.modeling.normalization import Normalization
from andon.modeling.sequences import PackedBatch, PromptGroup
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.rpc.sequences import SequenceLimits
from services.reward.config import RewardConfig
from services.reward.errors import ScoresNotFiniteError, WeightsNotFiniteError

# Scores travel as float32.
MAX_SCORE = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A model in use, with what belongs to it."""

    version: ModelVersion
    model: PreTrainedModel
    codec: TextCodec
    facts: ModelDescription
    normalization: Normalization
    load_time: datetime

    @property
    def limits(self) -> SequenceLimits:
        """What a request may contain."""
        return SequenceLimits(
            vocab_size=self.facts.vocab_size, max_sequence_tokens=self.facts.max_sequence_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryScore:
    """The score of one summary."""

    score: float
    raw_score: float
    token_count: int


def load_reward_model(name: str, config: RewardConfig) -> RewardModel:
    """Load a model by its name in the store, its folder, or its Hugging Face name, ready for use.

    Raises the store's and the loader's errors and WeightsNotFiniteError.
    """
    located = config.open_store().locate(name)
    model = freeze(load_scorer(located.source, dtype=config.dtype, device=config.device))
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WeightsNotFiniteError(model=str(located.version), tensor=tensor_name)
    return RewardModel(
        version=located.version,
        model=model,
        codec=TextCodec.load(located.source),
        facts=describe(model),
        normalization=read_normalization(model),
        load_time=datetime.now(UTC),
    )


@torch.inference_mode()
def score_summaries(
    served: RewardModel,
    groups: Sequence[PromptGroup],
    *,
    token_budget: int,
    between_batches: Callable[[], None],
) -> list[list[SummaryScore]]:
    """The score of each summary, as [document][summary]. Raises ScoresNotFiniteError."""

    def forward(batch: PackedBatch) -> Sequence[Tensor]:
        return final_scores(served.model, batch).cpu().unbind()

    raw_scores = results_by_response(
        groups,
        token_budget=token_budget,
        device=served.model.device,
        forward=forward,
        between_batches=between_batches,
    )
    scores: list[list[SummaryScore]] = []
    for item, (group, row) in enumerate(zip(groups, raw_scores, strict=True)):
        scores.append([])
        for index, (summary, tensor) in enumerate(zip(group.responses, row, strict=True)):
            raw_score = tensor.item()
            score = served.normalization.apply(raw_score)
            if not abs(score) <= MAX_SCORE:  # also false for NaN
                raise ScoresNotFiniteError(model=str(served.version), item=item, summary=index)
            scores[-1].append(SummaryScore(score=score, raw_score=raw_score, token_count=len(summary)))
    return scores
