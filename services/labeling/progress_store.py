"""How far projects, batches and people are, counted so that a page may ask every few seconds.

Answers wanted are the slots of tasks with an overlap of their own; how many of them are given follows from
those still open, which have a small index. Items that everybody answers (calibration, gold, onboarding),
repeats and imported answers are counted beside them, since nobody knows beforehand how many there will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.assignment import Pool
from services.labeling.database import Database
from services.labeling.limits import Clock
from services.labeling.project_store import project_named
from services.labeling.schema import batches, comparisons, demonstrations, projects, skips, slots, tasks
from services.labeling.schema import leases as lease_table

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
_NEWEST_ANSWERS = 500  # that many suffice to say how fast answers come
_OWN_POOLS = (Pool.ORDINARY.value, Pool.DRIFT.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is."""

    batch: str
    num_tasks: int
    num_wanted: int  # answers that its tasks ask for by their overlap
    num_given: int  # of these
    num_leased: int  # somebody works on it now
    num_answers: int  # all that stand in the batch: also shared items, repeats, imports and written texts
    answers_per_hour: float  # in the last hour, given here

    @property
    def hours_left(self) -> float | None:
        """Until all wanted answers are given, at the last hour's speed; None when nobody works."""
        left = self.num_wanted - self.num_given
        if left == 0:
            return 0.0
        return left / self.answers_per_hour if self.answers_per_hour > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectProgress:
    """The batches of a project together."""

    num_batches: int
    num_tasks: int
    num_wanted: int
    num_given: int
    num_leased: int
    num_answers: int
    answers_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerProgress:
    """What one person did in a project."""

    labeler_id: str
    num_answers: int  # corrections do not count
    num_last_day: int
    num_skips: int
    first_us: int
    last_us: int


class ProgressStore:
    """Counts in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def batches(self, project: str) -> list[BatchProgress]:
        """The batches of a project, oldest first. Raises ProjectNotFoundError."""

        def work(connection: sa.Connection) -> list[BatchProgress]:
            owner = project_named(connection, project)
            found = connection.execute(
                sa.select(batches.c.id, batches.c.name)
                .where(batches.c.project_id == owner.project_id)
                .order_by(batches.c.id)
            ).all()
            return _progress(connection, {row.id: row.name for row in found}, now_us=self._clock())

        return self._database.read(work)

    def projects(self) -> dict[str, ProjectProgress]:
        """All projects by their name."""

        def work(connection: sa.Connection) -> dict[str, ProjectProgress]:
            rows = connection.execute(
                sa.select(batches.c.id, batches.c.name, projects.c.name.label("project"))
                .select_from(projects)
                .outerjoin(batches, batches.c.project_id == projects.c.id)
                .order_by(batches.c.id)
            ).all()
            names = {row.id: row.name for row in rows if row.id is not None}
            by_batch = {one.batch: one for one in _progress(connection, names, now_us=self._clock())}
            owned: dict[str, list[BatchProgress]] = {row.project: [] for row in rows}
            for row in rows:
                if row.id is not None:
                    owned[row.project].append(by_batch[row.name])
            return {name: together(own) for name, own in owned.items()}

        return self._database.read(work)

    def labelers(self, project: str, *, batch: str = "") -> list[LabelerProgress]:
        """Everybody who answered or skipped something, the busiest first; in one batch if it is named."""

        def work(connection: sa.Connection) -> list[LabelerProgress]:
            owner = project_named(connection, project)
            of_batches = (
                batches.c.project_id == owner.project_id
                if not batch
                else sa.and_(batches.c.project_id == owner.project_id, batches.c.name == batch)
            )
            since_us = self._clock() - DAY_US
            found: dict[str, LabelerProgress] = {}
            for table in (comparisons, demonstrations):
                query = (
                    sa.select(
                        table.c.labeler_id,
                        sa.func.count().label("answers"),
                        sa.func.sum(sa.case((table.c.answer_us >= since_us, 1), else_=0)).label("day"),
                        sa.func.min(table.c.answer_us).label("first_us"),
                        sa.func.max(table.c.answer_us).label("last_us"),
                    )
                    .join(batches, batches.c.id == table.c.batch_id)
                    .where(of_batches, table.c.supersedes_id.is_(None))
                    .group_by(table.c.labeler_id)
                )
                for row in connection.execute(query):
                    more = LabelerProgress(
                        labeler_id=row.labeler_id,
                        num_answers=row.answers,
                        num_last_day=int(row.day),
                        num_skips=0,
                        first_us=row.first_us,
                        last_us=row.last_us,
                    )
                    known = found.get(row.labeler_id)
                    found[row.labeler_id] = more if known is None else _sum(known, more)
            for labeler_id, number, last_us in _skips_by_labeler(connection, of_batches):
                more = LabelerProgress(
                    labeler_id=labeler_id,
                    num_answers=0,
                    num_last_day=0,
                    num_skips=number,
                    first_us=last_us,
                    last_us=last_us,
                )
                known = found.get(labeler_id)
                found[labeler_id] = more if known is None else _sum(known, more)
            return sorted(found.values(), key=lambda one: (-one.num_answers, one.labeler_id))

        return self._database.read(work)


def together(parts: Sequence[BatchProgress]) -> ProjectProgress:
    """The sums over batches."""
    return ProjectProgress(
        num_batches=len(parts),
        num_tasks=sum(one.num_tasks for one in parts),
        num_wanted=sum(one.num_wanted for one in parts),
        num_given=sum(one.num_given for one in parts),
        num_leased=sum(one.num_leased for one in parts),
        num_answers=sum(one.num_answers for one in parts),
        answers_per_hour=sum(one.answers_per_hour for one in parts),
    )


def _progress(connection: sa.Connection, names: dict[int, str], *, now_us: int) -> list[BatchProgress]:
    ids = sorted(names)
    asked = {
        row.batch_id: row
        for row in connection.execute(
            sa.select(
                tasks.c.batch_id,
                sa.func.count().label("tasks"),
                sa.func.sum(tasks.c.overlap_count).label("wanted"),
            )
            .where(tasks.c.batch_id.in_(ids))
            .group_by(tasks.c.batch_id)
        )
    }
    is_own = slots.c.purpose.in_(_OWN_POOLS)
    is_leased = slots.c.free_from_us > now_us
    unanswered = {
        row.batch_id: row
        for row in connection.execute(
            sa.select(
                slots.c.batch_id,
                sa.func.sum(sa.case((is_own, 1), else_=0)).label("own"),
                sa.func.sum(sa.case((is_leased, 1), else_=0)).label("leased"),
            )
            .where(slots.c.batch_id.in_(ids), slots.c.free_from_us.is_not(None))
            .group_by(slots.c.batch_id)
        )
    }
    answers: dict[int, int] = dict.fromkeys(ids, 0)
    for table in (comparisons, demonstrations):
        query = (
            sa.select(table.c.batch_id, sa.func.count().label("number"))
            .where(table.c.batch_id.in_(ids), table.c.supersedes_id.is_(None))
            .group_by(table.c.batch_id)
        )
        for row in connection.execute(query):
            answers[row.batch_id] += row.number
    found = []
    for batch_id in ids:
        wanted = int(asked[batch_id].wanted) if batch_id in asked else 0
        still_open = unanswered.get(batch_id)
        found.append(
            BatchProgress(
                batch=names[batch_id],
                num_tasks=asked[batch_id].tasks if batch_id in asked else 0,
                num_wanted=wanted,
                num_given=wanted - (int(still_open.own) if still_open else 0),
                num_leased=int(still_open.leased) if still_open else 0,
                num_answers=answers[batch_id],
                answers_per_hour=_answers_per_hour(connection, batch_id, now_us=now_us),
            )
        )
    return found


def _answers_per_hour(connection: sa.Connection, batch_id: int, *, now_us: int) -> float:
    """Answers given here in the last hour; where these are many, at the speed of the newest ones."""
    total = 0.0
    for table in (comparisons, demonstrations):
        newest = (
            sa.select(table.c.answer_us)
            .where(
                table.c.batch_id == batch_id, table.c.supersedes_id.is_(None), table.c.lease_id.is_not(None)
            )
            .order_by(table.c.id.desc())
            .limit(_NEWEST_ANSWERS)
        )
        moments = [moment for moment in connection.execute(newest).scalars() if moment > now_us - HOUR_US]
        if len(moments) < _NEWEST_ANSWERS:
            total += len(moments)
        else:
            total += len(moments) * HOUR_US / max(now_us - min(moments), 1)
    return total


def _skips_by_labeler(
    connection: sa.Connection, of_batches: sa.ColumnElement[bool]
) -> list[tuple[str, int, int]]:
    query = (
        sa.select(
            lease_table.c.labeler_id,
            sa.func.count().label("number"),
            sa.func.max(skips.c.skip_us).label("last_us"),
        )
        .join(lease_table, lease_table.c.id == skips.c.lease_id)
        .join(tasks, tasks.c.id == lease_table.c.task_id)
        .join(batches, batches.c.id == tasks.c.batch_id)
        .where(of_batches)
        .group_by(lease_table.c.labeler_id)
    )
    return [(row.labeler_id, row.number, row.last_us) for row in connection.execute(query)]


def _sum(one: LabelerProgress, other: LabelerProgress) -> LabelerProgress:
    return LabelerProgress(
        labeler_id=one.labeler_id,
        num_answers=one.num_answers + other.num_answers,
        num_last_day=one.num_last_day + other.num_last_day,
        num_skips=one.num_skips + other.num_skips,
        first_us=min(one.first_us, other.first_us),
        last_us=max(one.last_us, other.last_us),
    )
