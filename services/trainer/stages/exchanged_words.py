"""Decides which words of summaries are exchanged for which others, where a reward model learns from that.

Two phases before the comparisons do, ``token_detection`` and ``summary_detection``; ``reward_model`` gathers
their documents.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch

from andon.modeling.sequences import PromptGroup
from services.trainer.stages.batch_order import BatchOrder


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


def _update_source() -> random.Random:
    # torch's generator is part of every checkpoint, so a resumed run exchanges the same words.
    return random.Random(int(torch.randint(2**62, ()).item()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangedWords:
    """Documents with summaries, and how words of these are exchanged."""

    examples: list[PromptGroup]  # one summary each, without its end-of-sequence token
    exchange: WordExchange

    def with_share(self, replaced_share: float) -> Self:
        """The same with another share of the places."""
        return replace(self, exchange=self.exchange.with_share(replaced_share))

    def order(self, *, batch_documents: int, steps: int, seed: int) -> BatchOrder:
        """The documents of a phase's updates."""
        return BatchOrder(
            [1] * len(self.examples), budget=batch_documents, seed=seed, steps=steps, epochs=None
        )

    def copies(self, items: Sequence[int], *, variants: int) -> list[list[Corrupted]]:
        """For one update: of each of these examples' summaries, this many with words exchanged anew."""
        source = _update_source()
        return [
            [self.exchange.corrupt(self.examples[item].responses[0], source) for _ in range(variants)]
            for item in items
        ]
