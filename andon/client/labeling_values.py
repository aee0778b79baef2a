"""What goes to the labeling service and comes back from it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from andon.corpus.records import CandidateRecord, RatingRecord


def is_showable(text: str) -> bool:
    """Whether the labeling service takes a text: a hardly trained model may write nothing, or NUL bytes."""
    return bool(text.strip()) and "\0" not in text


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDraft:
    """A document with 2 to 9 candidates to compare."""

    document: str
    candidates: tuple[CandidateRecord, ...]
    document_id: str = ""
    overlap: int = 1  # how many labelers answer it
    kind: str = "compare"  # or "write", "edit"
    purpose: str = "ordinary"  # or "calibration", "drift", "gold", "training", "screening"
    expected: tuple[tuple[int, ...], ...] | None = None  # the right answer, as tiers of candidate indices
    explanation: str = ""  # why it is right


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTask:
    """A task as one labeler sees it: blind, in an order of their own."""

    lease_id: str
    document: str
    candidates: tuple[str, ...]
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDraft:
    """A decision about one leased task: either the best candidate or a ranking of all of them."""

    lease_id: str
    best_index: int | None = None  # into LeasedTask.candidates
    tiers: tuple[tuple[int, ...], ...] | None = None  # best first; candidates of one tier are tied
    confidence: int = 0  # 1 (a guess) to 9 (certain); 0 when not asked
    preference: int = 0  # pairs: 1 (the first is far better) to 9 (the second is); 0 when not asked
    ratings: tuple[RatingRecord, ...] = ()  # one per candidate as shown, or none
    note: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelingProgress:
    """How far a batch is."""

    task_count: int
    slot_count: int  # answers wanted
    answer_count: int
    lease_count: int  # open now
    labeler_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """What a researcher decides for a project."""

    title: str = ""
    instructions: str = ""  # what labelers read first, as plain text
    naive_reading: bool = False  # ask for a reading of the candidates before the document is shown
    rating_axes: bool = False  # ask for 1..7 on accuracy, coverage, coherence and overall
    no_indifference: bool = False  # leave 5 out of the 9-point scale of pairs
    reading_aids: bool = False  # offer word differences and look-up in the document
    training_count: int = 0  # onboarding items with feedback
    screening_count: int = 0  # onboarding items without
    min_agreement: float = 0.0  # admitted from this share of right screening answers on
    max_item_s: float | None = None  # and when an item took no longer on average
    max_attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What a researcher decides for a batch. Shares are 0..1 of each labeler's items."""

    mode: str = "batched"  # or "offline", "online"
    calibration_share: float = 0.0
    drift_share: float = 0.0
    gold_share: float = 0.0
    repeat_share: float = 0.0
    max_answers_per_labeler: int = 0  # 0: no limit
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """A row that was not recorded."""

    row: int  # its number in the source
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What became of an import."""

    recorded_count: int
    repeated_count: int  # an earlier, identical import had recorded them
    task_count: int
    refused_count: int
    refused: tuple[RefusedRow, ...]  # the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; None where there is too little data."""

    value: float | None
    low: float | None
    high: float | None
    unit_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerPair:
    """How far two labelers agree."""

    a: str
    b: str
    agreement: Estimate
    cohen_kappa: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far labelers agree; a ranking is taken as its pairs, a tie is a label of its own."""

    pairs: tuple[LabelerPair, ...]
    fleiss_kappa: Estimate
    krippendorff_alpha: Estimate
    labeler_labeler: Estimate
    labeler_researcher: Estimate
    labeler_majority: Estimate
