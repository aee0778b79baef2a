"""How researchers and a labeler talk about an item: one thread for each labeler and task.

A labeler sees only threads of their own. What was said stays; a thread is unread for whoever has not seen its
last message of somebody else's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.database import Database, take_numbers
from services.labeling.errors import AnswerNotFoundError, InvalidFieldError
from services.labeling.limits import MAX_NOTE_CHARS, Clock, check_text
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.schema import batches, leases, message_readings, messages, projects, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something that was said about an item."""

    message_id: int
    author: str
    text: str
    create_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """What was said about one task of one labeler."""

    task_id: int
    labeler_id: str
    project: str
    document: str
    num_messages: int
    last_us: int
    is_unread: bool


def check_message(text: str) -> None:
    """A message says something, in bearable length."""
    if not text.strip():
        raise InvalidFieldError("write something", reason="EMPTY_TEXT", field="text")
    check_text(text, field="text", max_chars=MAX_NOTE_CHARS)


class MessageStore:
    """Threads in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def write(
        self, request: RepeatableRequest, *, task_id: int, labeler_id: str, author: str, text: str
    ) -> int:
        """Add a message that :func:`check_message` has passed. The labeler must have had the task."""

        def work(connection: sa.Connection) -> int:
            known = recall(connection, request)
            if known is not None:
                return int(known)
            _check_thread(connection, task_id, labeler_id)
            now_us = self._clock()
            (number,) = take_numbers(connection, "message", 1)
            connection.execute(
                sa.insert(messages).values(
                    id=number,
                    task_id=task_id,
                    labeler_id=labeler_id,
                    author=author,
                    text=text,
                    create_us=now_us,
                )
            )
            remember(connection, request, number, now_us=now_us)
            return number

        return self._database.write(work)

    def read(self, *, task_id: int, labeler_id: str, reader: str) -> list[Message]:
        """The messages of a thread, oldest first; they count as read by ``reader`` from now on."""

        def work(connection: sa.Connection) -> list[Message]:
            rows = connection.execute(
                sa.select(messages)
                .where(messages.c.labeler_id == labeler_id, messages.c.task_id == task_id)
                .order_by(messages.c.id)
            ).all()
            if rows:
                _note_read(connection, task_id, labeler_id, reader, rows[-1].id)
            return [
                Message(message_id=row.id, author=row.author, text=row.text, create_us=row.create_us)
                for row in rows
            ]

        return self._database.write(work)

    def threads(
        self, *, reader: str, labeler_id: str = "", project: str = "", limit: int = 100
    ) -> list[Thread]:
        """Threads, the last spoken in first; of one labeler or project where it is named."""

        def work(connection: sa.Connection) -> list[Thread]:
            last_of_others = sa.func.max(sa.case((messages.c.author != reader, messages.c.id), else_=0))
            query = (
                sa.select(
                    messages.c.task_id,
                    messages.c.labeler_id,
                    projects.c.name.label("project"),
                    tasks.c.document,
                    sa.func.count().label("num_messages"),
                    sa.func.max(messages.c.create_us).label("last_us"),
                    last_of_others.label("last_of_others"),
                    sa.func.coalesce(sa.func.max(message_readings.c.last_message_id), 0).label("last_read"),
                )
                .join(tasks, tasks.c.id == messages.c.task_id)
                .join(batches, batches.c.id == tasks.c.batch_id)
                .join(projects, projects.c.id == batches.c.project_id)
                .outerjoin(
                    message_readings,
                    sa.and_(
                        message_readings.c.task_id == messages.c.task_id,
                        message_readings.c.labeler_id == messages.c.labeler_id,
                        message_readings.c.reader == reader,
                    ),
                )
                .group_by(messages.c.task_id, messages.c.labeler_id, projects.c.name, tasks.c.document)
                .order_by(sa.func.max(messages.c.id).desc())
                .limit(limit)
            )
            if labeler_id:
                query = query.where(messages.c.labeler_id == labeler_id)
            if project:
                query = query.where(projects.c.name == project)
            return [_thread(row) for row in connection.execute(query)]

        return self._database.read(work)


def _check_thread(connection: sa.Connection, task_id: int, labeler_id: str) -> None:
    had = connection.execute(
        sa.select(leases.c.id).where(leases.c.task_id == task_id, leases.c.labeler_id == labeler_id).limit(1)
    ).scalar_one_or_none()
    if had is None:
        raise AnswerNotFoundError(task_id)


def _note_read(
    connection: sa.Connection, task_id: int, labeler_id: str, reader: str, last_message_id: int
) -> None:
    table = message_readings
    row = (table.c.task_id == task_id, table.c.labeler_id == labeler_id, table.c.reader == reader)
    updated = connection.execute(sa.update(table).where(*row).values(last_message_id=last_message_id))
    if updated.rowcount == 0:
        connection.execute(
            sa.insert(table).values(
                task_id=task_id, labeler_id=labeler_id, reader=reader, last_message_id=last_message_id
            )
        )


def _thread(row: sa.Row[Any]) -> Thread:
    return Thread(
        task_id=row.task_id,
        labeler_id=row.labeler_id,
        project=row.project,
        document=row.document,
        num_messages=row.num_messages,
        last_us=row.last_us,
        is_unread=row.last_of_others > row.last_read,
    )
