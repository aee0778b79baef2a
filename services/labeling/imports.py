"""Which answers given elsewhere are taken in, and how they find their tasks.

A row is checked by itself: one that breaks a rule is refused with its reason, the others are recorded. Rows
of a batch with the same document_id, document and candidates are answers to the same task; a labeler who
answered it before has answered it once more. The servicer makes the rows from messages and
:mod:`services.labeling.import_store` writes them down.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from services.labeling.answers import AnswerDraft, check_answer, in_task_order
from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_text
from services.labeling.tasks import (
    MAX_CANDIDATES,
    MAX_DOCUMENT_ID_CHARS,
    Candidate,
    TaskKind,
    check_origin_of_candidate,
)

MAX_ROWS_PER_MESSAGE = 1_000
MAX_REFUSED_TOLD = 1_000
MAX_LABELER_CHARS = 200
UNKNOWN_LABELER = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRow:
    """One answer as its source has it; indices are the source's order of candidates."""

    row: int  # its place in the source, for the report
    document_id: str
    document: str  # empty where the source does not have it
    candidates: tuple[Candidate, ...]
    answer: AnswerDraft  # lease_id is empty
    labeler_id: str
    answer_us: int | None = None

    @property
    def kind(self) -> TaskKind:
        """What was asked."""
        return TaskKind.JUDGE if len(self.candidates) == 1 else TaskKind.COMPARE

    @property
    def content_sha256(self) -> str:
        """What makes rows answers to the same task."""
        content = [
            self.document_id,
            self.document,
            [[one.text, one.source, str(one.policy_version)] for one in self.candidates],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a row was not recorded."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportTally:
    """What became of the rows of a message, or of several."""

    num_recorded: int = 0
    num_repeated: int = 0  # an earlier, identical message had recorded them
    num_tasks: int = 0
    num_refused: int = 0
    refused: tuple[Refusal, ...] = ()  # the first of them

    def __add__(self, other: ImportTally) -> ImportTally:
        return ImportTally(
            num_recorded=self.num_recorded + other.num_recorded,
            num_repeated=self.num_repeated + other.num_repeated,
            num_tasks=self.num_tasks + other.num_tasks,
            num_refused=self.num_refused + other.num_refused,
            refused=(self.refused + other.refused)[:MAX_REFUSED_TOLD],
        )


def check_rows(rows: list[ImportRow], *, max_text_chars: int) -> tuple[list[ImportRow], ImportTally]:
    """The rows that can be recorded, their answers in canonical form, and the tally of the others."""
    kept: list[ImportRow] = []
    refused: list[Refusal] = []
    for row in rows:
        try:
            kept.append(check_row(row, max_text_chars=max_text_chars))
        except InvalidFieldError as error:
            refused.append(Refusal(row=row.row, reason=error.reason, message=error.message))
    return kept, ImportTally(num_refused=len(refused), refused=tuple(refused[:MAX_REFUSED_TOLD]))


def check_row(row: ImportRow, *, max_text_chars: int) -> ImportRow:
    """The row with its decision in canonical form; raises InvalidFieldError for what breaks a rule."""
    check_text(row.document_id, field="document_id", max_chars=MAX_DOCUMENT_ID_CHARS)
    check_text(row.document, field="document", max_chars=max_text_chars)
    if not 1 <= len(row.candidates) <= MAX_CANDIDATES:
        raise InvalidFieldError(
            f"{len(row.candidates)}; 1 to {MAX_CANDIDATES} are needed",
            reason="CANDIDATE_COUNT",
            field="candidates",
        )
    for place, candidate in enumerate(row.candidates):
        # An empty candidate is data where somebody judged it.
        check_text(candidate.text, field=f"candidates[{place}].text", max_chars=max_text_chars)
        check_origin_of_candidate(candidate, field=f"candidates[{place}]")
    if not row.labeler_id.isprintable() or not 1 <= len(row.labeler_id) <= MAX_LABELER_CHARS:
        raise InvalidFieldError(
            f"1 to {MAX_LABELER_CHARS} printable characters", reason="INVALID_LABELER", field="labeler_id"
        )
    check_answer(row.answer, field="answer")
    order = tuple(range(len(row.candidates)))
    return ImportRow(
        row=row.row,
        document_id=row.document_id,
        document=row.document,
        candidates=row.candidates,
        answer=in_task_order(row.answer, order, field="answer"),
        labeler_id=row.labeler_id,
        answer_us=row.answer_us,
    )
