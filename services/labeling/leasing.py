"""How a labeler's next tasks are found.

The stores call these inside their transactions. Which tasks a labeler may have, in which order and from which
pool is the rule of :mod:`services.labeling.assignment`, said here in SQL because the pools are too large to
read.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.assignment import Draws, Pool
from services.labeling.leases import Taken
from services.labeling.projects import BatchMode, BatchSettings
from services.labeling.rows import Row
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
    is_online = batch.settings.mode is BatchMode.ONLINE
    values = _values_of_search(worker, batch, pool, draws=draws)
    for number in range(len(_stretches(is_online=is_online))):
        query = _select_first_slot(is_online=is_online, stretch=number)
        row = connection.execute(query, values).one_or_none()
        if row is not None:
            return Taken(task_id=row.task_id, pool=pool.value, slot_number=row.number)
    return None


@functools.cache
def _select_first_slot(*, is_online: bool, stretch: int) -> sa.Select[tuple[int, int]]:
    where, order = _stretches(is_online=is_online)[stretch]
    return (
        sa.select(slots.c.task_id, slots.c.number)
        .join(tasks, tasks.c.id == slots.c.task_id)
        .where(*_is_free(), *where)
        .order_by(*order, slots.c.number)
        .limit(1)
        .with_for_update(of=slots, skip_locked=True)
    )


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
    values = _values_of_search(worker, batch, pool, draws=draws)
    query = (
        sa.select(slots.c.task_id, sa.func.min(slots.c.number).label("number"))
        .join(tasks, tasks.c.id == slots.c.task_id)
        .where(*_is_free())
        .group_by(slots.c.place, slots.c.task_id)
    )
    if without:
        query = query.where(slots.c.task_id.not_in(sorted(without)))
    found: dict[int, int] = {}
    for where, order in _stretches(is_online=batch.settings.mode is BatchMode.ONLINE):
        if len(found) < wanted:
            rows = connection.execute(query.where(*where).order_by(*order).limit(wanted - len(found)), values)
            found.update({row.task_id: row.number for row in rows})
    return found


def _is_free() -> list[sa.ColumnElement[bool]]:
    """Whether a slot may be leased to a labeler; for the parameters of :func:`_values_of_search`.

    Not if the labeler has answered or skipped its task, or holds a slot of it now.
    """
    is_had = sa.exists().where(
        leases.c.task_id == slots.c.task_id,
        leases.c.labeler_id == sa.bindparam("labeler_id"),
        sa.or_(leases.c.is_answered, leases.c.is_skipped, leases.c.expire_us > sa.bindparam("now_us")),
    )
    return [
        slots.c.batch_id == sa.bindparam("batch_id"),
        slots.c.purpose == sa.bindparam("pool"),
        slots.c.free_from_us <= sa.bindparam("now_us"),
        tasks.c.kind.in_(sa.bindparam("kinds", expanding=True)),
        ~is_had,
    ]


def _stretches(*, is_online: bool) -> list[tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[int]]]]:
    """In which stretches and orders a labeler comes to the slots of a batch.

    Newest first while the policy changes; else once around the circle, from the labeler's start to the end
    and then from the beginning to the start.
    """
    if is_online:
        return [([], [slots.c.task_id.desc()])]
    start = sa.bindparam("start", type_=sa.BigInteger)
    order: list[sa.ColumnElement[int]] = [slots.c.place, slots.c.task_id]
    return [([slots.c.place >= start], order), ([slots.c.place < start], order)]


def _values_of_search(worker: Worker, batch: OpenBatch, pool: Pool, *, draws: Draws) -> Row:
    return {
        "batch_id": batch.batch_id,
        "pool": pool.value,
        "kinds": [kind.value for kind in worker.kinds],
        "labeler_id": worker.labeler_id,
        "now_us": worker.now_us,
        "start": draws.labeler_start(worker.labeler_id),
    }


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
