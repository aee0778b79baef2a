"""How leases are written, held and closed. The stores call this inside their transactions."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.assignment import Draws, LeasedTask, LeaseRecord
from services.labeling.rows import Row, candidates_by_task, is_one_of
from services.labeling.schema import leases, slots, tasks
from services.labeling.tasks import TaskKind

# Made once: making a statement costs more than running it, and these run for every item.
_INSERT_LEASES = sa.insert(leases)
_RENEW_LEASES = (
    sa.update(leases)
    .where(leases.c.id == sa.bindparam("lease"))
    .values(slot_number=sa.bindparam("slot"), lease_us=sa.bindparam("start"), expire_us=sa.bindparam("end"))
)
_LOCK_LEASES = (
    sa.select(leases, slots.c.batch_id, slots.c.lease_id.label("slot_lease_id"), tasks.c.kind)
    .join(slots, sa.and_(slots.c.task_id == leases.c.task_id, slots.c.number == leases.c.slot_number))
    .join(tasks, tasks.c.id == leases.c.task_id)
    .where(leases.c.id.in_(sa.bindparam("lease_ids", expanding=True)))
    .order_by(leases.c.id)  # so that two who lock several never wait for each other
    .with_for_update(of=(leases, slots))  # of no effect on SQLite, whose transaction is the only writer
)
_CLOSE_LEASES = (
    sa.update(leases)
    .where(leases.c.id.in_(sa.bindparam("lease_ids", expanding=True)))
    .values(is_answered=True)
)
_ONE_SLOT = sa.and_(slots.c.task_id == sa.bindparam("task"), slots.c.number == sa.bindparam("slot"))
_LEASE_SLOTS = (
    sa.update(slots).where(_ONE_SLOT).values(lease_id=sa.bindparam("lease"), free_from_us=sa.bindparam("end"))
)
_FREE_SLOTS = sa.update(slots).where(_ONE_SLOT).values(free_from_us=sa.bindparam("from"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A task that is about to be leased."""

    task_id: int
    pool: str  # of its slot: a Pool's value, or the purpose of an onboarding item
    slot_number: int | None = None  # None: a slot is made
    round: int = 0


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
    query = _select_tasks_and_leases(connection.dialect.name)
    rows = connection.execute(query, {"labeler_id": labeler_id, "task_ids": task_ids}).all()
    known = {
        (row.id, row.round): (row.lease_id, tuple(row.shown_order))
        for row in rows
        if row.lease_id is not None
    }
    return {row.id: row for row in rows}, known


@functools.cache
def _select_tasks_and_leases(dialect: str) -> sa.Select[*tuple[Any, ...]]:
    return (
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
        .outerjoin(
            leases,
            sa.and_(leases.c.task_id == tasks.c.id, leases.c.labeler_id == sa.bindparam("labeler_id")),
        )
        .where(is_one_of(dialect, tasks.c.id, "task_ids"))
    )


def _write_leases(connection: sa.Connection, rows: list[Row]) -> None:
    """Write the leases, known ones over the lapsed ones, and give them their slots."""
    fresh = [
        {name: value for name, value in row.items() if name != "is_known"}
        for row in rows
        if not row["is_known"]
    ]
    if fresh:
        connection.execute(_INSERT_LEASES, fresh)
    renewed = [row for row in rows if row["is_known"]]
    if renewed:
        connection.execute(
            _RENEW_LEASES,
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
        _LEASE_SLOTS,
        [
            {"task": row["task_id"], "slot": row["slot_number"], "lease": row["id"], "end": row["expire_us"]}
            for row in rows
        ],
    )


def leases_by_id(connection: sa.Connection, lease_ids: list[str]) -> dict[str, LeaseRecord]:
    """The leases that exist among these ids, held until the end of the transaction."""
    # PostgreSQL cannot even be asked for the character U+0000.
    askable = [lease_id for lease_id in lease_ids if "\x00" not in lease_id]
    rows = connection.execute(_LOCK_LEASES, {"lease_ids": askable})
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
    connection.execute(_CLOSE_LEASES, {"lease_ids": [lease.lease_id for lease in answered]})
    connection.execute(
        _FREE_SLOTS,
        [{"task": lease.task_id, "slot": lease.slot_number, "from": None} for lease in answered],
    )


def give_back(connection: sa.Connection, skipped: Sequence[LeaseRecord], *, now_us: int) -> None:
    """Return the slots of these leases to the pool; their labelers do not get the tasks again."""
    connection.execute(
        sa.update(leases)
        .where(leases.c.id.in_([lease.lease_id for lease in skipped]))
        .values(is_skipped=True, expire_us=now_us)
    )
    connection.execute(
        _FREE_SLOTS,
        [{"task": lease.task_id, "slot": lease.slot_number, "from": now_us} for lease in skipped],
    )
