"""How a labeler's next tasks are found, leased and closed.

The store calls these inside its transactions. Which tasks a labeler may have and in which order they come is
the rule of :mod:`services.labeling.assignment`, said here in SQL because the pool is too large to read.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from services.labeling.assignment import Draws, LeasedTask, LeaseOrder, LeaseRecord
from services.labeling.rows import Row, candidates_by_task, id_of_batch
from services.labeling.schema import leases, slots, tasks


def take_slots(connection: sa.Connection, order: LeaseOrder, *, draws: Draws, now_us: int) -> dict[int, int]:
    """Lock a free slot of each of the next tasks for this labeler: task id -> slot number, in order."""
    start = draws.labeler_start(order.labeler_id)
    taken: dict[int, int] = {}
    # Once around the circle: from the labeler's start to the end, then from the beginning to the start.
    for stretch in (slots.c.place >= start, slots.c.place < start):
        wanted = order.max_tasks - len(taken)
        if wanted == 0:
            break
        query = (
            sa.select(slots.c.task_id, sa.func.min(slots.c.number).label("number"))
            .where(stretch, slots.c.free_from_us <= now_us, ~_had_by(order.labeler_id, now_us=now_us))
            .group_by(slots.c.place, slots.c.task_id)
            .order_by(slots.c.place, slots.c.task_id)
            .limit(wanted)
        )
        if order.batch:
            query = query.where(slots.c.batch_id == id_of_batch(order.batch))
        taken.update({row.task_id: row.number for row in connection.execute(query)})
    if not taken:
        return taken
    # Where several processes write at once, another may have taken one in between: it keeps it.
    locked = connection.execute(
        sa.select(slots.c.task_id)
        .where(
            sa.tuple_(slots.c.task_id, slots.c.number).in_(list(taken.items())),
            slots.c.free_from_us <= now_us,
        )
        .with_for_update(skip_locked=True)
    )
    ours = set(locked.scalars())
    return {task_id: number for task_id, number in taken.items() if task_id in ours}


def lease_slots(
    connection: sa.Connection,
    order: LeaseOrder,
    taken: dict[int, int],
    *,
    draws: Draws,
    max_text_chars: int,
    now_us: int,
) -> list[LeasedTask]:
    """Lease the slots that were taken, as many as their texts fit into one answer, at least one.

    A task that the labeler has not seen gets a new lease; one that came back from them keeps its id and
    order.
    """
    if not taken:
        return []
    expire_us = now_us + order.duration_us
    documents = dict(
        connection.execute(sa.select(tasks.c.id, tasks.c.document).where(tasks.c.id.in_(list(taken)))).all()
    )
    texts = candidates_by_task(connection, set(taken))
    known = _leases_of(connection, order.labeler_id, list(taken))
    leased: list[LeasedTask] = []
    rows: list[Row] = []
    num_chars = 0
    for task_id, number in taken.items():
        num_chars += len(documents[task_id]) + sum(len(candidate.text) for candidate in texts[task_id])
        if leased and num_chars > max_text_chars:
            break
        if task_id in known:
            lease_id, shown_order = known[task_id]
        else:
            lease_id = secrets.token_hex(16)
            shown_order = draws.shown_order(task_id, order.labeler_id, len(texts[task_id]))
        rows.append(
            {
                "id": lease_id,
                "task_id": task_id,
                "slot_number": number,
                "labeler_id": order.labeler_id,
                "shown_order": list(shown_order),
                "lease_us": now_us,
                "expire_us": expire_us,
                "is_answered": False,
            }
        )
        leased.append(
            LeasedTask(
                lease_id=lease_id,
                document=documents[task_id],
                candidates=tuple(texts[task_id][position].text for position in shown_order),
                expire_us=expire_us,
            )
        )
    _write_leases(connection, rows, known=set(known))
    return leased


def _leases_of(
    connection: sa.Connection, labeler_id: str, task_ids: list[int]
) -> dict[int, tuple[str, tuple[int, ...]]]:
    """The lease id and the shown order of each of the tasks that the labeler has leased before."""
    rows = connection.execute(
        sa.select(leases.c.task_id, leases.c.id, leases.c.shown_order).where(
            leases.c.labeler_id == labeler_id, leases.c.task_id.in_(task_ids)
        )
    )
    return {row.task_id: (row.id, tuple(row.shown_order)) for row in rows}


def _write_leases(connection: sa.Connection, rows: list[Row], *, known: set[int]) -> None:
    """Write the leases, those of the ``known`` tasks over the lapsed ones, and give them their slots."""
    fresh = [row for row in rows if row["task_id"] not in known]
    if fresh:
        connection.execute(sa.insert(leases), fresh)
    renewed = [row for row in rows if row["task_id"] in known]
    if renewed:
        connection.execute(
            sa.update(leases)
            .where(leases.c.id == sa.bindparam("lease"))
            .values(
                slot_number=sa.bindparam("number"),
                lease_us=sa.bindparam("start"),
                expire_us=sa.bindparam("end"),
            ),
            [
                {
                    "lease": row["id"],
                    "number": row["slot_number"],
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
        sa.select(leases, slots.c.batch_id, slots.c.lease_id.label("slot_lease_id"))
        .join(slots, sa.and_(slots.c.task_id == leases.c.task_id, slots.c.number == leases.c.slot_number))
        .where(leases.c.id.in_(lease_ids))
        .with_for_update()  # of no effect on SQLite, where the transaction is the only writer
    )
    return {
        row.id: LeaseRecord(
            lease_id=row.id,
            task_id=row.task_id,
            batch_id=row.batch_id,
            slot_number=row.slot_number,
            labeler_id=row.labeler_id,
            shown_order=tuple(row.shown_order),
            lease_us=row.lease_us,
            expire_us=row.expire_us,
            is_answered=row.is_answered,
            holds_slot=row.slot_lease_id == row.id,
        )
        for row in rows
    }


def close_leases(connection: sa.Connection, answered: list[LeaseRecord]) -> None:
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


def _had_by(labeler_id: str, *, now_us: int) -> sa.Exists:
    """Whether the labeler has answered the slot's task, or holds another slot of it now."""
    return sa.exists().where(
        leases.c.task_id == slots.c.task_id,
        leases.c.labeler_id == labeler_id,
        sa.or_(leases.c.is_answered, leases.c.expire_us > now_us),
    )
