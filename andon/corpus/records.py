"""The records that travel between loaders, services and training stages.

Loaders make them, the labeling client turns answers into them, the training stages read them. Token ids do
not occur here: text is the common ground of models with different vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """A document with the summaries that people wrote of it."""

    document_id: str
    document: str
    summaries: tuple[str, ...] = ()  # the first one is *the* reference
    title: str | None = None
    facts: dict[str, str] | None = field(default=None, hash=False)  # only the built-in corpus knows them


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """One of the texts that were compared."""

    text: str
    source: str = ""  # "policy", "reference", "edit", or the data set's own word
    policy_version: str | None = None  # "sft/1" or "policy/12"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """One person's decision about the candidates for one document.

    ``tiers`` holds candidate indices, best tier first; candidates of one tier are tied. A best-of-K choice,
    which
    says nothing about the others, has the best one alone in the first tier, all others in the second, and
    ``only_best_known`` set.
    """

    document_id: str
    document: str
    candidates: tuple[CandidateRecord, ...]
    tiers: tuple[tuple[int, ...], ...]
    only_best_known: bool = False
    labeler_id: str = ""
    confidence: int | None = None  # 1 (a guess) to 9 (certain)
    comparison_id: str = ""
    batch: str = ""

    def untied_pairs(self) -> list[tuple[int, int]]:
        """All (better, worse) pairs of candidate indices that the decision states."""
        return [
            (better, worse)
            for rank, tier in enumerate(self.tiers)
            for better in tier
            for lower in self.tiers[rank + 1 :]
            for worse in lower
        ]
