"""How a labeler's next tasks are found, leased and closed.

The stores call these inside their transactions. Which tasks a labeler may have, in which order and from which
pool is the rule of :mod:`services.labeling.assignment`, said here in SQL because the pools are too large to
read.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.assignment import Draws, LeasedTask, LeaseRecord, Pool
from services.labeling.projects import BatchMode, BatchSettings
from services.labeling.rows import Row, candidates_by_task, is_one_of
from services.labeling.schema import batches, comparisons, leases, slots, tasks
from services.labeling.tasks import TaskKind

# A labeler is asked again about what they answered at least so many items ago.
REPEAT_DISTANCE_ITEMS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatch:
    """A batch that gives out work."""

    batch_id: int
    project_id: int
    settings: BatchSettings
    needs_onboarding: bool  # before its project's first item


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who asks for work, and for what."""

    labeler_id: str
    kinds: tuple[TaskKind, ...]
    now_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A task that is about to be leased."""

    task_id: int
    pool: str  # of its slot: a Pool's value, or the purpose of an onboarding item
    slot_number: int | None = None  # None: a slot is made
    round: int = 0


def take_tasks(
    connection: sa.Connection, worker: Worker, batch: OpenBatch, *, wanted: int, draws: Draws
) -> list[Taken]:
    """The next tasks of a batch for this labeler, each from the pool that its turn asks for.

    Calibration, gold and repeats come only as long as the batch has work of its own for them. Rows that are
    taken are locked; whoever takes no more than some of them leaves the rest to others.
    """
    wanted = min(wanted, _answers_left(connection, worker, batch))
    if wanted <= 0:
        return []
    ordinary = take_slots(connection, worker, batch, Pool.ORDINARY, wanted=wanted, draws=draws)
    has_enough = len(ordinary) == wanted
    drift: list[Taken] = []
    if not has_enough:
        drift = take_slots(connection, worker, batch, Pool.DRIFT, wanted=wanted, draws=draws)
    if not ordinary and not drift:
        return take_shared(
            connection, worker, batch, Pool.CALIBRATION, wanted=wanted, draws=draws, of_this_batch=True
        )
    if not batch.settings.has_shares:
        return (ordinary + drift)[:wanted]
    first_item = connection.execute(
        sa.select(sa.func.count()).where(leases.c.labeler_id == worker.labeler_id)
    ).scalar_one()
    plan = draws.pools(worker.labeler_id, first_item, wanted, batch.settings)
    asked = Counter(plan)
    if has_enough and asked[Pool.DRIFT]:
        drift = take_slots(connection, worker, batch, Pool.DRIFT, wanted=asked[Pool.DRIFT], draws=draws)
    by_pool: dict[Pool, list[Taken]] = {Pool.ORDINARY: ordinary, Pool.DRIFT: drift}
    for pool in (Pool.CALIBRATION, Pool.GOLD):
        by_pool[pool] = take_shared(connection, worker, batch, pool, wanted=asked[pool], draws=draws)
    by_pool[Pool.REPEAT] = take_repeats(connection, worker, batch, wanted=asked[Pool.REPEAT])
    chosen: list[Taken] = []
    for pool in plan:
        # A pool that is empty gives its turn to ordinary work.
        source = next((by_pool[one] for one in (pool, Pool.ORDINARY, Pool.DRIFT) if by_pool[one]), None)
        if source:
            chosen.append(source.pop(0))
    return chosen


def take_slots(
    connection: sa.Connection, worker: Worker, batch: OpenBatch, pool: Pool, *, wanted: int, draws: Draws
) -> list[Taken]:
    """Lock a free slot of each of the next tasks of a batch's pool, at most ``wanted``."""
    if wanted == 1:
        first = _take_first_slot(connection, worker, batch, pool, draws=draws)
        if first is not None:
            return [first]
    taken: dict[int, Taken] = {}
    passed_over: set[int] = set()
    # A slot that somebody else holds at this moment is passed over. Only when there is nothing else is it
    # waited for, because they may yet leave it.
    for waits in (False, True):
        while len(taken) < wanted:
            found = _free_slots(
                connection,
                worker,
                batch,
                pool,
                wanted=wanted - len(taken),
                draws=draws,
                without=set(taken) | passed_over,
            )
            if not found:
                break
            locked = connection.execute(
                sa.select(slots.c.task_id)
                .where(
                    sa.tuple_(slots.c.task_id, slots.c.number).in_(list(found.items())),
                    slots.c.free_from_us <= worker.now_us,
                )
                .with_for_update(skip_locked=not waits)
            )
            ours = set(locked.scalars())
            passed_over |= set(found) - ours
            taken.update(
                {
                    task_id: Taken(task_id=task_id, pool=pool.value, slot_number=number)
                    for task_id, number in found.items()
                    if task_id in ours
                }
            )
        if taken or not passed_over:
            break
        passed_over = set()
    return list(taken.values())


def _take_first_slot(
    connection: sa.Connection, worker: Worker, batch: OpenBatch, pool: Pool, *, draws: Draws
) -> Taken | None:
    """Find and lock the next free slot in one step, past slots that others hold at this moment."""
    found = sa.select(slots.c.task_id, slots.c.number).join(tasks, tasks.c.id == slots.c.task_id)
    found = found.where(*_is_free_for(worker, batch, pool)).limit(1)
    found = found.with_for_update(of=slots, skip_locked=True)
    for stretch, order in _way_through(worker, batch, draws=draws):
        row = connection.execute(found.where(*stretch).order_by(*order, slots.c.number)).one_or_none()
        if row is not None:
            return Taken(task_id=row.task_id, pool=pool.value, slot_number=row.number)
    return None


def _free_slots(
    connection: sa.Connection,
    worker: Worker,
    batch: OpenBatch,
    pool: Pool,
    *,
    wanted: int,
    draws: Draws,
    without: set[int],
) -> dict[int, int]:
    """The lowest free slot of each of the next tasks: task id -> slot number, in order."""
    query = (
        sa.select(slots.c.task_id, sa.func.min(slots.c.number).label("number"))
        .join(tasks, tasks.c.id == slots.c.task_id)
        .where(*_is_free_for(worker, batch, pool))
        .group_by(slots.c.place, slots.c.task_id)
    )
    if without:
        query = query.where(slots.c.task_id.not_in(sorted(without)))
    found: dict[int, int] = {}
    for stretch, order in _way_through(worker, batch, draws=draws):
        if len(found) < wanted:
            rows = connection.execute(query.where(*stretch).order_by(*order).limit(wanted - len(found)))
            found.update({row.task_id: row.number for row in rows})
    return found


def _is_free_for(worker: Worker, batch: OpenBatch, pool: Pool) -> list[sa.ColumnElement[bool]]:
    """Whether a slot of the batch's pool may be leased to the labeler."""
    return [
        slots.c.batch_id == batch.batch_id,
        slots.c.purpose == pool.value,
        slots.c.free_from_us <= worker.now_us,
        tasks.c.kind.in_([kind.value for kind in worker.kinds]),
        ~_had_by(worker, slots.c.task_id),
    ]


def _way_through(
    worker: Worker, batch: OpenBatch, *, draws: Draws
) -> list[tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[int]]]]:
    """In which stretches and orders a labeler comes to the batch's slots.

    Newest first while the policy changes; else once around the circle, from the labeler's start to the end
    and then from the beginning to the start.
    """
    if batch.settings.mode is BatchMode.ONLINE:
        return [([], [slots.c.task_id.desc()])]
    start = draws.labeler_start(worker.labeler_id)
    order: list[sa.ColumnElement[int]] = [slots.c.place, slots.c.task_id]
    return [([slots.c.place >= start], order), ([slots.c.place < start], order)]


def take_shared(
    connection: sa.Connection,
    worker: Worker,
    batch: OpenBatch,
    pool: Pool,
    *,
    wanted: int,
    draws: Draws,
    of_this_batch: bool = False,
) -> list[Taken]:
    """Tasks of the project that everybody answers and that this labeler has not had, at most ``wanted``."""
    if wanted <= 0 or TaskKind.COMPARE not in worker.kinds:
        return []
    # Calibration compares people, so all go through it in one order and meet from their first items on.
    start = 0 if pool is Pool.CALIBRATION else draws.labeler_start(worker.labeler_id)
    query = (
        sa.select(tasks.c.id, leases.c.slot_number)
        .join(batches, batches.c.id == tasks.c.batch_id)
        .outerjoin(
            leases,
            sa.and_(
                leases.c.task_id == tasks.c.id, leases.c.labeler_id == worker.labeler_id, leases.c.round == 0
            ),
        )
        .where(
            tasks.c.purpose == pool.value,
            batches.c.id == batch.batch_id if of_this_batch else batches.c.project_id == batch.project_id,
            ~batches.c.is_closed,
            sa.or_(
                leases.c.id.is_(None),
                sa.and_(~leases.c.is_answered, ~leases.c.is_skipped, leases.c.expire_us <= worker.now_us),
            ),
        )
        .order_by(sa.case((tasks.c.place >= start, 0), else_=1), tasks.c.place, tasks.c.id)
        .limit(wanted)
    )
    return [
        Taken(task_id=row.id, pool=pool.value, slot_number=row.slot_number)
        for row in connection.execute(query)
    ]


def take_repeats(connection: sa.Connection, worker: Worker, batch: OpenBatch, *, wanted: int) -> list[Taken]:
    """Tasks of the batch that this labeler answered a while ago and is asked about once more."""
    if wanted <= 0:
        return []
    recent = (
        sa.select(comparisons.c.task_id)
        .where(comparisons.c.labeler_id == worker.labeler_id)
        .order_by(comparisons.c.id.desc())
        .limit(REPEAT_DISTANCE_ITEMS)
    )
    again = leases.alias("again")
    query = (
        sa.select(comparisons.c.task_id)
        .join(tasks, tasks.c.id == comparisons.c.task_id)
        .where(
            comparisons.c.labeler_id == worker.labeler_id,
            comparisons.c.batch_id == batch.batch_id,
            comparisons.c.round == 0,
            comparisons.c.supersedes_id.is_(None),
            tasks.c.purpose == Pool.ORDINARY.value,
            comparisons.c.task_id.not_in(recent),
            ~sa.exists().where(
                again.c.task_id == comparisons.c.task_id,
                again.c.labeler_id == worker.labeler_id,
                again.c.round > 0,
            ),
        )
        .order_by(comparisons.c.id)
        .limit(wanted)
    )
    return [
        Taken(task_id=task_id, pool=Pool.REPEAT.value, round=1)
        for task_id in connection.execute(query).scalars()
    ]


def lease_taken(
    connection: sa.Connection,
    labeler_id: str,
    taken: Sequence[Taken],
    *,
    duration_us: int,
    draws: Draws,
    max_text_chars: int,
    now_us: int,
) -> list[LeasedTask]:
    """Lease what was taken, as many as their texts fit into one answer, at least one.

    A task that the labeler has not seen gets a new lease; one that came back from them keeps its id and
    order.
    """
    if not taken:
        return []
    task_ids = [one.task_id for one in taken]
    documents, known = _tasks_and_leases(connection, labeler_id, task_ids)
    texts = candidates_by_task(connection, set(task_ids))
    leased: list[LeasedTask] = []
    rows: list[Row] = []
    num_chars = 0
    for one in taken:
        task = documents[one.task_id]
        # Whoever writes a text does not see those of others.
        shown = [] if task.kind == TaskKind.WRITE.value else texts[one.task_id]
        num_chars += len(task.document) + sum(len(candidate.text) for candidate in shown)
        if leased and num_chars > max_text_chars:
            break
        slot_number = one.slot_number
        if slot_number is None:
            slot_number = _make_slot(connection, one, batch_id=task.batch_id, place=task.place)
        earlier = known.get((one.task_id, one.round))
        lease_id, shown_order = earlier or (
            secrets.token_hex(16),
            draws.shown_order(one.task_id, slot_number, len(shown)),
        )
        rows.append(
            {
                "id": lease_id,
                "task_id": one.task_id,
                "slot_number": slot_number,
                "labeler_id": labeler_id,
                "round": one.round,
                "shown_order": list(shown_order),
                "lease_us": now_us,
                "expire_us": now_us + duration_us,
                "is_answered": False,
                "is_skipped": False,
                "is_known": earlier is not None,
            }
        )
        leased.append(
            LeasedTask(
                lease_id=lease_id,
                document=task.document,
                candidates=tuple(shown[position].text for position in shown_order),
                expire_us=now_us + duration_us,
            )
        )
    _write_leases(connection, rows)
    return leased


def _answers_left(connection: sa.Connection, worker: Worker, batch: OpenBatch) -> int:
    """How many more answers this labeler may give in the batch; open leases count as answers."""
    most = batch.settings.max_answers_per_labeler
    if most is None:
        return 2**31
    had = connection.execute(
        sa.select(sa.func.count())
        .select_from(leases)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .where(
            leases.c.labeler_id == worker.labeler_id,
            tasks.c.batch_id == batch.batch_id,
            sa.or_(leases.c.is_answered, leases.c.expire_us > worker.now_us),
            ~leases.c.is_skipped,
        )
    ).scalar_one()
    return most - int(had)


def _make_slot(connection: sa.Connection, one: Taken, *, batch_id: int, place: int) -> int:
    """A slot of the labeler's own on a task that is not limited to so many answers."""
    # The task's row is held, so that two labelers do not make the same number.
    connection.execute(sa.select(tasks.c.id).where(tasks.c.id == one.task_id).with_for_update())
    last = connection.execute(
        sa.select(sa.func.max(slots.c.number)).where(slots.c.task_id == one.task_id)
    ).scalar_one()
    number = 0 if last is None else int(last) + 1
    connection.execute(
        sa.insert(slots).values(
            task_id=one.task_id,
            number=number,
            batch_id=batch_id,
            purpose=one.pool,
            place=place,
            lease_id=None,
            free_from_us=0,
        )
    )
    return number


def _tasks_and_leases(
    connection: sa.Connection, labeler_id: str, task_ids: list[int]
) -> tuple[dict[int, sa.Row[*tuple[Any, ...]]], dict[tuple[int, int], tuple[str, tuple[int, ...]]]]:
    """The tasks by id, and by task and round the id and the shown order of the leases that the labeler has
    had of them.
    """
    rows = connection.execute(
        sa.select(
            tasks.c.id,
            tasks.c.document,
            tasks.c.kind,
            tasks.c.batch_id,
            tasks.c.place,
            leases.c.round,
            leases.c.id.label("lease_id"),
            leases.c.shown_order,
        )
        .outerjoin(leases, sa.and_(leases.c.task_id == tasks.c.id, leases.c.labeler_id == labeler_id))
        .where(is_one_of(connection, tasks.c.id, task_ids))
    ).all()
    known = {
        (row.id, row.round): (row.lease_id, tuple(row.shown_order))
        for row in rows
        if row.lease_id is not None
    }
    return {row.id: row for row in rows}, known


def _write_leases(connection: sa.Connection, rows: list[Row]) -> None:
    """Write the leases, known ones over the lapsed ones, and give them their slots."""
    fresh = [
        {name: value for name, value in row.items() if name != "is_known"}
        for row in rows
        if not row["is_known"]
    ]
    if fresh:
        connection.execute(sa.insert(leases), fresh)
    renewed = [row for row in rows if row["is_known"]]
    if renewed:
        connection.execute(
            sa.update(leases)
            .where(leases.c.id == sa.bindparam("lease"))
            .values(
                slot_number=sa.bindparam("slot"),
                lease_us=sa.bindparam("start"),
                expire_us=sa.bindparam("end"),
            ),
            [
                {
                    "lease": row["id"],
                    "slot": row["slot_number"],
                    "start": row["lease_us"],
                    "end": row["expire_us"],
                }
                for row in renewed
            ],
        )
    connection.execute(
        sa.update(slots)
        .where(slots.c.task_id == sa.bindparam("task"), slots.c.number == sa.bindparam("slot"))
        .values(lease_id=sa.bindparam("lease"), free_from_us=sa.bindparam("end")),
        [
            {"task": row["task_id"], "slot": row["slot_number"], "lease": row["id"], "end": row["expire_us"]}
            for row in rows
        ],
    )


def leases_by_id(connection: sa.Connection, lease_ids: list[str]) -> dict[str, LeaseRecord]:
    """The leases that exist among these ids, held until the end of the transaction."""
    rows = connection.execute(
        sa.select(leases, slots.c.batch_id, slots.c.lease_id.label("slot_lease_id"), tasks.c.kind)
        .join(slots, sa.and_(slots.c.task_id == leases.c.task_id, slots.c.number == leases.c.slot_number))
        .join(tasks, tasks.c.id == leases.c.task_id)
        # PostgreSQL cannot even be asked for the character U+0000.
        .where(leases.c.id.in_([lease_id for lease_id in lease_ids if "\x00" not in lease_id]))
        .order_by(leases.c.id)  # so that two who lock several never wait for each other
        .with_for_update(of=(leases, slots))  # of no effect on SQLite, whose transaction is the only writer
    )
    return {
        row.id: LeaseRecord(
            lease_id=row.id,
            task_id=row.task_id,
            batch_id=row.batch_id,
            slot_number=row.slot_number,
            labeler_id=row.labeler_id,
            round=row.round,
            shown_order=tuple(row.shown_order),
            lease_us=row.lease_us,
            expire_us=row.expire_us,
            is_answered=row.is_answered,
            is_skipped=row.is_skipped,
            holds_slot=row.slot_lease_id == row.id,
            kind=TaskKind(row.kind),
        )
        for row in rows
    }


def close_leases(connection: sa.Connection, answered: Sequence[LeaseRecord]) -> None:
    """Note that these leases have their answers; their slots never open again."""
    connection.execute(
        sa.update(leases)
        .where(leases.c.id.in_([lease.lease_id for lease in answered]))
        .values(is_answered=True)
    )
    connection.execute(
        sa.update(slots)
        .where(slots.c.task_id == sa.bindparam("task"), slots.c.number == sa.bindparam("slot"))
        .values(free_from_us=None),
        [{"task": lease.task_id, "slot": lease.slot_number} for lease in answered],
    )


def give_back(connection: sa.Connection, skipped: Sequence[LeaseRecord], *, now_us: int) -> None:
    """Return the slots of these leases to the pool; their labelers do not get the tasks again."""
    connection.execute(
        sa.update(leases)
        .where(leases.c.id.in_([lease.lease_id for lease in skipped]))
        .values(is_skipped=True, expire_us=now_us)
    )
    connection.execute(
        sa.update(slots)
        .where(slots.c.task_id == sa.bindparam("task"), slots.c.number == sa.bindparam("slot"))
        .values(free_from_us=now_us),
        [{"task": lease.task_id, "slot": lease.slot_number} for lease in skipped],
    )


def _had_by(worker: Worker, task_id: sa.ColumnElement[int]) -> sa.Exists:
    """Whether the labeler has answered or skipped the task, or holds a slot of it now."""
    return sa.exists().where(
        leases.c.task_id == task_id,
        leases.c.labeler_id == worker.labeler_id,
        sa.or_(leases.c.is_answered, leases.c.is_skipped, leases.c.expire_us > worker.now_us),
    )
