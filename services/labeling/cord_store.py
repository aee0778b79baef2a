"""How the record of the cord is kept. Events are only ever added, which the database enforces by itself: it
refuses to change or remove one, and one out of turn (see the migration 0003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.cord import CordAction, CordEvent, next_event
from services.labeling.database import Database, take_numbers
from services.labeling.limits import Clock
from services.labeling.requests import RepeatableRequest, recall_any, remember
from services.labeling.schema import cord_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """The answer to a pull or a release."""

    event: CordEvent
    repeated: bool  # True when nothing was added


class CordStore:
    """The cord's events in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def act(self, request: RepeatableRequest, action: CordAction, *, actor: str, reason: str) -> Acted:
        """Pull or release. A repeated request gets the first answer, whatever it says this time."""

        def work(connection: sa.Connection) -> Acted:
            known = recall_any(connection, request)
            if known is not None:
                row = connection.execute(sa.select(cord_events).where(cord_events.c.number == known)).one()
                return Acted(event=_event(row), repeated=True)
            now_us = self._clock()
            # Taken before the last event is read: from here on nobody else adds one.
            (number,) = take_numbers(connection, "cord_event", 1)
            event = next_event(_last(connection), action=action, actor=actor, reason=reason, now_us=now_us)
            connection.execute(
                sa.insert(cord_events).values(
                    number=number, action=action.value, actor=actor, reason=reason, event_us=now_us
                )
            )
            remember(connection, request, number, now_us=now_us)
            return Acted(event=event, repeated=False)

        return self._database.write(work)

    def last(self) -> CordEvent | None:
        """The last event, None when the cord was never touched."""
        return self._database.read(_last)

    def newest_events(self, limit: int, *, before: int | None = None) -> list[CordEvent]:
        """The last events, newest first; of those with smaller numbers than ``before`` if it is given."""
        query = sa.select(cord_events).order_by(cord_events.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(cord_events.c.number < before)
        return self._database.read(lambda connection: [_event(row) for row in connection.execute(query)])

    def events_after(self, number: int) -> list[CordEvent]:
        """All events with a larger number, oldest first."""
        query = sa.select(cord_events).where(cord_events.c.number > number).order_by(cord_events.c.number)
        return self._database.read(lambda connection: [_event(row) for row in connection.execute(query)])


def _last(connection: sa.Connection) -> CordEvent | None:
    row = connection.execute(
        sa.select(cord_events).order_by(cord_events.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else _event(row)


def _event(row: sa.Row[Any]) -> CordEvent:
    return CordEvent(
        number=row.number,
        action=CordAction(row.action),
        actor=row.actor,
        reason=row.reason,
        event_us=row.event_us,
    )
