"""How answers that were given elsewhere are written down, a message at a time and in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa

from services.labeling.answers import Origin
from services.labeling.assignment import Draws
from services.labeling.database import Database, lock_name, take_numbers
from services.labeling.imports import ImportRow, ImportTally
from services.labeling.limits import Clock
from services.labeling.project_store import ensure_batch, project_named
from services.labeling.projects import BatchMode, BatchSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest, recall, remember
from services.labeling.rows import (
    Row,
    candidate_row,
    decision_columns,
    insert_rows,
    is_one_of,
    ratings_to_json,
)
from services.labeling.schema import candidates, comparisons, tasks


class ImportStore:
    """Takes imported answers into a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def check_project(self, project: str) -> None:
        """Raises ProjectNotFoundError."""
        self._database.read(lambda connection: project_named(connection, project))

    def record(
        self, request: RepeatableRequest, rows: Sequence[ImportRow], *, project: str, batch: str
    ) -> ImportTally:
        """Record rows that :func:`services.labeling.imports.check_rows` has passed, all or none."""

        def work(connection: sa.Connection) -> ImportTally:
            known = recall(connection, request)
            if known is not None:
                return ImportTally(num_repeated=int(known))
            now_us = self._clock()
            owner = ensure_batch(
                connection,
                batch,
                project=project,
                settings=BatchSettings(mode=BatchMode.OFFLINE),
                now_us=now_us,
            )
            lock_name(connection, "import", batch)  # two imports would make the same task twice
            task_ids, made = self._tasks_of(connection, owner.batch_id, rows, now_us=now_us)
            rounds = _rounds_so_far(connection, set(task_ids) - made)
            values: list[Row] = []
            ids = take_numbers(connection, "comparison", len(rows))
            for comparison_id, task_id, row in zip(ids, task_ids, rows, strict=True):
                key = (task_id, row.labeler_id)
                values.append(
                    _comparison_row(
                        comparison_id, owner.batch_id, task_id, row, round_number=rounds[key], now_us=now_us
                    )
                )
                rounds[key] += 1
            insert_rows(connection, comparisons, values)
            remember(connection, request, len(values), now_us=now_us)
            return ImportTally(num_recorded=len(values), num_tasks=len(made))

        return self._database.write(work)

    def _tasks_of(
        self, connection: sa.Connection, batch_id: int, rows: Sequence[ImportRow], *, now_us: int
    ) -> tuple[list[int], set[int]]:
        """The task of each row, made where there is none, and those that were made."""
        contents = [row.content_sha256 for row in rows]
        found: dict[str, int] = {
            row.content_sha256: row.id
            for row in connection.execute(
                sa.select(tasks.c.content_sha256, tasks.c.id).where(
                    tasks.c.batch_id == batch_id,
                    is_one_of(connection.dialect.name, tasks.c.content_sha256, "contents"),
                ),
                {"contents": sorted(set(contents))},
            )
        }
        new = {content: row for content, row in zip(contents, rows, strict=True) if content not in found}
        made: dict[str, int] = {}
        if new:
            numbers = take_numbers(connection, "task", len(new))
            draws = Draws(seed=self._database.seed)
            made = dict(zip(new, numbers, strict=True))
            insert_rows(
                connection,
                tasks,
                [
                    {
                        "id": made[content],
                        "batch_id": batch_id,
                        "document_id": row.document_id,
                        "document": row.document,
                        "overlap_count": 0,
                        "kind": row.kind.value,
                        "purpose": Purpose.ORDINARY.value,
                        "place": draws.task_place(made[content]),
                        "expected": None,
                        "explanation": "",
                        "content_sha256": content,
                        "create_us": now_us,
                    }
                    for content, row in new.items()
                ],
            )
            insert_rows(
                connection,
                candidates,
                [
                    candidate_row(made[content], position, candidate)
                    for content, row in new.items()
                    for position, candidate in enumerate(row.candidates)
                ],
            )
            found.update(made)
        return [found[content] for content in contents], set(made.values())


def _rounds_so_far(connection: sa.Connection, task_ids: set[int]) -> Counter[tuple[int, str]]:
    """How often each labeler has answered each of the tasks."""
    if not task_ids:
        return Counter()
    query = (
        sa.select(comparisons.c.task_id, comparisons.c.labeler_id, sa.func.max(comparisons.c.round))
        .where(is_one_of(connection.dialect.name, comparisons.c.task_id, "task_ids"))
        .group_by(comparisons.c.task_id, comparisons.c.labeler_id)
    )
    rows = connection.execute(query, {"task_ids": sorted(task_ids)})
    return Counter({(task_id, labeler_id): last + 1 for task_id, labeler_id, last in rows})


def _comparison_row(
    comparison_id: int, batch_id: int, task_id: int, row: ImportRow, *, round_number: int, now_us: int
) -> Row:
    answer_us = now_us if row.answer_us is None else row.answer_us
    return {
        "id": comparison_id,
        "batch_id": batch_id,
        "task_id": task_id,
        "lease_id": None,
        "labeler_id": row.labeler_id,
        "round": round_number,
        "supersedes_id": None,
        "origin": Origin.IMPORT.value,
        **decision_columns(row.answer.decision),
        "preference": row.answer.preference,
        "confidence": row.answer.confidence,
        "ratings": ratings_to_json(row.answer.ratings),
        "note": row.answer.note,
        "shown_order": list(range(len(row.candidates))),
        "lease_us": answer_us,
        "answer_us": answer_us,
        "answer_duration_us": None,
        "telemetry": None,
    }
