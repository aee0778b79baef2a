"""What is known of tasks, leases and answers, and how it changes.

Each public method is one short transaction that blocks its thread; the servicers and the pages call it
through :mod:`services.labeling.threads`. The rules are those of ``tasks``, ``assignment`` and ``answers``;
here is only how they are kept. Inputs are checked by the callers' use of those modules, except for what only
the rows can tell. What a page needs beyond this is in :mod:`services.labeling.site_store`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.answers import AnswerDraft, Comparison, Origin, in_task_order
from services.labeling.assignment import (
    Draws,
    LeasedTask,
    LeaseOrder,
    LeaseRecord,
    Pool,
    check_may_answer,
)
from services.labeling.database import Database, last_number, lock_name, take_numbers
from services.labeling.errors import (
    BatchNotFoundError,
    InvalidFieldError,
    LeaseNotFoundError,
    NotAdmittedError,
    WrongKindError,
)
from services.labeling.export import ExportFilter
from services.labeling.leases import close_leases, give_back, lease_taken, leases_by_id
from services.labeling.leasing import OpenBatch, Worker, take_tasks
from services.labeling.limits import Clock
from services.labeling.project_store import ensure_batch, open_batches, project_named
from services.labeling.projects import BatchSettings, project_settings_from_json
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.rows import (
    candidates_by_task,
    comparison_of,
    comparison_row,
    id_of_batch,
    id_of_project,
    insert_tasks,
    is_superseded,
    select_comparisons,
)
from services.labeling.schema import (
    admissions,
    batches,
    comparisons,
    demonstrations,
    drafts,
    projects,
    settings,
    skips,
    slots,
    tasks,
)
from services.labeling.tasks import ONBOARDING_PURPOSES, TaskDraft, TaskKind

_WANTED_LIFETIME_US = 10_000_000
_EXACT_ANSWERS = 5_000  # batches that want more are counted once in a lifetime, not for every page
# Made once: every answer runs them, and making a statement costs more than running it.
_INSERT_COMPARISONS = sa.insert(comparisons)
_COUNT_OPEN = (
    sa.select(sa.func.count())
    .select_from(slots)
    .join(batches, batches.c.id == slots.c.batch_id)
    .where(
        batches.c.name == sa.bindparam("batch"),
        slots.c.purpose.in_([Pool.ORDINARY.value, Pool.DRIFT.value]),
        slots.c.free_from_us.is_not(None),
    )
)
_DELETE_DRAFTS = sa.delete(drafts).where(drafts.c.lease_id.in_(sa.bindparam("lease_ids", expanding=True)))

_EXPORTED = "exported_through."  # names in ``settings``: the last comparison that an export has sent


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
class SkipDraft:
    """A task that a labeler gives back."""

    lease_id: str
    reason: str


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
        # A page shows it with every item, and a batch may have a million tasks.
        self._answers_wanted: dict[str, tuple[int, int]] = {}  # by batch: when it was read, and what
        self._answers_open: dict[str, tuple[int, int]] = {}

    def submit_tasks(
        self,
        request: RepeatableRequest,
        batch: str,
        drafts: Sequence[TaskDraft],
        *,
        project: str = "",
        batch_settings: BatchSettings | None = None,
    ) -> Submitted:
        """Add tasks that were checked by :func:`services.labeling.tasks.check_submission`.

        ``project`` and ``batch_settings`` are for a batch that is new.
        """

        def work(connection: sa.Connection) -> Submitted:
            known = recall(connection, request)
            if known is not None:
                return Submitted(task_ids=known, repeated=True)
            now_us = self._clock()
            owner = ensure_batch(
                connection, batch, project=project, settings=batch_settings or BatchSettings(), now_us=now_us
            )
            task_ids = take_numbers(connection, "task", len(drafts))
            drafts_by_id = dict(zip(task_ids, drafts, strict=True))
            insert_tasks(connection, owner.batch_id, drafts_by_id, draws=self._draws(), now_us=now_us)
            remember(connection, request, list(task_ids), now_us=now_us)
            return Submitted(task_ids=list(task_ids), repeated=False)

        return self._database.write(work)

    def lease_tasks(
        self,
        order: LeaseOrder,
        *,
        kinds: tuple[TaskKind, ...] = (TaskKind.COMPARE,),
        must_be_admitted: bool = False,
    ) -> list[LeasedTask]:
        """Give a labeler up to ``order.max_tasks`` tasks; fewer when the pool has no more.

        With ``must_be_admitted``, projects whose onboarding the labeler has not passed give nothing, and one
        that is asked for by name raises NotAdmittedError.
        """

        def work(connection: sa.Connection) -> list[LeasedTask]:
            return self.lease_in(connection, order, kinds=kinds, must_be_admitted=must_be_admitted)

        return self._database.write(work)

    def lease_in(
        self,
        connection: sa.Connection,
        order: LeaseOrder,
        *,
        kinds: tuple[TaskKind, ...],
        must_be_admitted: bool,
    ) -> list[LeasedTask]:
        """As :meth:`lease_tasks`, inside a transaction that runs."""
        # Two requests of one labeler would find the same tasks.
        lock_name(connection, "labeler", order.labeler_id)
        now_us = self._clock()
        draws = self._draws()
        worker = Worker(labeler_id=order.labeler_id, kinds=kinds, now_us=now_us)
        leased: list[LeasedTask] = []
        num_chars = 0
        for batch in self._batches_for(connection, order, must_be_admitted=must_be_admitted):
            wanted = order.max_tasks - len(leased)
            if wanted == 0 or num_chars > self._max_text_chars_per_lease_call:
                break
            more = lease_taken(
                connection,
                order.labeler_id,
                take_tasks(connection, worker, batch, wanted=wanted, draws=draws),
                duration_us=order.duration_us,
                draws=draws,
                max_text_chars=self._max_text_chars_per_lease_call - num_chars,
                now_us=now_us,
            )
            num_chars += sum(len(task.document) + sum(map(len, task.candidates)) for task in more)
            leased += more
        return leased

    def submit_answers(
        self,
        request: RepeatableRequest,
        labeler_id: str,
        answers: Sequence[AnswerDraft],
        *,
        origin: Origin = Origin.GRPC,
    ) -> Recorded:
        """Record all or none of answers that :func:`services.labeling.answers.check_answers` has passed."""

        def work(connection: sa.Connection) -> Recorded:
            # Before recall: a repetition that comes while the first still runs waits here and then finds it.
            found = leases_by_id(connection, [answer.lease_id for answer in answers])
            known = recall(connection, request)
            if known is not None:
                return Recorded(comparison_ids=known, repeated=True)
            now_us = self._clock()
            answered: list[tuple[LeaseRecord, AnswerDraft]] = []
            for index, answer in enumerate(answers):
                lease = found.get(answer.lease_id)
                if lease is None:
                    raise LeaseNotFoundError(answer.lease_id)
                check_may_answer(lease, labeler_id=labeler_id, now_us=now_us)
                answered.append((lease, in_task_order(answer, lease.shown_order, field=f"answers[{index}]")))
            check_kinds([lease for lease, _ in answered], (TaskKind.COMPARE,))
            end_leases(connection, [lease for lease, _ in answered])
            # Last, because everybody who answers waits here for those who have taken numbers before.
            ids = take_numbers(connection, "comparison", len(answers))
            connection.execute(
                _INSERT_COMPARISONS,
                [
                    comparison_row(
                        comparison_id, lease, answer, origin=origin, supersedes_id=None, now_us=now_us
                    )
                    for comparison_id, (lease, answer) in zip(ids, answered, strict=True)
                ],
            )
            remember(connection, request, list(ids), now_us=now_us)
            return Recorded(comparison_ids=list(ids), repeated=False)

        return self._database.write(work)

    def skip_tasks(self, request: RepeatableRequest, labeler_id: str, skipped: Sequence[SkipDraft]) -> bool:
        """Give leased tasks back for others, all or none; False when this request had done it before."""

        def work(connection: sa.Connection) -> bool:
            found = leases_by_id(connection, [skip.lease_id for skip in skipped])  # before recall, as above
            if recall(connection, request) is not None:
                return False
            now_us = self._clock()
            for skip in skipped:
                lease = found.get(skip.lease_id)
                if lease is None:
                    raise LeaseNotFoundError(skip.lease_id)
                check_may_answer(lease, labeler_id=labeler_id, now_us=now_us)
            connection.execute(
                sa.insert(skips),
                [{"lease_id": skip.lease_id, "reason": skip.reason, "skip_us": now_us} for skip in skipped],
            )
            give_back(connection, list(found.values()), now_us=now_us)
            _delete_drafts(connection, list(found))
            remember(connection, request, True, now_us=now_us)
            return True

        return self._database.write(work)

    def comparisons_after(
        self, comparison_id: int, *, wanted: ExportFilter, limit: int
    ) -> tuple[list[Comparison], int | None]:
        """The next recorded answers after a cursor, in the order in which they were recorded.

        Gives those that the filter wants among the next ``limit`` ones, and the cursor behind them, None when
        there are no more. A cursor beyond the last recorded answer is another database's and refused, since
        following it would lose answers.
        """

        def work(connection: sa.Connection) -> tuple[list[Comparison], int | None]:
            last = last_number(connection, "comparison")
            if not 0 <= comparison_id <= last:
                raise InvalidFieldError(
                    f"{comparison_id} is not an answer of this database",
                    reason="INVALID_CURSOR",
                    field="after_comparison_id",
                )
            query = (
                select_comparisons()
                .where(comparisons.c.id > comparison_id, *_filter_conditions(wanted))
                .order_by(comparisons.c.id)
                .limit(limit)
            )
            rows = connection.execute(query).all()
            kept = [row for row in rows if wanted.takes_labeler(row.labeler_id)]
            texts = candidates_by_task(connection, {row.task_id for row in kept})
            cursor = rows[-1].id if len(rows) == limit else None
            return [comparison_of(row, texts[row.task_id]) for row in kept], cursor

        return self._database.read(work)

    def note_exported(self, wanted: ExportFilter, comparison_id: int) -> None:
        """Remember that answers up to this one have gone out: from now on they stand as they are."""

        def work(connection: sa.Connection) -> None:
            name = _exported_name(wanted)
            known = connection.execute(
                sa.select(settings.c.value).where(settings.c.name == name).with_for_update()
            ).scalar_one_or_none()
            if known is None:
                connection.execute(sa.insert(settings).values(name=name, value=str(comparison_id)))
            elif int(known) < comparison_id:
                connection.execute(
                    sa.update(settings).where(settings.c.name == name).values(value=str(comparison_id))
                )

        self._database.write(work)

    def answers_open(self, connection: sa.Connection, batch: str, *, wanted: int) -> int:
        """How many of the wanted answers are missing; in a large batch, how many a few seconds ago."""
        now_us = self._clock()
        known = self._answers_open.get(batch)
        is_large = wanted > _EXACT_ANSWERS
        if known is None or not is_large or not 0 <= now_us - known[0] < _WANTED_LIFETIME_US:
            number = connection.execute(_COUNT_OPEN, {"batch": batch}).scalar_one()
            known = self._answers_open[batch] = (now_us, int(number))
        return known[1]

    def answers_wanted(self, connection: sa.Connection, batch: str) -> int:
        """How many answers a batch's tasks ask for by their overlap; new tasks count after some seconds."""
        now_us = self._clock()
        known = self._answers_wanted.get(batch)
        if known is None or not 0 <= now_us - known[0] < _WANTED_LIFETIME_US:
            wanted = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(tasks.c.overlap_count), 0)).where(
                    tasks.c.batch_id == id_of_batch(batch)
                )
            ).scalar_one()
            known = self._answers_wanted[batch] = (now_us, int(wanted))
        return known[1]

    def progress(self, batch: str = "", *, project: str = "") -> Progress:
        """Counts over one batch, one project, or over all for empty names."""

        def work(connection: sa.Connection) -> Progress:
            return progress_of(connection, batch=batch, project=project, now_us=self._clock())

        return self._database.read(work)

    def _batches_for(
        self, connection: sa.Connection, order: LeaseOrder, *, must_be_admitted: bool
    ) -> list[OpenBatch]:
        found = open_batches(connection, project=order.project, batch=order.batch)
        if not must_be_admitted:
            return list(found)
        closed_projects = {
            project_id
            for project_id in {batch.project_id for batch in found if batch.needs_onboarding}
            if not is_admitted(connection, project_id, order.labeler_id)
        }
        admitted = [batch for batch in found if batch.project_id not in closed_projects]
        if found and not admitted and (order.project or order.batch):
            raise NotAdmittedError(order.project or order.batch)
        return admitted

    def _draws(self) -> Draws:
        return Draws(seed=self._database.seed)


def check_kinds(found: Sequence[LeaseRecord], kinds: tuple[TaskKind, ...]) -> None:
    """Refuse an answer of another kind than the task asks for."""
    for lease in found:
        if lease.kind not in kinds:
            raise WrongKindError(lease.lease_id, lease.kind.value)


def end_leases(connection: sa.Connection, answered: Sequence[LeaseRecord]) -> None:
    """Close leases that have their answers, and forget their half-finished ones."""
    close_leases(connection, answered)
    _delete_drafts(connection, [lease.lease_id for lease in answered])


def is_admitted(connection: sa.Connection, project_id: int, labeler_id: str) -> bool:
    """Whether a labeler may work in a project: it asks for no onboarding, or they have passed it."""
    values = connection.execute(
        sa.select(projects.c.settings).where(projects.c.id == project_id)
    ).scalar_one()
    if not project_settings_from_json(values).onboarding.is_needed:
        return True
    last = connection.execute(
        sa.select(admissions.c.state)
        .where(admissions.c.project_id == project_id, admissions.c.labeler_id == labeler_id)
        .order_by(admissions.c.attempt.desc())
        .limit(1)
    ).scalar_one_or_none()
    return last == "admitted"


def is_exported(connection: sa.Connection, comparison_id: int, *, batch: str, project: str) -> bool:
    """Whether an export has sent this answer."""
    names = [
        _exported_name(ExportFilter()),
        _exported_name(ExportFilter(batch=batch)),
        _exported_name(ExportFilter(project=project)),
    ]
    rows = connection.execute(sa.select(settings.c.value).where(settings.c.name.in_(names))).scalars()
    return any(comparison_id <= int(value) for value in rows)


def progress_of(connection: sa.Connection, *, batch: str, project: str, now_us: int) -> Progress:
    """Counts over one batch, one project, or over all for empty names. Corrections do not count."""
    if project:
        project_named(connection, project)
    if batch and connection.execute(sa.select(id_of_batch(batch))).scalar_one() is None and project:
        raise BatchNotFoundError(batch)

    def counted(what: sa.ColumnElement[int], batch_id: sa.ColumnElement[int], *where: Any) -> int:
        query = sa.select(what).where(*where)
        if batch:
            query = query.where(batch_id == id_of_batch(batch))
        elif project:
            query = query.where(
                batch_id.in_(sa.select(batches.c.id).where(batches.c.project_id == id_of_project(project)))
            )
        return int(connection.execute(query).scalar_one())

    number = sa.func.count
    return Progress(
        num_tasks=counted(number(tasks.c.id), tasks.c.batch_id),
        num_slots=counted(number(slots.c.task_id), slots.c.batch_id),
        num_answers=counted(
            number(comparisons.c.id), comparisons.c.batch_id, comparisons.c.supersedes_id.is_(None)
        )
        + counted(
            number(demonstrations.c.id), demonstrations.c.batch_id, demonstrations.c.supersedes_id.is_(None)
        ),
        num_open_leases=counted(number(slots.c.task_id), slots.c.batch_id, slots.c.free_from_us > now_us),
        num_labelers=counted(number(comparisons.c.labeler_id.distinct()), comparisons.c.batch_id),
    )


def _filter_conditions(wanted: ExportFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.batch:
        conditions.append(comparisons.c.batch_id == id_of_batch(wanted.batch))
    if wanted.project:
        conditions.append(batches.c.project_id == id_of_project(wanted.project))
    if not wanted.with_superseded:
        conditions.append(~is_superseded())
    if not wanted.with_onboarding:
        conditions.append(tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES]))
    return conditions


def _exported_name(wanted: ExportFilter) -> str:
    # A batch's name is unique, so it needs no project beside it. The digest keeps the name short enough.
    scope = f"batch.{wanted.batch}" if wanted.batch else f"project.{wanted.project}" if wanted.project else ""
    return _EXPORTED + hashlib.sha256(scope.encode()).hexdigest()[:40]


def _delete_drafts(connection: sa.Connection, lease_ids: list[str]) -> None:
    connection.execute(_DELETE_DRAFTS, {"lease_ids": lease_ids})
