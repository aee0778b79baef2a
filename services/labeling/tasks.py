"""What a task is, and which submissions are taken.

A task is a document with 2 to 9 candidates that a number of labelers compare, or for which they write a text
of their own. The servicer makes these values from messages and the store writes them down; where a task
stands in the pool is :mod:`services.labeling.assignment`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from andon.modeling.versions import ModelVersion
from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_batch, check_text
from services.labeling.quality.records import Purpose

MIN_CANDIDATES = 2
MAX_CANDIDATES = 9
MAX_OVERLAP = 100
MAX_TASKS_PER_SUBMISSION = 10_000
MAX_SOURCE_CHARS = 64
MAX_DOCUMENT_ID_CHARS = 1_000
MAX_EXPLANATION_CHARS = 10_000

MAX_FAMILY_CHARS = 1_000

_WEIGHTS_SHA256 = re.compile(r"([0-9a-f]{64})?")


Tiers = tuple[tuple[int, ...], ...]  # candidate positions, best tier first


class TaskKind(enum.Enum):
    """What a labeler is asked to do."""

    COMPARE = "compare"
    WRITE = "write"  # a better summary
    EDIT = "edit"  # the candidate into a better summary
    JUDGE = "judge"  # yes or no to one candidate; only imported


# Fewest and most.
_CANDIDATE_COUNTS = {
    TaskKind.COMPARE: (MIN_CANDIDATES, MAX_CANDIDATES),
    TaskKind.WRITE: (0, MAX_CANDIDATES),
    TaskKind.EDIT: (1, 1),
    TaskKind.JUDGE: (1, 1),
}
# Every labeler may get such a task, and it has no overlap of its own.
PURPOSES_FOR_EVERYBODY = frozenset({Purpose.CALIBRATION, Purpose.GOLD, Purpose.TRAINING, Purpose.SCREENING})
PURPOSES_WITH_EXPECTATION = frozenset({Purpose.GOLD, Purpose.TRAINING, Purpose.SCREENING})
ONBOARDING_PURPOSES = frozenset({Purpose.TRAINING, Purpose.SCREENING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the texts to compare."""

    text: str
    source: str = ""
    policy_version: ModelVersion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDraft:
    """A task as it was submitted."""

    document: str
    candidates: tuple[Candidate, ...]  # in the submitter's order
    document_id: str = ""
    overlap_count: int = 1  # how many labelers answer it, unless everybody does
    kind: TaskKind = TaskKind.COMPARE
    purpose: Purpose = Purpose.ORDINARY
    expected: Tiers | None = None  # the right answer
    explanation: str = ""  # why

    @property
    def is_for_everybody(self) -> bool:
        """Whether every labeler may get it."""
        return self.purpose in PURPOSES_FOR_EVERYBODY


def check_submission(batch: str, tasks: Sequence[TaskDraft], *, max_text_chars: int) -> None:
    """Refuse the whole submission at its first fault."""
    check_batch(batch)
    if not tasks:
        raise InvalidFieldError("at least one task is needed", reason="EMPTY_REQUEST", field="tasks")
    if len(tasks) > MAX_TASKS_PER_SUBMISSION:
        raise InvalidFieldError(
            f"{len(tasks):,} tasks; at most {MAX_TASKS_PER_SUBMISSION:,}",
            reason="TOO_MANY_TASKS",
            field="tasks",
        )
    for index, task in enumerate(tasks):
        _check_task(task, field=f"tasks[{index}]", max_text_chars=max_text_chars)


def _check_task(task: TaskDraft, *, field: str, max_text_chars: int) -> None:
    if not task.document or task.document.isspace():
        raise InvalidFieldError("the document is empty", reason="EMPTY_DOCUMENT", field=f"{field}.document")
    check_text(task.document, field=f"{field}.document", max_chars=max_text_chars)
    check_text(task.document_id, field=f"{field}.document_id", max_chars=MAX_DOCUMENT_ID_CHARS)
    fewest, most = _CANDIDATE_COUNTS[task.kind]
    if not fewest <= len(task.candidates) <= most:
        raise InvalidFieldError(
            f"{len(task.candidates)} candidates; {fewest} to {most} are needed",
            reason="CANDIDATE_COUNT",
            field=f"{field}.candidates",
        )
    if not 1 <= task.overlap_count <= MAX_OVERLAP:
        raise InvalidFieldError(
            f"{task.overlap_count}; 1 to {MAX_OVERLAP}",
            reason="INVALID_OVERLAP",
            field=f"{field}.overlap_count",
        )
    _check_expectation(task, field=field)
    for place, candidate in enumerate(task.candidates):
        _check_candidate(candidate, field=f"{field}.candidates[{place}]", max_text_chars=max_text_chars)


def _check_expectation(task: TaskDraft, *, field: str) -> None:
    def refuse(message: str, name: str) -> InvalidFieldError:
        return InvalidFieldError(message, reason="INVALID_EXPECTATION", field=f"{field}.{name}")

    if task.kind is not TaskKind.COMPARE and task.purpose is not Purpose.ORDINARY:
        raise refuse(f"a text that is written cannot serve as {task.purpose.value}", "purpose")
    if (task.expected is not None) != (task.purpose in PURPOSES_WITH_EXPECTATION):
        raise refuse("gold, training and screening items have one, others have none", "expected")
    check_text(task.explanation, field=f"{field}.explanation", max_chars=MAX_EXPLANATION_CHARS)
    if task.expected is None:
        return
    positions = sorted(position for tier in task.expected for position in tier)
    if positions != list(range(len(task.candidates))) or not all(task.expected):
        raise refuse("each candidate stands in exactly one tier, and no tier is empty", "expected")


def _check_candidate(candidate: Candidate, *, field: str, max_text_chars: int) -> None:
    if not candidate.text or candidate.text.isspace():
        raise InvalidFieldError("the candidate is empty", reason="EMPTY_CANDIDATE", field=f"{field}.text")
    check_text(candidate.text, field=f"{field}.text", max_chars=max_text_chars)
    check_origin_of_candidate(candidate, field=field)


def check_origin_of_candidate(candidate: Candidate, *, field: str) -> None:
    """Refuse a source or a policy version that cannot be kept."""
    check_text(candidate.source, field=f"{field}.source", max_chars=MAX_SOURCE_CHARS)
    written_by = candidate.policy_version
    if written_by is None:
        return
    field = f"{field}.policy_version"
    # A model from outside the store has its folder or public name as family, and version 0.
    if not written_by.family or written_by.version < 0:
        raise InvalidFieldError(
            "needs a name and a version that is not negative; leave it away for other texts",
            reason="INVALID_POLICY_VERSION",
            field=field,
        )
    check_text(written_by.family, field=field, max_chars=MAX_FAMILY_CHARS, reason="INVALID_POLICY_VERSION")
    if not _WEIGHTS_SHA256.fullmatch(written_by.weights_sha256):
        raise InvalidFieldError(
            "weights_sha256 is empty or 64 lower-case hexadecimal digits",
            reason="INVALID_POLICY_VERSION",
            field=field,
        )
