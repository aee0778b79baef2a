"""What was changed in a project: its instructions, version by version, and every act of a researcher.

Reads what ``project_store`` and the other stores have written, and notes what a page did that no store notes
by itself; nothing here is ever removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.audit import record_act
from services.labeling.database import Database
from services.labeling.limits import Clock
from services.labeling.project_store import ProjectRecord, project_named
from services.labeling.schema import audit_events, batches, instruction_readings, instructions


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionsVersion:
    """One version of a project's instructions."""

    version: int
    text: str
    author: str
    create_us: int
    num_readers: int  # labelers who have read it


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting before and after."""

    name: str
    before: str  # empty where it was not there
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that a researcher or admin did."""

    actor: str
    action: str  # such as "batch.update"
    subject: str
    differences: tuple[Difference, ...]  # of settings to what they were before; else what the act was about
    event_us: int


class HistoryStore:
    """The past of projects. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def note(self, *, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Add an act. ``detail`` is JSON."""
        self._database.write(
            lambda connection: record_act(
                connection,
                actor=actor,
                action=action,
                subject=subject,
                detail=detail,
                now_us=self._clock(),
            )
        )

    def instructions(self, project: str) -> list[InstructionsVersion]:
        """All versions, newest first. Raises ProjectNotFoundError."""

        def work(connection: sa.Connection) -> list[InstructionsVersion]:
            owner = project_named(connection, project)
            readers = (
                sa.select(sa.func.count())
                .where(
                    instruction_readings.c.project_id == instructions.c.project_id,
                    instruction_readings.c.version == instructions.c.version,
                )
                .scalar_subquery()
            )
            query = (
                sa.select(instructions, readers.label("num_readers"))
                .where(instructions.c.project_id == owner.project_id)
                .order_by(instructions.c.version.desc())
            )
            return [
                InstructionsVersion(
                    version=row.version,
                    text=row.text,
                    author=row.author,
                    create_us=row.create_us,
                    num_readers=row.num_readers,
                )
                for row in connection.execute(query)
            ]

        return self._database.read(work)

    def changes(self, project: str, *, limit: int = 200) -> list[Change]:
        """What was done to a project, its batches, its people and its items, newest first."""

        def work(connection: sa.Connection) -> list[Change]:
            owner = project_named(connection, project)
            own_batches = sa.select(batches.c.name).where(batches.c.project_id == owner.project_id)
            subject, action = audit_events.c.subject, audit_events.c.action
            query = (
                sa.select(audit_events)
                .where(
                    sa.or_(
                        sa.and_(action.startswith("project."), subject == project),
                        sa.and_(action.startswith("batch."), subject.in_(own_batches)),
                        subject.startswith(f"{project}/", autoescape=True),
                    )
                )
                .order_by(audit_events.c.id.desc())
            )
            found = _with_differences(connection.execute(query).all())
            found += _as_changes(connection, owner)
            return sorted(found, key=lambda change: change.event_us, reverse=True)[:limit]

        return self._database.read(work)


def _as_changes(connection: sa.Connection, project: ProjectRecord) -> list[Change]:
    """Versions of the instructions, which have their own table."""
    query = sa.select(
        instructions.c.version,
        instructions.c.author,
        instructions.c.create_us,
        sa.func.length(instructions.c.text).label("chars"),
    ).where(instructions.c.project_id == project.project_id)
    return [
        Change(
            actor=row.author,
            action="instructions.write",
            subject=project.name,
            differences=(
                Difference(name="version", before="", after=str(row.version)),
                Difference(name="characters", before="", after=str(row.chars)),
            ),
            event_us=row.create_us,
        )
        for row in connection.execute(query)
    ]


def _with_differences(newest_first: Sequence[sa.Row[Any]]) -> list[Change]:
    settings: dict[str, Mapping[str, str]] = {}  # by kind and name of what they belong to
    found: list[Change] = []
    for row in reversed(newest_first):
        kind, _, act = row.action.partition(".")
        detail = _flat(row.detail)
        earlier: Mapping[str, str] = {}
        if act in ("create", "update"):
            earlier = settings.get(f"{kind} {row.subject}", {})
            settings[f"{kind} {row.subject}"] = detail
        found.append(
            Change(
                actor=row.actor,
                action=row.action,
                subject=row.subject,
                differences=tuple(
                    Difference(name=name, before=earlier.get(name, ""), after=value)
                    for name, value in detail.items()
                    if earlier.get(name) != value
                ),
                event_us=row.event_us,
            )
        )
    return found[::-1]


def _flat(detail: Mapping[str, Any]) -> dict[str, str]:
    """Settings as words, nested ones under their own name."""
    found: dict[str, str] = {}
    for name, value in detail.items():
        if isinstance(value, Mapping):
            found.update(_flat(value))
        elif isinstance(value, bool):
            found[name] = "yes" if value else "no"
        else:
            found[name] = "none" if value is None else f"{value}"
    return found
