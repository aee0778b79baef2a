"""What one labeler has done and has before them: their projects, their answers in order, an item's record.

The labeler's pages ask. Over the same tables and rules as :mod:`services.labeling.store`; each public method
blocks its thread and writes nothing. What is another labeler's is not found here. Records are named by their
lease, because pages may show no number of a task or an answer.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.answers import Comparison
from services.labeling.assignment import Draws
from services.labeling.database import Database
from services.labeling.errors import AnswerNotFoundError
from services.labeling.leasing import Worker, take_tasks
from services.labeling.limits import Clock
from services.labeling.onboarding_store import screening_answers
from services.labeling.project_store import ProjectRecord, ProjectStore, open_batches
from services.labeling.quality.admission import Admission, AdmissionThresholds, decide_admission
from services.labeling.quality.gold import share_right
from services.labeling.quality_store import judged_answers
from services.labeling.rows import candidates_by_task, comparison_of, is_superseded, select_comparisons
from services.labeling.schema import (
    admissions,
    batches,
    comparisons,
    demonstrations,
    leases,
    projects,
    slots,
    tasks,
)
from services.labeling.site_store import SITE_KINDS
from services.labeling.store import is_admitted, is_exported
from services.labeling.tasks import ONBOARDING_PURPOSES, TaskKind


class ProjectState(enum.Enum):
    """What a project asks of a labeler next."""

    INSTRUCTIONS = "instructions"  # a version that they have not read
    ONBOARDING = "onboarding"
    NOT_ADMITTED = "not_admitted"  # the onboarding's last attempt failed
    WORK = "work"
    NOTHING_LEFT = "nothing_left"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOverview:
    """A project on a labeler's first page."""

    project: ProjectRecord
    state: ProjectState
    num_own_answers: int  # onboarding left out


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """An answer of the labeler's that stands: a comparison, or a text that they wrote."""

    lease_id: str
    kind: TaskKind
    document: str
    comparison: Comparison | None
    text: str  # empty for a comparison
    first_us: int  # when the item was first answered
    answer_us: int  # when the answer that stands was given
    is_correctable: bool

    @property
    def is_corrected(self) -> bool:
        """Whether the answer replaces an earlier one."""
        return self.answer_us != self.first_us


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKey:
    """The number under which the other stores know the standing answer to an item."""

    kind: TaskKind
    answer_id: int


class LabelerStore:
    """One labeler's view of what they did."""

    def __init__(self, database: Database, project_store: ProjectStore, *, clock: Clock) -> None:
        self._database = database
        self._project_store = project_store
        self._clock = clock

    def overview(self, labeler_id: str) -> list[ProjectOverview]:
        """All projects that have batches, by name."""
        found = self._project_store.projects()
        unread = {
            project.project_id
            for project in found
            if not self._project_store.has_read_instructions(project, labeler_id)
        }

        def work(connection: sa.Connection) -> list[ProjectOverview]:
            with_batches = set(connection.execute(sa.select(batches.c.project_id).distinct()).scalars())
            own = _answers_by_project(connection, labeler_id)
            return [
                ProjectOverview(
                    project=project,
                    state=(
                        ProjectState.INSTRUCTIONS
                        if project.project_id in unread
                        else self._state(connection, project, labeler_id)
                    ),
                    num_own_answers=own.get(project.project_id, 0),
                )
                for project in found
                if project.project_id in with_batches
            ]

        return self._database.read(work)

    def history(self, labeler_id: str, *, project: str, limit: int, offset: int = 0) -> list[HistoryEntry]:
        """The labeler's standing answers in a project, the last answered item first; no onboarding."""

        def work(connection: sa.Connection) -> list[HistoryEntry]:
            answered = _answered(labeler_id, project)
            rows = connection.execute(
                sa.select(answered)
                .order_by(answered.c.answer_us.desc(), answered.c.lease_id.desc())
                .limit(limit)
                .offset(offset)
            ).all()
            return _entries(connection, rows)

        return self._database.read(work)

    def previous(self, labeler_id: str, *, project: str, lease_id: str = "") -> str | None:
        """The lease of the item that was answered before this one; without one, of the last."""

        def work(connection: sa.Connection) -> str | None:
            answered = _answered(labeler_id, project)
            query = sa.select(answered.c.lease_id).order_by(
                answered.c.answer_us.desc(), answered.c.lease_id.desc()
            )
            this = None
            if lease_id:
                this = connection.execute(
                    sa.select(answered).where(answered.c.lease_id == lease_id)
                ).one_or_none()
            if this is not None:
                query = query.where(
                    sa.or_(
                        answered.c.answer_us < this.answer_us,
                        sa.and_(answered.c.answer_us == this.answer_us, answered.c.lease_id < lease_id),
                    )
                )
            found: str | None = connection.execute(query.limit(1)).scalar_one_or_none()
            return found

        return self._database.read(work)

    def answer_key(self, lease_id: str, labeler_id: str) -> AnswerKey:
        """The standing answer to an item, onboarding included. Raises AnswerNotFoundError."""

        def work(connection: sa.Connection) -> AnswerKey:
            later = demonstrations.alias("later")
            comparison_id = connection.execute(
                sa.select(comparisons.c.id).where(
                    comparisons.c.lease_id.is_not(None),
                    _is_on_lease(comparisons, lease_id, labeler_id),
                    ~is_superseded(),
                )
            ).scalar_one_or_none()
            if comparison_id is not None:
                return AnswerKey(kind=TaskKind.COMPARE, answer_id=comparison_id)
            row = connection.execute(
                sa.select(demonstrations.c.id, tasks.c.kind)
                .join(tasks, tasks.c.id == demonstrations.c.task_id)
                .where(
                    demonstrations.c.lease_id == lease_id,
                    demonstrations.c.labeler_id == labeler_id,
                    ~sa.exists().where(later.c.supersedes_id == demonstrations.c.id),
                )
            ).one_or_none()
            if row is None:
                raise AnswerNotFoundError(0)
            return AnswerKey(kind=TaskKind(row.kind), answer_id=row.id)

        return self._database.read(work)

    def comparison(self, comparison_id: int, labeler_id: str) -> Comparison:
        """An answer of this labeler's, onboarding included. Raises AnswerNotFoundError."""

        def work(connection: sa.Connection) -> Comparison:
            row = connection.execute(
                select_comparisons().where(
                    comparisons.c.id == comparison_id, comparisons.c.labeler_id == labeler_id
                )
            ).one_or_none()
            if row is None:
                raise AnswerNotFoundError(comparison_id)
            return comparison_of(row, candidates_by_task(connection, {row.task_id})[row.task_id])

        return self._database.read(work)

    def share_right(self, comparison_id: int, task_id: int) -> float | None:
        """How right an answer is, 0..1; None where the right answer is not known."""

        def work(connection: sa.Connection) -> float | None:
            (answer,) = judged_answers(connection, tasks.c.id == task_id, comparisons.c.id == comparison_id)
            return share_right(answer)

        return self._database.read(work)

    def admission(self, project: ProjectRecord, labeler_id: str) -> Admission | None:
        """How the last screening went, by the thresholds of today; None without one."""
        wanted = project.settings.onboarding

        def work(connection: sa.Connection) -> Admission | None:
            last = _last_attempt(connection, project, labeler_id)
            if last is None or last.decide_us is None or not last.screening_task_ids:
                return None
            return decide_admission(
                screening_answers(connection, labeler_id, last),
                thresholds=AdmissionThresholds(
                    min_share_right=wanted.min_agreement,
                    max_mean_s=wanted.max_item_s,
                    max_attempts=wanted.max_attempts,
                ),
                attempt=min(last.attempt, wanted.max_attempts),
            )

        return self._database.read(work)

    def lease_of_task(self, task_id: int, labeler_id: str) -> str | None:
        """The labeler's first lease of a task."""
        return self._database.read(
            lambda connection: connection.execute(
                sa.select(leases.c.id)
                .where(leases.c.task_id == task_id, leases.c.labeler_id == labeler_id)
                .order_by(leases.c.round)
                .limit(1)
            ).scalar_one_or_none()
        )

    def _state(self, connection: sa.Connection, project: ProjectRecord, labeler_id: str) -> ProjectState:
        if not is_admitted(connection, project.project_id, labeler_id):
            return _onboarding_state(connection, project, labeler_id)
        has_work = self._has_work(connection, project, labeler_id)
        return ProjectState.WORK if has_work else ProjectState.NOTHING_LEFT

    def _has_work(self, connection: sa.Connection, project: ProjectRecord, labeler_id: str) -> bool:
        now_us = self._clock()
        is_open = connection.execute(
            sa.select(leases.c.id)
            .join(tasks, tasks.c.id == leases.c.task_id)
            .join(batches, batches.c.id == tasks.c.batch_id)
            .join(slots, slots.c.lease_id == leases.c.id)
            .where(
                leases.c.labeler_id == labeler_id,
                ~leases.c.is_answered,
                ~leases.c.is_skipped,
                leases.c.expire_us > now_us,
                batches.c.project_id == project.project_id,
                tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
            )
            .limit(1)
        ).first()
        if is_open is not None:
            return True
        worker = Worker(labeler_id=labeler_id, kinds=SITE_KINDS, now_us=now_us)
        draws = Draws(seed=self._database.seed)
        return any(
            take_tasks(connection, worker, batch, wanted=1, draws=draws)
            for batch in open_batches(connection, project=project.name, batch="")
        )


def _onboarding_state(connection: sa.Connection, project: ProjectRecord, labeler_id: str) -> ProjectState:
    last = _last_attempt(connection, project, labeler_id)
    if last is None or last.state != "failed":
        return ProjectState.ONBOARDING
    may_retry = last.decided_by == "rule" and last.attempt < project.settings.onboarding.max_attempts
    return ProjectState.ONBOARDING if may_retry else ProjectState.NOT_ADMITTED


def _last_attempt(connection: sa.Connection, project: ProjectRecord, labeler_id: str) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(admissions)
        .where(admissions.c.project_id == project.project_id, admissions.c.labeler_id == labeler_id)
        .order_by(admissions.c.attempt.desc())
        .limit(1)
    ).one_or_none()


def _answers_by_project(connection: sa.Connection, labeler_id: str) -> dict[int, int]:
    rows = connection.execute(
        sa.select(batches.c.project_id, sa.func.count().label("num_answers"))
        .select_from(leases)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .join(batches, batches.c.id == tasks.c.batch_id)
        .where(
            leases.c.labeler_id == labeler_id,
            leases.c.is_answered,
            tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
        )
        .group_by(batches.c.project_id)
    )
    return {row.project_id: row.num_answers for row in rows}


def _answered(labeler_id: str, project: str) -> sa.Subquery:
    """Lease, and time of the first answer, of all items that a labeler has answered in a project."""
    stretches = [
        sa.select(table.c.lease_id, table.c.answer_us)
        .join(tasks, tasks.c.id == table.c.task_id)
        .join(batches, batches.c.id == table.c.batch_id)
        .join(projects, projects.c.id == batches.c.project_id)
        .where(
            table.c.labeler_id == labeler_id,
            table.c.lease_id.is_not(None),
            table.c.supersedes_id.is_(None),
            projects.c.name == project,
            tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
        )
        for table in (comparisons, demonstrations)
    ]
    return sa.union_all(*stretches).subquery("answered")


def _entries(connection: sa.Connection, answered: Sequence[sa.Row[Any]]) -> list[HistoryEntry]:
    lease_ids = [row.lease_id for row in answered]
    compared = connection.execute(
        select_comparisons().where(_is_on_leases(comparisons, lease_ids), ~is_superseded())
    ).all()
    texts = candidates_by_task(connection, {row.task_id for row in compared})
    later = demonstrations.alias("later")
    written = connection.execute(
        sa.select(demonstrations, tasks.c.kind, tasks.c.document)
        .join(tasks, tasks.c.id == demonstrations.c.task_id)
        .where(
            demonstrations.c.lease_id.in_(lease_ids),
            ~sa.exists().where(later.c.supersedes_id == demonstrations.c.id),
        )
    ).all()
    compared_by_lease = {row.lease_id: row for row in compared}
    written_by_lease = {row.lease_id: row for row in written}
    entries: list[HistoryEntry] = []
    for first in answered:
        row = compared_by_lease.get(first.lease_id)
        if row is not None:
            comparison = comparison_of(row, texts[row.task_id])
            is_out = is_exported(connection, row.id, batch=comparison.batch, project=comparison.project)
            kind, text = TaskKind.COMPARE, ""
        else:
            row = written_by_lease[first.lease_id]
            comparison, is_out = None, False
            kind, text = TaskKind(row.kind), row.text
        entries.append(
            HistoryEntry(
                lease_id=first.lease_id,
                kind=kind,
                document=row.document,
                comparison=comparison,
                text=text,
                first_us=first.answer_us,
                answer_us=row.answer_us,
                is_correctable=not is_out,
            )
        )
    return entries


def _is_on_lease(table: sa.Table, lease_id: str, labeler_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_is_on_leases(table, [lease_id]), table.c.labeler_id == labeler_id)


def _is_on_leases(table: sa.Table, lease_ids: Sequence[str]) -> sa.ColumnElement[bool]:
    # By the lease's task: there is an index for that, and there can be a million answers.
    of_task = sa.select(leases.c.task_id).where(leases.c.id.in_(lease_ids))
    return sa.and_(table.c.task_id.in_(of_task), table.c.lease_id.in_(lease_ids))
