"""Decides how people's comparisons become batch elements, and which of them are held out.

All comparisons of one document form one element: the document is passed through once, and so is each distinct
summary, however many people compared it. Several answers to the same task stay decisions of their own, so
what labelers disagree about is learned as a probability. Used by the reward-model stage only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from andon.corpus.records import ComparisonRecord
from andon.modeling.sequences import PromptGroup
from andon.modeling.text import TextCodec
from services.trainer.reward_losses import Decision

LABELING_PREFIX = "labeling:"  # of a source: a batch of the labeling service


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDocument:
    """One document with all summaries that were compared and all decisions about them."""

    group: PromptGroup  # the prompt, and each distinct summary once
    records: tuple[ComparisonRecord, ...]
    candidate_places: tuple[tuple[int, ...], ...]  # per record, where its candidates stand in group.responses
    decisions: tuple[Decision, ...]  # per record, in terms of group.responses

    @property
    def informative_decisions(self) -> list[Decision]:
        """Those that state at least one preference."""
        return [decision for decision in self.decisions if decision.untied_pairs()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Comparisons to learn from and comparisons to test on; they share no document."""

    training: list[ComparisonRecord]
    held_out: list[ComparisonRecord]


def split_by_document(records: Sequence[ComparisonRecord], *, held_out_share: float, seed: int) -> Split:
    """Hold out this share (0..1) of the documents, at least one when the share is not 0.

    A document is its text: the same text under two ids lands on one side. Which ones are held out depends on
    a hash of text and seed, not on their order.
    """
    keys = {record.document: _hash(f"{seed}\n{record.document}") for record in records}
    num_held_out = max(1, round(held_out_share * len(keys))) if held_out_share > 0 else 0
    chosen = set(sorted(keys, key=lambda document: keys[document])[:num_held_out])
    return Split(
        training=[record for record in records if record.document not in chosen],
        held_out=[record for record in records if record.document in chosen],
    )


def group_by_document(
    records: Sequence[ComparisonRecord], codec: TextCodec, *, max_summary_tokens: int
) -> list[ComparedDocument]:
    """One element per document, in the order of first appearance.

    Documents are cut as the codec's template says; a summary above ``max_summary_tokens`` keeps its beginning
    and its end-of-sequence token, so that no decision is dropped.
    """
    by_document: dict[tuple[str, str], list[ComparisonRecord]] = {}
    for record in records:
        by_document.setdefault((record.document_id, record.document), []).append(record)
    return [
        _compared_document(document, group, codec, max_summary_tokens)
        for (_, document), group in by_document.items()
    ]


def cut_summary(token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """The first tokens of a summary and its last one, the end of sequence; unchanged when it is short
    enough.
    """
    if len(token_ids) <= max_tokens:
        return tuple(token_ids)
    return (*token_ids[: max_tokens - 1], token_ids[-1])


def digest_comparisons(records: Sequence[ComparisonRecord]) -> str:
    """SHA-256, in hex, over what training reads of the comparisons, in their order."""
    digest = hashlib.sha256()
    for record in records:
        texts = [candidate.text for candidate in record.candidates]
        content = [record.comparison_id, record.document, texts, record.tiers, record.only_best_known]
        digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _compared_document(
    document: str, records: Sequence[ComparisonRecord], codec: TextCodec, max_summary_tokens: int
) -> ComparedDocument:
    place: dict[tuple[int, ...], int] = {}
    decisions = []
    candidate_places = []
    for record in records:
        places = [
            place.setdefault(
                cut_summary(codec.encode_summary(candidate.text), max_summary_tokens), len(place)
            )
            for candidate in record.candidates
        ]
        candidate_places.append(tuple(places))
        decisions.append(
            Decision(
                tiers=tuple(tuple(places[index] for index in tier) for tier in record.tiers),
                only_best_known=record.only_best_known,
            )
        )
    return ComparedDocument(
        group=PromptGroup(prompt=codec.encode_document(document), responses=list(place)),
        records=tuple(records),
        candidate_places=tuple(candidate_places),
        decisions=tuple(decisions),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
