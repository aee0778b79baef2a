"""The records that travel between loaders, services and training stages.

Loaders make them, the labeling client turns answers into them, the training stages read them. Token ids do
not occur here: text is the common ground of models with different vocabularies. Moments are texts, ISO 8601
in UTC with a ``Z``, so that a record is the same before and after a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

PURPOSES = ("ordinary", "calibration", "drift", "gold", "training", "screening")
FLAGS = ("harmful", "made_up", "personal_data", "cannot_judge")


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
class RatingRecord:
    """What a labeler says of one candidate by itself. Axes go from 1 (bad) to 7 (good)."""

    accuracy: int | None = None  # whether what it says is right
    coverage: int | None = None  # whether it says what matters
    coherence: int | None = None  # whether it reads well by itself
    overall: int | None = None
    flags: tuple[str, ...] = ()  # of FLAGS
    naive_reading: str = ""  # what it was taken to say before the document was shown


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryRecord:
    """How an answer came about, as the labeler's page measured it."""

    shown_time: str | None = None  # when the item appeared
    first_action_time: str | None = None
    submit_time: str | None = None
    active_s: float | None = None  # how long the page was visible and not idle
    change_count: int = 0  # how often the answer was changed before it was submitted
    aids: tuple[str, ...] = ()  # which ones were used, for example "differences"
    device_class: str = ""  # "desktop", "tablet" or "phone"
    page_version: str = ""
    instructions_version: int = 0  # of the instructions that the labeler had read


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """One person's decision about the candidates for one document.

    ``tiers`` holds candidate indices, best tier first; candidates of one tier are tied. A best-of-K choice,
    which says nothing about the others, has the best one alone in the first tier, all others in the second,
    and ``only_best_known`` set. A yes or no to one candidate has ``verdict`` set and tiers ((0,),).
    """

    document_id: str
    document: str  # "" where the source does not have it
    candidates: tuple[CandidateRecord, ...]
    tiers: tuple[tuple[int, ...], ...]
    only_best_known: bool = False
    labeler_id: str = ""
    confidence: int | None = None  # 1 (a guess) to 9 (certain)
    comparison_id: str = ""
    batch: str = ""
    verdict: bool | None = None  # yes or no to the one candidate
    preference: int | None = None  # pairs: 1 (candidates[0] far better) to 9 (candidates[1] far better)
    ratings: tuple[RatingRecord, ...] = ()  # one per candidate, or none
    note: str = ""
    shown_order: tuple[int, ...] = ()  # candidates[shown_order[i]] stood at place i on the screen
    lease_time: str | None = None
    answer_time: str | None = None  # when the answer was recorded
    duration_s: float | None = None  # how long the labeler took, as their client measured it
    project: str = ""
    purpose: str = "ordinary"  # of PURPOSES
    round: int = 0  # 0 for the labeler's first answer to this task, 1 for the first repeat
    supersedes_comparison_id: str | None = None  # the comparison that this one corrects
    is_superseded: bool = False  # a later comparison corrects this one
    origin: str = ""  # "site", "grpc" or "import"
    task_id: str = ""
    telemetry: TelemetryRecord | None = None  # None where it was not measured

    def untied_pairs(self) -> list[tuple[int, int]]:
        """All (better, worse) pairs of candidate indices that the decision states."""
        return [
            (better, worse)
            for rank, tier in enumerate(self.tiers)
            for better in tier
            for lower in self.tiers[rank + 1 :]
            for worse in lower
        ]

    def task_key(self) -> str:
        """What tells tasks apart: the task's id, else a digest of document and candidates with their
        sources.
        """
        return self.task_id or content_digest(
            self.document_id,
            self.document,
            *(f"{entry.source}\n{entry.policy_version or ''}\n{entry.text}" for entry in self.candidates),
        )


def content_digest(*parts: str) -> str:
    """32 hexadecimal digits (128 bits of SHA-256) that stand for these texts, in this order."""
    # As JSON, so that ("ab", "c") and ("a", "bc") differ.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
