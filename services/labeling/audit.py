"""How it is recorded what researchers and admins changed. Events are only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.database import take_numbers
from services.labeling.schema import audit_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Something that was changed."""

    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]  # JSON
    event_us: int


def record_act(
    connection: sa.Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,  # JSON
    now_us: int,
) -> None:
    """Add an event in the transaction of the change itself. ``action`` is a constant such as "user.close"."""
    (number,) = take_numbers(connection, "audit_event", 1)
    connection.execute(
        sa.insert(audit_events).values(
            id=number,
            actor=actor,
            action=action,
            subject=subject[:400],
            detail=dict(detail or {}),
            event_us=now_us,
        )
    )


def newest_acts(connection: sa.Connection, *, limit: int) -> list[Act]:
    """The last events, newest first."""
    query = sa.select(audit_events).order_by(audit_events.c.id.desc()).limit(limit)
    return [
        Act(
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            detail=row.detail,
            event_us=row.event_us,
        )
        for row in connection.execute(query)
    ]
