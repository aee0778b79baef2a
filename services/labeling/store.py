"""What is known of tasks, leases and answers, and how it changes.

Each public method is one short transaction that blocks its thread; the servicers call it through
:mod:`services.labeling.threads`. The rules are those of ``tasks``, ``assignment`` and ``answers``; here is
only how they are kept. Inputs are checked by the callers' use of those modules, except for what only the
rows can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.answers import (
    AnswerDraft,
    Comparison,
    Decision,
    decision_in_task_order,
)
from services.labeling.assignment import Draws, LeasedTask, LeaseOrder, LeaseRecord, check_may_answer
from services.labeling.database import Database, last_number, take_numbers
from services.labeling.errors import InvalidFieldError, LeaseNotFoundError
from services.labeling.leasing import close_leases, lease_slots, leases_by_id, take_slots
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.rows import (
    candidates_by_task,
    comparison_of,
    comparison_row,
    id_of_batch,
    insert_tasks,
)
from services.labeling.schema import batches, comparisons, slots, tasks
from services.labeling.tasks import TaskDraft

Clock = Callable[[], int]  # microseconds since 1970 in UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The answer to a submission of tasks."""

    task_ids: list[int]
    repeated: bool  # True when nothing was added


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The answer to a submission of answers."""

    comparison_ids: list[int]
    repeated: bool  # True when nothing was added


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much there is and how much is done."""

    num_tasks: int
    num_slots: int
    num_answers: int
    num_open_leases: int
    num_labelers: int


class LabelingStore:
    """Tasks, leases and answers in a database."""

    def __init__(
        self, database: Database, *, clock: Clock, max_text_chars_per_lease_call: int = 4_000_000
    ) -> None:
        """Keep the parts. ``max_text_chars_per_lease_call`` bounds the answer to one call for work."""
        self._database = database
        self._clock = clock
        self._max_text_chars_per_lease_call = max_text_chars_per_lease_call

    def submit_tasks(self, request: RepeatableRequest, batch: str, drafts: Sequence[TaskDraft]) -> Submitted:
        """Add tasks that were checked by :func:`services.labeling.tasks.check_submission`."""

        def work(connection: sa.Connection) -> Submitted:
            known = recall(connection, request)
            if known is not None:
                return Submitted(task_ids=known, repeated=True)
            now_us = self._clock()
            batch_id = _ensure_batch(connection, batch, now_us=now_us)
            task_ids = take_numbers(connection, "task", len(drafts))
            drafts_by_id = dict(zip(task_ids, drafts, strict=True))
            insert_tasks(connection, batch_id, drafts_by_id, draws=self._draws(), now_us=now_us)
            remember(connection, request, list(task_ids), now_us=now_us)
            return Submitted(task_ids=list(task_ids), repeated=False)

        return self._database.write(work)

    def lease_tasks(self, order: LeaseOrder) -> list[LeasedTask]:
        """Give a labeler up to ``order.max_tasks`` tasks; fewer when the pool has no more."""

        def work(connection: sa.Connection) -> list[LeasedTask]:
            now_us = self._clock()
            draws = self._draws()
            taken = take_slots(connection, order, draws=draws, now_us=now_us)
            return lease_slots(
                connection,
                order,
                taken,
                draws=draws,
                max_text_chars=self._max_text_chars_per_lease_call,
                now_us=now_us,
            )

        return self._database.write(work)

    def submit_answers(
        self, request: RepeatableRequest, labeler_id: str, answers: Sequence[AnswerDraft]
    ) -> Recorded:
        """Record all or none of answers that :func:`services.labeling.answers.check_answers` has passed."""

        def work(connection: sa.Connection) -> Recorded:
            known = recall(connection, request)
            if known is not None:
                return Recorded(comparison_ids=known, repeated=True)
            now_us = self._clock()
            found = leases_by_id(connection, [answer.lease_id for answer in answers])
            decided: list[tuple[LeaseRecord, Decision]] = []
            for index, answer in enumerate(answers):
                lease = found.get(answer.lease_id)
                if lease is None:
                    raise LeaseNotFoundError(answer.lease_id)
                check_may_answer(lease, labeler_id=labeler_id, now_us=now_us)
                decision = decision_in_task_order(
                    answer.decision, lease.shown_order, field=f"answers[{index}]"
                )
                decided.append((lease, decision))
            ids = take_numbers(connection, "comparison", len(answers))
            connection.execute(
                sa.insert(comparisons),
                [
                    comparison_row(comparison_id, lease, answer, decision, now_us=now_us)
                    for comparison_id, answer, (lease, decision) in zip(ids, answers, decided, strict=True)
                ],
            )
            close_leases(connection, [lease for lease, _ in decided])
            remember(connection, request, list(ids), now_us=now_us)
            return Recorded(comparison_ids=list(ids), repeated=False)

        return self._database.write(work)

    def comparisons_after(self, comparison_id: int, *, batch: str, limit: int) -> list[Comparison]:
        """The next recorded answers after a cursor, in the order in which they were recorded.

        A cursor beyond the last recorded answer is another database's and refused, since following it would
        lose answers.
        """

        def work(connection: sa.Connection) -> list[Comparison]:
            if not 0 <= comparison_id <= last_number(connection, "comparison"):
                raise InvalidFieldError(
                    f"{comparison_id} is not an answer of this database",
                    reason="INVALID_CURSOR",
                    field="after_comparison_id",
                )
            query = (
                sa.select(comparisons, tasks.c.document_id, tasks.c.document, batches.c.name.label("batch"))
                .join(tasks, tasks.c.id == comparisons.c.task_id)
                .join(batches, batches.c.id == comparisons.c.batch_id)
                .where(comparisons.c.id > comparison_id)
                .order_by(comparisons.c.id)
                .limit(limit)
            )
            if batch:
                query = query.where(comparisons.c.batch_id == id_of_batch(batch))
            rows = connection.execute(query).all()
            texts = candidates_by_task(connection, {row.task_id for row in rows})
            return [comparison_of(row, texts[row.task_id]) for row in rows]

        return self._database.read(work)

    def progress(self, batch: str) -> Progress:
        """Counts over one batch, or over all for an empty name."""

        def work(connection: sa.Connection) -> Progress:
            def counted(what: sa.ColumnElement[int], batch_id: sa.ColumnElement[int], *where: Any) -> int:
                query = sa.select(what).where(*where)
                if batch:
                    query = query.where(batch_id == id_of_batch(batch))
                return int(connection.execute(query).scalar_one())

            number = sa.func.count
            return Progress(
                num_tasks=counted(number(tasks.c.id), tasks.c.batch_id),
                num_slots=counted(number(slots.c.task_id), slots.c.batch_id),
                num_answers=counted(number(comparisons.c.id), comparisons.c.batch_id),
                num_open_leases=counted(
                    number(slots.c.task_id), slots.c.batch_id, slots.c.free_from_us > self._clock()
                ),
                num_labelers=counted(number(comparisons.c.labeler_id.distinct()), comparisons.c.batch_id),
            )

        return self._database.read(work)

    def _draws(self) -> Draws:
        return Draws(seed=self._database.seed)


def _ensure_batch(connection: sa.Connection, name: str, *, now_us: int) -> int:
    found = connection.execute(sa.select(batches.c.id).where(batches.c.name == name)).scalar_one_or_none()
    if found is not None:
        return int(found)
    (batch_id,) = take_numbers(connection, "batch", 1)
    connection.execute(sa.insert(batches).values(id=batch_id, name=name, create_us=now_us))
    return batch_id
