"""Which items have a known answer (gold, training, screening), and how people do on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.database import Database
from services.labeling.project_store import project_named
from services.labeling.quality.gold import share_right
from services.labeling.quality.records import Purpose
from services.labeling.quality_store import judged_answers
from services.labeling.rows import candidates_by_task, tiers_from_json
from services.labeling.schema import batches, tasks
from services.labeling.tasks import Candidate, Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownItem:
    """An item whose right answer is known."""

    task_id: int
    batch: str
    purpose: Purpose
    document: str
    candidates: tuple[Candidate, ...]
    expected: Tiers
    explanation: str
    num_answers: int
    share_right: float | None  # the mean over answers; None without any


class KnownItemStore:
    """Reads items with a known answer. Methods block their thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def items(self, project: str, purposes: Collection[Purpose], *, limit: int = 500) -> list[KnownItem]:
        """The items of these purposes, oldest first. Raises ProjectNotFoundError."""

        def work(connection: sa.Connection) -> list[KnownItem]:
            owner = project_named(connection, project)
            query = (
                sa.select(tasks, batches.c.name.label("batch"))
                .join(batches, batches.c.id == tasks.c.batch_id)
                .where(
                    batches.c.project_id == owner.project_id,
                    tasks.c.purpose.in_([purpose.value for purpose in purposes]),
                    tasks.c.expected.is_not(None),
                )
                .order_by(tasks.c.id)
                .limit(limit)
            )
            rows = connection.execute(query).all()
            ids = {row.id for row in rows}
            texts = candidates_by_task(connection, ids)
            rights: defaultdict[int, list[float]] = defaultdict(list)
            for answer in judged_answers(connection, tasks.c.id.in_(sorted(ids))):
                right = share_right(answer)
                if right is not None:
                    rights[answer.task_id].append(right)
            return [
                KnownItem(
                    task_id=row.id,
                    batch=row.batch,
                    purpose=Purpose(row.purpose),
                    document=row.document,
                    candidates=tuple(texts[row.id]),
                    expected=tiers_from_json(row.expected),
                    explanation=row.explanation,
                    num_answers=len(rights[row.id]),
                    share_right=sum(rights[row.id]) / len(rights[row.id]) if rights[row.id] else None,
                )
                for row in rows
            ]

        return self._database.read(work)
