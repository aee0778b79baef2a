"""How projects, their instructions and their batches are kept, and who changed them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.audit import record_act
from services.labeling.database import Database, take_numbers
from services.labeling.errors import (
    BatchClosedError,
    BatchNotFoundError,
    BatchOfAnotherProjectError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from services.labeling.leasing import OpenBatch
from services.labeling.limits import Clock
from services.labeling.projects import (
    DEFAULT_PROJECT,
    BatchSettings,
    ProjectSettings,
    batch_settings_from_json,
    project_settings_from_json,
    settings_to_json,
)
from services.labeling.schema import audit_events, batches, instruction_readings, instructions, projects


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRecord:
    """A project as it stands."""

    project_id: int
    name: str
    settings: ProjectSettings
    instructions: str
    instructions_version: int  # 0 while there are none
    create_us: int

    @property
    def title(self) -> str:
        """What people read on top of the page."""
        return self.settings.title or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch as it stands."""

    batch_id: int
    project_id: int
    project: str
    name: str
    settings: BatchSettings
    create_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Something that a researcher or admin changed."""

    actor: str
    action: str
    subject: str
    detail: dict[str, Any]  # whatever JSON holds
    event_us: int


class ProjectStore:
    """Projects and batches in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create_project(self, name: str, settings: ProjectSettings, text: str, *, actor: str) -> bool:
        """Make a project with its instructions; False when it is there already, with the same settings.

        Raises ProjectExistsError for one with other settings.
        """

        def work(connection: sa.Connection) -> bool:
            found = find_project(connection, name)
            if found is not None:
                if (found.settings, found.instructions) != (settings, text):
                    raise ProjectExistsError(name)
                return False
            now_us = self._clock()
            (project_id,) = take_numbers(connection, "project", 1)
            connection.execute(
                sa.insert(projects).values(
                    id=project_id,
                    name=name,
                    settings=settings_to_json(settings),
                    instructions_version=0,
                    create_us=now_us,
                )
            )
            if text:
                _write_instructions(connection, project_id, 1, text, actor=actor, now_us=now_us)
            record_act(
                connection,
                actor=actor,
                action="project.create",
                subject=name,
                detail=settings_to_json(settings),
                now_us=now_us,
            )
            return True

        return self._database.write(work)

    def update_project(self, name: str, settings: ProjectSettings, text: str, *, actor: str) -> ProjectRecord:
        """Change a project; other instructions become a new version that every labeler is shown."""

        def work(connection: sa.Connection) -> ProjectRecord:
            found = project_named(connection, name)
            now_us = self._clock()
            connection.execute(
                sa.update(projects)
                .where(projects.c.id == found.project_id)
                .values(settings=settings_to_json(settings))
            )
            if text != found.instructions:
                version = found.instructions_version + 1
                _write_instructions(connection, found.project_id, version, text, actor=actor, now_us=now_us)
            record_act(
                connection,
                actor=actor,
                action="project.update",
                subject=name,
                detail=settings_to_json(settings),
                now_us=now_us,
            )
            return project_named(connection, name)

        return self._database.write(work)

    def project(self, name: str) -> ProjectRecord:
        """The project of this name. Raises ProjectNotFoundError."""
        return self._database.read(lambda connection: project_named(connection, name))

    def projects(self, *, after: str = "", limit: int = 1_000) -> list[ProjectRecord]:
        """Projects by name, those after ``after``."""

        def work(connection: sa.Connection) -> list[ProjectRecord]:
            query = _select_projects().where(projects.c.name > after).order_by(projects.c.name).limit(limit)
            return [_project(row) for row in connection.execute(query)]

        return self._database.read(work)

    def create_batch(self, project: str, name: str, settings: BatchSettings, *, actor: str) -> BatchRecord:
        """Make a batch; one that is there in the same project is given back as it is."""

        def work(connection: sa.Connection) -> BatchRecord:
            record = ensure_batch(connection, name, project=project, settings=settings, now_us=self._clock())
            record_act(
                connection,
                actor=actor,
                action="batch.create",
                subject=name,
                detail=settings_to_json(settings),
                now_us=self._clock(),
            )
            return record

        return self._database.write(work)

    def update_batch(self, name: str, settings: BatchSettings, *, actor: str) -> BatchRecord:
        """Change a batch's rules; leases that run are not touched."""

        def work(connection: sa.Connection) -> BatchRecord:
            found = batch_named(connection, name)
            connection.execute(
                sa.update(batches)
                .where(batches.c.id == found.batch_id)
                .values(
                    settings=settings_to_json(settings),
                    priority=settings.priority,
                    is_closed=settings.is_closed,
                )
            )
            record_act(
                connection,
                actor=actor,
                action="batch.update",
                subject=name,
                detail=settings_to_json(settings),
                now_us=self._clock(),
            )
            return batch_named(connection, name)

        return self._database.write(work)

    def batch(self, name: str) -> BatchRecord:
        """The batch of this name. Raises BatchNotFoundError."""
        return self._database.read(lambda connection: batch_named(connection, name))

    def batches(self, project: str) -> list[BatchRecord]:
        """The batches of a project, oldest first."""

        def work(connection: sa.Connection) -> list[BatchRecord]:
            query = _select_batches().where(projects.c.name == project).order_by(batches.c.id)
            return [_batch(row) for row in connection.execute(query)]

        return self._database.read(work)

    def note_instructions_read(self, project: str, version: int, labeler_id: str) -> None:
        """Remember that a labeler has read a version of the instructions."""

        def work(connection: sa.Connection) -> None:
            found = project_named(connection, project)
            if not 1 <= version <= found.instructions_version:
                return
            if _has_read(connection, found.project_id, version, labeler_id):
                return
            connection.execute(
                sa.insert(instruction_readings).values(
                    project_id=found.project_id, version=version, labeler_id=labeler_id, read_us=self._clock()
                )
            )

        self._database.write(work)

    def has_read_instructions(self, project: ProjectRecord, labeler_id: str) -> bool:
        """Whether a labeler has read the present version of the instructions, or there are none."""
        if project.instructions_version == 0:
            return True
        return self._database.read(
            lambda connection: _has_read(
                connection, project.project_id, project.instructions_version, labeler_id
            )
        )

    def audit_events(self, *, limit: int = 100) -> list[AuditEvent]:
        """The last changes, newest first."""
        query = sa.select(audit_events).order_by(audit_events.c.id.desc()).limit(limit)
        return self._database.read(
            lambda connection: [
                AuditEvent(
                    actor=row.actor,
                    action=row.action,
                    subject=row.subject,
                    detail=row.detail,
                    event_us=row.event_us,
                )
                for row in connection.execute(query)
            ]
        )


def find_project(connection: sa.Connection, name: str) -> ProjectRecord | None:
    """The project of this name, if there is one."""
    row = connection.execute(_select_project_named(), {"name": name}).one_or_none()
    return None if row is None else _project(row)


def project_named(connection: sa.Connection, name: str) -> ProjectRecord:
    """The project of this name. Raises ProjectNotFoundError."""
    found = find_project(connection, name)
    if found is None:
        raise ProjectNotFoundError(name)
    return found


def batch_named(connection: sa.Connection, name: str) -> BatchRecord:
    """The batch of this name. Raises BatchNotFoundError."""
    row = connection.execute(_select_batches().where(batches.c.name == name)).one_or_none()
    if row is None:
        raise BatchNotFoundError(name)
    return _batch(row)


def ensure_batch(
    connection: sa.Connection, name: str, *, project: str, settings: BatchSettings, now_us: int
) -> BatchRecord:
    """The batch of this name, made if it does not exist.

    ``project`` is empty for the batch's own, or for the default project where the batch is new. Raises
    BatchOfAnotherProjectError and BatchClosedError.
    """
    row = connection.execute(_select_batches().where(batches.c.name == name)).one_or_none()
    if row is not None:
        found = _batch(row)
        if project not in ("", found.project):
            raise BatchOfAnotherProjectError(name, found.project)
        if found.settings.is_closed:
            raise BatchClosedError(name)
        return found
    owner = project_named(connection, project or DEFAULT_PROJECT)
    (batch_id,) = take_numbers(connection, "batch", 1)
    connection.execute(
        sa.insert(batches).values(
            id=batch_id,
            project_id=owner.project_id,
            name=name,
            settings=settings_to_json(settings),
            priority=settings.priority,
            is_closed=settings.is_closed,
            create_us=now_us,
        )
    )
    return BatchRecord(
        batch_id=batch_id,
        project_id=owner.project_id,
        project=owner.name,
        name=name,
        settings=settings,
        create_us=now_us,
    )


def open_batches(connection: sa.Connection, *, project: str, batch: str) -> Sequence[OpenBatch]:
    """The batches that give out work, in the order in which they are worked off. Empty names take all."""
    query = _select_open_batches(by_batch=bool(batch), by_project=bool(project))
    return [
        OpenBatch(
            batch_id=row.id,
            project_id=row.project_id,
            settings=batch_settings_from_json(row.settings, priority=row.priority, is_closed=row.is_closed),
            needs_onboarding=project_settings_from_json(row.project_settings).onboarding.is_needed,
        )
        for row in connection.execute(query, {"batch": batch, "project": project})
    ]


@functools.cache  # making a statement costs more than running it, and everybody who asks for work runs this
def _select_open_batches(*, by_batch: bool, by_project: bool) -> sa.Select[Any]:
    query = (
        sa.select(batches, projects.c.settings.label("project_settings"))
        .join(projects, projects.c.id == batches.c.project_id)
        .where(~batches.c.is_closed)
        .order_by(batches.c.priority.desc(), batches.c.id)
    )
    if by_batch:
        query = query.where(batches.c.name == sa.bindparam("batch"))
    if by_project:
        query = query.where(projects.c.name == sa.bindparam("project"))
    return query


def _write_instructions(
    connection: sa.Connection, project_id: int, version: int, text: str, *, actor: str, now_us: int
) -> None:
    connection.execute(
        sa.insert(instructions).values(
            project_id=project_id, version=version, text=text, author=actor, create_us=now_us
        )
    )
    connection.execute(
        sa.update(projects).where(projects.c.id == project_id).values(instructions_version=version)
    )


def _has_read(connection: sa.Connection, project_id: int, version: int, labeler_id: str) -> bool:
    table = instruction_readings
    found = connection.execute(
        sa.select(table.c.version).where(
            table.c.project_id == project_id, table.c.version == version, table.c.labeler_id == labeler_id
        )
    ).one_or_none()
    return found is not None


def _select_projects() -> sa.Select[Any]:
    return sa.select(projects, instructions.c.text).outerjoin(
        instructions,
        sa.and_(
            instructions.c.project_id == projects.c.id,
            instructions.c.version == projects.c.instructions_version,
        ),
    )


@functools.cache  # every page of an item runs it
def _select_project_named() -> sa.Select[Any]:
    return _select_projects().where(projects.c.name == sa.bindparam("name"))


def _project(row: sa.Row[Any]) -> ProjectRecord:
    return ProjectRecord(
        project_id=row.id,
        name=row.name,
        settings=project_settings_from_json(row.settings),
        instructions=row.text or "",
        instructions_version=row.instructions_version,
        create_us=row.create_us,
    )


def _select_batches() -> sa.Select[Any]:
    return sa.select(batches, projects.c.name.label("project")).join(
        projects, projects.c.id == batches.c.project_id
    )


def _batch(row: sa.Row[Any]) -> BatchRecord:
    return BatchRecord(
        batch_id=row.id,
        project_id=row.project_id,
        project=row.project,
        name=row.name,
        settings=batch_settings_from_json(row.settings, priority=row.priority, is_closed=row.is_closed),
        create_us=row.create_us,
    )
