"""Decides how a reward model learns to tell right words from wrong ones before it sees a label.

Comparisons alone teach a small reward model length, omissions and form, but hardly facts: one wrong word
among twenty moves one noisy label. So, optionally, the stage first trains the scalar head at every token of
summaries in which some words were exchanged: is this word the writer's own? That is replaced-token detection
(Clark et al. 2020) in the place of preference-model pretraining (Askell et al. 2021). It needs documents with
summaries and no labels. The phase ends before the first comparison; nothing of it is served.

Called by ``reward_model``; the updates are those of ``training_loop``.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from andon.modeling.forward import token_scores
from andon.modeling.sequences import PromptGroup, pack, plan_batches
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A summary with some words exchanged."""

    token_ids: list[int]
    is_place: list[bool]  # where a word could have been exchanged; the loss is on these
    is_original: list[bool]


Context = tuple[int | None, int | None]  # the two tokens before a place; None before the first


class WordExchange:
    """Exchanges a word for another that was seen behind the same two words in some summary.

    Only places with many alternatives count: names, things, times and numbers stand there, while grammar
    mostly leaves one choice. No list of words, no grammar and no label is needed.
    """

    def __init__(
        self, summaries: Sequence[Sequence[int]], *, min_alternatives: int, replaced_share: float
    ) -> None:
        """``summaries`` as token ids without the end-of-sequence token."""
        followers: dict[Context, set[int]] = defaultdict(set)
        for summary in summaries:
            for context, token in zip(_contexts(summary), summary, strict=True):
                followers[context].add(token)
        self._alternatives = {
            context: sorted(tokens)
            for context, tokens in followers.items()
            if len(tokens) >= min_alternatives
        }
        self._replaced_share = replaced_share

    @property
    def num_contexts(self) -> int:
        """Pairs of words behind which exchanges happen."""
        return len(self._alternatives)

    def with_share(self, replaced_share: float) -> Self:
        """The same exchange of another share of the places."""
        other = copy.copy(self)
        other._replaced_share = replaced_share
        return other

    def corrupt(self, summary: Sequence[int], source: random.Random) -> Corrupted:
        """A copy with each place's word exchanged with the configured probability."""
        token_ids = list(summary)
        is_place = [False] * len(token_ids)
        is_original = [True] * len(token_ids)
        # What stood before in the original decides, so that one exchange does not displace the next.
        for index, (context, token) in enumerate(zip(_contexts(summary), summary, strict=True)):
            alternatives = self._alternatives.get(context)
            if alternatives is None:
                continue
            is_place[index] = True
            if source.random() < self._replaced_share:
                token_ids[index] = source.choice(alternatives)
                is_original[index] = token_ids[index] == token
        return Corrupted(token_ids=token_ids, is_place=is_place, is_original=is_original)


def _contexts(summary: Sequence[int]) -> list[Context]:
    padded = [None, None, *summary]
    return list(pairwise(padded))[: len(summary)]


def exchange_source() -> random.Random:
    """What one update's exchanges are drawn from.

    torch's generator is part of every checkpoint, so a resumed run exchanges the same words.
    """
    return random.Random(int(torch.randint(2**62, ()).item()))


class TokenDetection:
    """Teaches the head to score a summary's own words above exchanged ones, token by token."""

    def __init__(
        self,
        scorer: PreTrainedModel,
        examples: Sequence[PromptGroup],
        exchange: WordExchange,
        *,
        variants: int,
        token_budget: int,
        device: str,
    ) -> None:
        """``examples``: documents, each with one summary without its end-of-sequence token."""
        self._scorer = scorer.eval()
        self._examples = examples
        self._exchange = exchange
        self._variants = variants
        self._token_budget = token_budget
        self._device = device

    def accumulate(self, items: list[int]) -> BatchReport:
        """Gradients of the mean binary cross-entropy over all places of these examples' variants."""
        source = exchange_source()
        variants = [
            [self._exchange.corrupt(self._examples[item].responses[0], source) for _ in range(self._variants)]
            for item in items
        ]
        groups = [
            PromptGroup(self._examples[item].prompt, [variant.token_ids for variant in row])
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
