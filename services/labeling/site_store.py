"""What a labeler's pages need: the next item, half-finished answers, corrections, texts that people write.

Over the same tables and rules as :mod:`services.labeling.store`; each public method is one short transaction
that blocks its thread. Whatever belongs to another labeler is not found here.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.answers import AnswerDraft, Comparison, Origin, in_task_order
from services.labeling.assignment import Draws, LeaseOrder, LeaseRecord, check_may_answer
from services.labeling.database import Database, take_numbers
from services.labeling.errors import (
    AnswerExportedError,
    AnswerNotFoundError,
    AnswerSupersededError,
    LeaseExpiredError,
    LeaseNotFoundError,
)
from services.labeling.leases import Taken, lease_taken, leases_by_id
from services.labeling.limits import Clock
from services.labeling.project_store import project_named
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.rows import (
    Row,
    candidates_by_task,
    comparison_of,
    comparison_row,
    is_superseded,
    select_comparisons,
    tiers_from_json,
)
from services.labeling.schema import (
    batches,
    comparisons,
    drafts,
    leases,
    projects,
    slots,
    tasks,
)
from services.labeling.store import LabelingStore, is_exported
from services.labeling.tasks import ONBOARDING_PURPOSES, TaskKind, Tiers

SITE_KINDS = (TaskKind.COMPARE, TaskKind.WRITE, TaskKind.EDIT)

# Made once: every page of an item runs them, and making a statement costs more than running it.
_FIND_OPEN_LEASE = (
    sa.select(leases.c.id)
    .join(tasks, tasks.c.id == leases.c.task_id)
    .join(batches, batches.c.id == tasks.c.batch_id)
    .join(projects, projects.c.id == batches.c.project_id)
    .join(slots, sa.and_(slots.c.task_id == leases.c.task_id, slots.c.number == leases.c.slot_number))
    .where(
        leases.c.labeler_id == sa.bindparam("labeler_id"),
        ~leases.c.is_answered,
        ~leases.c.is_skipped,
        leases.c.expire_us > sa.bindparam("now_us"),
        slots.c.lease_id == leases.c.id,
        projects.c.name == sa.bindparam("project"),
        tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
    )
    .order_by(leases.c.lease_us, leases.c.id)
    .limit(1)
)
_FIND_ITEM = (
    sa.select(
        leases,
        tasks.c.document,
        tasks.c.kind,
        tasks.c.purpose,
        batches.c.name.label("batch"),
        projects.c.name.label("project"),
        drafts.c.content,
        drafts.c.revision,
    )
    .join(tasks, tasks.c.id == leases.c.task_id)
    .join(batches, batches.c.id == tasks.c.batch_id)
    .join(projects, projects.c.id == batches.c.project_id)
    .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
    .where(leases.c.id == sa.bindparam("lease_id"), leases.c.labeler_id == sa.bindparam("labeler_id"))
)
_COUNT_OWN = (
    sa.select(sa.func.count())
    .select_from(leases)
    .join(tasks, tasks.c.id == leases.c.task_id)
    .join(batches, batches.c.id == tasks.c.batch_id)
    .where(
        leases.c.labeler_id == sa.bindparam("labeler_id"),
        leases.c.is_answered,
        batches.c.name == sa.bindparam("batch"),
        tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A half-finished answer as the page wrote it."""

    content: Row
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A leased task as its labeler sees it."""

    lease_id: str
    task_id: int  # for the program; never for the page
    project: str
    batch: str
    kind: TaskKind
    purpose: Purpose
    document: str
    candidates: tuple[str, ...]  # in the labeler's order; empty where a text is to be written
    shown_order: tuple[int, ...]
    lease_us: int
    expire_us: int
    is_answered: bool
    is_skipped: bool
    draft: Draft | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemProgress:
    """What stands beside an item."""

    num_own_answers: int  # of this labeler in the batch
    num_answers: int  # of all labelers in the batch
    num_slots: int  # answers wanted in the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The right answer to an item, in the labeler's order, and why."""

    tiers: Tiers
    explanation: str


class SiteStore:
    """A labeler's view of a database."""

    def __init__(self, database: Database, store: LabelingStore, *, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._clock = clock

    def next_item(self, labeler_id: str, *, project: str, duration_us: int) -> Item | None:
        """The item that the labeler has open in the project, else a new one; None when nothing is left.

        An open item's lease runs anew. Raises NotAdmittedError and ProjectNotFoundError.
        """

        def work(connection: sa.Connection) -> Item | None:
            project_named(connection, project)
            now_us = self._clock()
            open_lease = connection.execute(
                _FIND_OPEN_LEASE, {"labeler_id": labeler_id, "project": project, "now_us": now_us}
            ).scalar_one_or_none()
            if open_lease is not None:
                _prolong(connection, open_lease, expire_us=now_us + duration_us)
                return _item(connection, open_lease, labeler_id)
            order = LeaseOrder(
                labeler_id=labeler_id, batch="", project=project, max_tasks=1, duration_us=duration_us
            )
            leased = self._store.lease_in(connection, order, kinds=SITE_KINDS, must_be_admitted=True)
            return _item(connection, leased[0].lease_id, labeler_id) if leased else None

        return self._database.write(work)

    def item(self, lease_id: str, labeler_id: str) -> Item:
        """An item of this labeler's. Raises LeaseNotFoundError, also for another labeler's."""
        return self._database.read(lambda connection: _item(connection, lease_id, labeler_id))

    def lease_for_onboarding(self, labeler_id: str, task_id: int, *, attempt: int, duration_us: int) -> Item:
        """The labeler's lease of a training or screening item in this attempt, made or running anew."""

        def work(connection: sa.Connection) -> Item:
            now_us = self._clock()
            found = connection.execute(
                sa.select(leases.c.id, leases.c.slot_number, tasks.c.purpose)
                .select_from(tasks)
                .outerjoin(
                    leases,
                    sa.and_(
                        leases.c.task_id == tasks.c.id,
                        leases.c.labeler_id == labeler_id,
                        leases.c.round == attempt - 1,
                    ),
                )
                .where(tasks.c.id == task_id)
                .with_for_update(of=tasks)
            ).one()
            if found.id is not None:
                _prolong(connection, found.id, expire_us=now_us + duration_us)
                return _item(connection, found.id, labeler_id)
            (leased,) = lease_taken(
                connection,
                labeler_id,
                [Taken(task_id=task_id, pool=found.purpose, round=attempt - 1)],
                duration_us=duration_us,
                draws=Draws(seed=self._database.seed),
                max_text_chars=0,
                now_us=now_us,
            )
            return _item(connection, leased.lease_id, labeler_id)

        return self._database.write(work)

    def item_progress(self, item: Item, labeler_id: str) -> ItemProgress:
        """How far the labeler and the batch are."""

        def work(connection: sa.Connection) -> ItemProgress:
            num_slots = self._store.answers_wanted(connection, item.batch)
            num_open = self._store.answers_open(connection, item.batch, wanted=num_slots)
            own = connection.execute(_COUNT_OWN, {"labeler_id": labeler_id, "batch": item.batch}).scalar_one()
            return ItemProgress(
                num_own_answers=int(own), num_answers=num_slots - num_open, num_slots=num_slots
            )

        return self._database.read(work)

    def save_draft(self, lease_id: str, labeler_id: str, draft: Draft) -> bool:
        """Keep a half-finished answer; False for one that is older than what is kept.

        Raises LeaseNotFoundError, LeaseAlreadyAnsweredError and LeaseExpiredError.
        """

        def work(connection: sa.Connection) -> bool:
            lease = leases_by_id(connection, [lease_id]).get(lease_id)
            if lease is None or lease.labeler_id != labeler_id:
                raise LeaseNotFoundError(lease_id)
            now_us = self._clock()
            check_may_answer(lease, labeler_id=labeler_id, now_us=now_us)
            known = connection.execute(
                sa.select(drafts.c.revision).where(drafts.c.lease_id == lease_id)
            ).scalar_one_or_none()
            values = {"content": draft.content, "revision": draft.revision, "update_us": now_us}
            if known is None:
                connection.execute(sa.insert(drafts).values(lease_id=lease_id, **values))
            elif known <= draft.revision:
                connection.execute(sa.update(drafts).where(drafts.c.lease_id == lease_id).values(**values))
            else:
                return False
            return True

        return self._database.write(work)

    def expectation(self, item: Item) -> Expectation | None:
        """The right answer to an item, None where it is not known."""

        def work(connection: sa.Connection) -> Expectation | None:
            row = connection.execute(
                sa.select(tasks.c.expected, tasks.c.explanation).where(tasks.c.id == item.task_id)
            ).one()
            if row.expected is None:
                return None
            place = {position: index for index, position in enumerate(item.shown_order)}
            return Expectation(
                tiers=tuple(
                    tuple(sorted(place[position] for position in tier))
                    for tier in tiers_from_json(row.expected)
                ),
                explanation=row.explanation,
            )

        return self._database.read(work)

    def correct(
        self, request: RepeatableRequest, labeler_id: str, comparison_id: int, answer: AnswerDraft
    ) -> int:
        """Record a new answer in place of an earlier one of this labeler's; both are kept.

        ``answer`` speaks of places on the labeler's screen; its lease_id is not read. Raises
        AnswerNotFoundError (also for training and screening items, whose answers stand),
        AnswerSupersededError and AnswerExportedError.
        """

        def work(connection: sa.Connection) -> int:
            known = recall(connection, request)
            if known is not None:
                return int(known)
            earlier = _own_answer(connection, comparison_id, labeler_id, for_update=True)
            if is_exported(connection, comparison_id, batch=earlier.batch, project=earlier.project):
                raise AnswerExportedError(comparison_id)
            now_us = self._clock()
            decided = in_task_order(answer, earlier.shown_order, field="answer")
            (new_id,) = take_numbers(connection, "comparison", 1)
            connection.execute(
                sa.insert(comparisons).values(
                    comparison_row(
                        new_id,
                        _lease_of(connection, earlier.task_id, labeler_id, earlier.round),
                        decided,
                        origin=Origin.SITE,
                        supersedes_id=comparison_id,
                        now_us=now_us,
                    )
                )
            )
            remember(connection, request, new_id, now_us=now_us)
            return new_id

        return self._database.write(work)

    def own_answer(self, comparison_id: int, labeler_id: str) -> Comparison:
        """An answer of this labeler's that stands. Raises AnswerNotFoundError or AnswerSupersededError."""
        return self._database.read(
            lambda connection: _own_answer(connection, comparison_id, labeler_id, for_update=False)
        )

    def own_answers(
        self, labeler_id: str, *, project: str, before_id: int | None = None, limit: int = 50
    ) -> list[Comparison]:
        """The labeler's answers that stand, newest first; onboarding is left out."""

        def work(connection: sa.Connection) -> list[Comparison]:
            query = (
                select_comparisons()
                .where(
                    comparisons.c.labeler_id == labeler_id,
                    comparisons.c.lease_id.is_not(None),
                    projects.c.name == project,
                    tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
                    ~is_superseded(),
                )
                .order_by(comparisons.c.id.desc())
                .limit(limit)
            )
            if before_id is not None:
                query = query.where(comparisons.c.id < before_id)
            rows = connection.execute(query).all()
            texts = candidates_by_task(connection, {row.task_id for row in rows})
            return [comparison_of(row, texts[row.task_id]) for row in rows]

        return self._database.read(work)

    def is_correctable(self, answer: Comparison) -> bool:
        """Whether an answer has not been exported yet."""
        return not self._database.read(
            lambda connection: is_exported(
                connection, answer.comparison_id, batch=answer.batch, project=answer.project
            )
        )


def _item(connection: sa.Connection, lease_id: str, labeler_id: str) -> Item:
    row = connection.execute(_FIND_ITEM, {"lease_id": lease_id, "labeler_id": labeler_id}).one_or_none()
    if row is None:
        raise LeaseNotFoundError(lease_id)
    kind = TaskKind(row.kind)
    texts = candidates_by_task(connection, {row.task_id})[row.task_id]
    return Item(
        lease_id=row.id,
        task_id=row.task_id,
        project=row.project,
        batch=row.batch,
        kind=kind,
        purpose=Purpose(row.purpose),
        document=row.document,
        candidates=tuple(texts[position].text for position in row.shown_order),
        shown_order=tuple(row.shown_order),
        lease_us=row.lease_us,
        expire_us=row.expire_us,
        is_answered=row.is_answered,
        is_skipped=row.is_skipped,
        draft=None if row.content is None else Draft(content=row.content, revision=row.revision),
    )


def _prolong(connection: sa.Connection, lease_id: str, *, expire_us: int) -> None:
    """Let a lease that has its slot run until then."""
    connection.execute(sa.update(leases).where(leases.c.id == lease_id).values(expire_us=expire_us))
    connection.execute(
        sa.update(slots)
        .where(slots.c.lease_id == lease_id, slots.c.free_from_us.is_not(None))
        .values(free_from_us=expire_us)
    )


def _lease_of(connection: sa.Connection, task_id: int, labeler_id: str, number: int) -> LeaseRecord:
    lease_id = connection.execute(
        sa.select(leases.c.id).where(
            leases.c.task_id == task_id, leases.c.labeler_id == labeler_id, leases.c.round == number
        )
    ).scalar_one_or_none()
    if lease_id is None:
        raise LeaseExpiredError("")
    return leases_by_id(connection, [lease_id])[lease_id]


def _own_answer(
    connection: sa.Connection, comparison_id: int, labeler_id: str, *, for_update: bool
) -> Comparison:
    query = select_comparisons().where(
        comparisons.c.id == comparison_id,
        comparisons.c.labeler_id == labeler_id,
        comparisons.c.lease_id.is_not(None),
        tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]),
    )
    if for_update:
        query = query.with_for_update(of=comparisons)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise AnswerNotFoundError(comparison_id)
    if row.is_superseded:
        raise AnswerSupersededError(comparison_id)
    return comparison_of(row, candidates_by_task(connection, {row.task_id})[row.task_id])
