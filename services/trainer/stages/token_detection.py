"""Decides how a reward model learns to tell right words from wrong ones before it sees a label.

Comparisons alone teach a small reward model length, omissions and form, but hardly facts: one wrong word
among twenty moves one noisy label. So, optionally, the stage first trains the scalar head at every token of
summaries in which some words were exchanged: is this word the writer's own? That is replaced-token detection
(Clark et al. 2020) in the place of preference-model pretraining (Askell et al. 2021). It needs documents with
summaries and no labels; ``exchanged_words`` decides which words. The phase ends before the first comparison;
nothing of it is served.

Called by ``reward_model``; the updates are those of ``training_loop``.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from andon.modeling.forward import token_scores
from andon.modeling.sequences import PromptGroup, pack, plan_batches
from services.trainer.stages.exchanged_words import ExchangedWords
from services.trainer.stages.optimization import OptimizationConfig
from services.trainer.stages.training_loop import BatchReport


class TokenDetectionConfig(OptimizationConfig):
    """What the phase before the comparisons does."""

    data: str  # source of documents with summaries
    steps: int = Field(ge=1)  # updates
    batch_documents: int = Field(default=6, ge=1)
    variants: int = Field(default=4, ge=1)  # of each summary per update; they share the document
    # Of the extra layers, the last ones that join after this phase: what it finds at each word, a layer above
    # can gather where the score is read.
    held_back_layers: int = Field(default=0, ge=0)
    # Only the new layers and the head learn in this phase: comparing forms sooner where what is compared
    # holds still, and an update costs half.
    frozen_base: bool = False
    replaced_share: float = Field(default=0.5, gt=0, lt=1)  # of the places where a word can be exchanged
    min_alternatives: int = Field(default=8, ge=2)  # different words seen in a place, for it to count


class TokenDetection:
    """Teaches the head to score a summary's own words above exchanged ones, token by token."""

    def __init__(
        self,
        scorer: PreTrainedModel,
        words: ExchangedWords,
        *,
        variants: int,
        token_budget: int,
        device: str,
    ) -> None:
        self._scorer = scorer.eval()
        self._words = words
        self._variants = variants
        self._token_budget = token_budget
        self._device = device

    def accumulate(self, items: list[int]) -> BatchReport:
        """Gradients of the mean binary cross-entropy over all places of these examples' variants."""
        variants = self._words.copies(items, variants=self._variants)
        groups = [
            PromptGroup(self._words.examples[item].prompt, [variant.token_ids for variant in row])
            for item, row in zip(items, variants, strict=True)
        ]
        num_places = sum(sum(variant.is_place) for row in variants for variant in row)
        loss_nats = 0.0
        num_right = 0
        for indices in plan_batches(groups, self._token_budget):
            batch = pack([groups[index] for index in indices], self._device)
            rows = [variant for index in indices for variant in variants[index]]
            is_place = self._flags([flag for row in rows for flag in row.is_place])
            is_original = self._flags([flag for row in rows for flag in row.is_original])[is_place]
            logits = token_scores(self._scorer, batch)[is_place]
            losses = binary_cross_entropy_with_logits(logits, is_original.float(), reduction="sum")
            loss = losses / max(num_places, 1)
            torch.autograd.backward(loss)
            loss_nats += float(loss.detach())
            num_right += int(((logits.detach() > 0) == is_original).sum())
        return BatchReport(
            metrics={
                "detection_loss_nats": loss_nats,
                "detection_accuracy": num_right / max(num_places, 1),
            },
            num_tokens=sum(group.num_tokens for group in groups),
        )

    def validate(self) -> dict[str, float]:
        """Nothing: exchanged words are drawn anew for every update, so training accuracy is honest."""
        return {}

    def _flags(self, flags: list[bool]) -> Tensor:
        return torch.tensor(flags, dtype=torch.bool, device=self._device)
