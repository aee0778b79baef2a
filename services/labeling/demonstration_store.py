"""How texts that people write or edit are kept. A rewritten one is a new row; both are kept.

Each public method is one short transaction that blocks its thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.answers import Telemetry
from services.labeling.assignment import LeaseRecord, check_may_answer
from services.labeling.database import Database, take_numbers
from services.labeling.errors import (
    AnswerNotFoundError,
    AnswerSupersededError,
    InvalidFieldError,
    LeaseNotFoundError,
)
from services.labeling.leases import leases_by_id
from services.labeling.limits import MAX_NOTE_CHARS, Clock, check_text
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.rows import candidates_by_task, telemetry_from_json, telemetry_to_json
from services.labeling.schema import batches, demonstrations, projects, tasks
from services.labeling.store import check_kinds, end_leases
from services.labeling.tasks import Candidate, TaskKind

MAX_DEMONSTRATION_CHARS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationDraft:
    """A text that a labeler wrote or edited."""

    lease_id: str
    text: str
    note: str = ""
    answer_duration_us: int | None = None
    telemetry: Telemetry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A recorded text with its task."""

    demonstration_id: int
    task_id: int
    lease_id: str
    project: str
    batch: str
    kind: TaskKind
    document_id: str
    document: str
    candidates: tuple[Candidate, ...]  # what was to be edited, or what else there is
    text: str
    note: str
    labeler_id: str
    supersedes_id: int | None
    is_superseded: bool
    answer_us: int
    answer_duration_us: int | None
    telemetry: Telemetry | None


def check_demonstration(draft: DemonstrationDraft) -> None:
    """Refuse what no lease could make right."""
    if not draft.text.strip():
        raise InvalidFieldError("write something", reason="INVALID_ANSWER", field="text")
    check_text(draft.text, field="text", max_chars=MAX_DEMONSTRATION_CHARS, reason="INVALID_ANSWER")
    check_text(draft.note, field="note", max_chars=MAX_NOTE_CHARS, reason="INVALID_ANSWER")


class DemonstrationStore:
    """Written texts in a database."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def demonstrate(self, request: RepeatableRequest, labeler_id: str, draft: DemonstrationDraft) -> int:
        """Record a text that :func:`check_demonstration` has passed; returns its id."""

        def work(connection: sa.Connection) -> int:
            # Before recall: a repetition that comes while the first still runs waits here and then finds it.
            lease = leases_by_id(connection, [draft.lease_id]).get(draft.lease_id)
            known = recall(connection, request)
            if known is not None:
                return int(known)
            now_us = self._clock()
            if lease is None:
                raise LeaseNotFoundError(draft.lease_id)
            check_may_answer(lease, labeler_id=labeler_id, now_us=now_us)
            check_kinds([lease], (TaskKind.WRITE, TaskKind.EDIT))
            number = _insert_demonstration(connection, lease, draft, supersedes_id=None, now_us=now_us)
            end_leases(connection, [lease])
            remember(connection, request, number, now_us=now_us)
            return number

        return self._database.write(work)

    def rewrite(
        self, request: RepeatableRequest, labeler_id: str, demonstration_id: int, draft: DemonstrationDraft
    ) -> int:
        """Record a new text in place of an earlier one of this labeler's; both are kept."""

        def work(connection: sa.Connection) -> int:
            known = recall(connection, request)
            if known is not None:
                return int(known)
            earlier = _own_demonstration(connection, demonstration_id, labeler_id)
            now_us = self._clock()
            (lease,) = leases_by_id(connection, [earlier.lease_id]).values()
            number = _insert_demonstration(
                connection, lease, draft, supersedes_id=demonstration_id, now_us=now_us
            )
            remember(connection, request, number, now_us=now_us)
            return number

        return self._database.write(work)

    def own_demonstration(self, demonstration_id: int, labeler_id: str) -> Demonstration:
        """A text of this labeler's that stands. Raises AnswerNotFoundError or AnswerSupersededError."""
        return self._database.read(
            lambda connection: _own_demonstration(connection, demonstration_id, labeler_id)
        )

    def demonstrations_after(
        self, demonstration_id: int, *, project: str = "", batch: str = "", labeler_id: str = "", limit: int
    ) -> list[Demonstration]:
        """The next recorded texts after a cursor that stand, oldest first; empty names take all."""

        def work(connection: sa.Connection) -> list[Demonstration]:
            query = (
                _select_demonstrations()
                .where(demonstrations.c.id > demonstration_id, ~_is_rewritten())
                .order_by(demonstrations.c.id)
                .limit(limit)
            )
            for name, column in (
                (project, projects.c.name),
                (batch, batches.c.name),
                (labeler_id, demonstrations.c.labeler_id),
            ):
                if name:
                    query = query.where(column == name)
            rows = connection.execute(query).all()
            texts = candidates_by_task(connection, {row.task_id for row in rows})
            return [_demonstration(row, texts[row.task_id]) for row in rows]

        return self._database.read(work)


def _insert_demonstration(
    connection: sa.Connection,
    lease: LeaseRecord,
    draft: DemonstrationDraft,
    *,
    supersedes_id: int | None,
    now_us: int,
) -> int:
    (number,) = take_numbers(connection, "demonstration", 1)
    connection.execute(
        sa.insert(demonstrations).values(
            id=number,
            batch_id=lease.batch_id,
            task_id=lease.task_id,
            lease_id=lease.lease_id,
            labeler_id=lease.labeler_id,
            supersedes_id=supersedes_id,
            text=draft.text,
            note=draft.note,
            lease_us=lease.lease_us,
            answer_us=now_us,
            answer_duration_us=draft.answer_duration_us,
            telemetry=telemetry_to_json(draft.telemetry),
        )
    )
    return number


def _is_rewritten() -> sa.Exists:
    later = demonstrations.alias("later")
    return sa.exists().where(later.c.supersedes_id == demonstrations.c.id)


def _select_demonstrations() -> sa.Select[Any]:
    return (
        sa.select(
            demonstrations,
            tasks.c.kind,
            tasks.c.document_id,
            tasks.c.document,
            batches.c.name.label("batch"),
            projects.c.name.label("project"),
            _is_rewritten().label("is_superseded"),
        )
        .join(tasks, tasks.c.id == demonstrations.c.task_id)
        .join(batches, batches.c.id == demonstrations.c.batch_id)
        .join(projects, projects.c.id == batches.c.project_id)
    )


def _own_demonstration(connection: sa.Connection, demonstration_id: int, labeler_id: str) -> Demonstration:
    row = connection.execute(
        _select_demonstrations().where(
            demonstrations.c.id == demonstration_id, demonstrations.c.labeler_id == labeler_id
        )
    ).one_or_none()
    if row is None:
        raise AnswerNotFoundError(demonstration_id)
    if row.is_superseded:
        raise AnswerSupersededError(demonstration_id)
    return _demonstration(row, candidates_by_task(connection, {row.task_id})[row.task_id])


def _demonstration(row: sa.Row[Any], texts: list[Candidate]) -> Demonstration:
    return Demonstration(
        demonstration_id=row.id,
        task_id=row.task_id,
        lease_id=row.lease_id,
        project=row.project,
        batch=row.batch,
        kind=TaskKind(row.kind),
        document_id=row.document_id,
        document=row.document,
        candidates=tuple(texts),
        text=row.text,
        note=row.note,
        labeler_id=row.labeler_id,
        supersedes_id=row.supersedes_id,
        is_superseded=row.is_superseded,
        answer_us=row.answer_us,
        answer_duration_us=row.answer_duration_us,
        telemetry=telemetry_from_json(row.telemetry),
    )
