"""How it is recorded what researchers and admins changed. Events are only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from services.labeling.database import take_numbers
from services.labeling.schema import audit_events


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
