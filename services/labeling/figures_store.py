"""Where the figures that a monitor watches come from: the newest rows, never a whole table.

Ids of answers are numbers without gaps in the order of commits, so the newest ones are found by their ids.
Imported answers are nobody's work here and do not count; after a large import there is nothing to say until
enough answers have been given.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.assignment import Pool
from services.labeling.database import Database, last_number
from services.labeling.limits import Clock
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality_store import judged_answers
from services.labeling.schema import batches, comparisons, demonstrations, slots, tasks

KNOWN_SPAN = 20_000  # known items are sought among so many of the newest answers
MAX_KNOWN = 2_000  # and so many of their answers are taken
MAX_WAITING_SLOTS = 100_000
_MAX_ACTIVE_ANSWERS = 10_000  # looked at for who is at work
_OWN_POOLS = (Pool.ORDINARY.value, Pool.DRIFT.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much there is to do and how many do it."""

    num_waiting_tasks: int  # a labeler could have them now
    num_active_labelers: int


class FiguresStore:
    """Reads what the figures are made of. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def newest_answers(self, limit: int) -> list[JudgedAnswer]:
        """Those that stand among the ``limit`` newest answers of all projects, oldest first."""

        def work(connection: sa.Connection) -> list[JudgedAnswer]:
            return _answers_after(connection, last_number(connection, "comparison") - limit)

        return self._database.read(work)

    def newest_known_answers(self) -> list[JudgedAnswer]:
        """Answers to items whose right answer is known, among the newest answers, oldest first."""

        def work(connection: sa.Connection) -> list[JudgedAnswer]:
            is_known = tasks.c.purpose == Purpose.GOLD.value
            after = last_number(connection, "comparison") - KNOWN_SPAN
            first_left_out = connection.execute(
                sa.select(comparisons.c.id)
                .join(tasks, tasks.c.id == comparisons.c.task_id)
                .where(comparisons.c.id > after, is_known)
                .order_by(comparisons.c.id.desc())
                .offset(MAX_KNOWN)
                .limit(1)
            ).scalar_one_or_none()
            return _answers_after(connection, first_left_out or after, is_known)

        return self._database.read(work)

    def workload(self, *, active_us: int) -> Workload:
        """Tasks that wait, and people who answered within the last ``active_us`` microseconds.

        Of more than MAX_WAITING_SLOTS free places only so many are counted.
        """

        def work(connection: sa.Connection) -> Workload:
            now_us = self._clock()
            is_open = sa.select(batches.c.id).where(batches.c.is_closed.is_(sa.false()))
            free = (
                sa.select(slots.c.task_id)
                .where(
                    slots.c.batch_id.in_(is_open),
                    slots.c.purpose.in_(_OWN_POOLS),
                    slots.c.free_from_us.is_not(None),
                    slots.c.free_from_us <= now_us,
                )
                .limit(MAX_WAITING_SLOTS)
                .subquery()
            )
            tasks = sa.func.count(sa.distinct(free.c.task_id))
            num_waiting = connection.execute(sa.select(tasks)).scalar_one()
            active: set[str] = set()
            for table, counter in ((comparisons, "comparison"), (demonstrations, "demonstration")):
                # Not distinct in SQL: SQLite would look through the index of everybody's answers for it.
                query = sa.select(table.c.labeler_id).where(
                    table.c.id > last_number(connection, counter) - _MAX_ACTIVE_ANSWERS,
                    table.c.answer_us >= now_us - active_us,
                    table.c.lease_id.is_not(None),
                )
                active.update(connection.execute(query).scalars())
            return Workload(num_waiting_tasks=int(num_waiting), num_active_labelers=len(active))

        return self._database.read(work)


def _answers_after(
    connection: sa.Connection, comparison_id: int, *conditions: sa.ColumnElement[bool]
) -> list[JudgedAnswer]:
    answered = sa.select(comparisons.c.task_id).where(comparisons.c.id > comparison_id)
    return judged_answers(
        connection,
        sa.and_(tasks.c.id.in_(answered), *conditions),
        comparisons.c.id > comparison_id,
        comparisons.c.lease_id.is_not(None),
    )
