"""Where the figures of quality come from: the answers that stand, without their texts.

:mod:`services.labeling.quality` says what is made of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from services.labeling.accounts import Role
from services.labeling.answers import Choice, Origin, Ranking, Verdict
from services.labeling.database import Database
from services.labeling.errors import BatchNotFoundError
from services.labeling.project_store import project_named
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.rows import decision_of, id_of_batch, is_superseded, tiers_from_json
from services.labeling.schema import batches, candidates, comparisons, tasks, users


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """What the figures need of a task's candidates, by position."""

    chars: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


class QualityStore:
    """Reads answers for statistics. Methods block their thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def judged_answers(self, project: str, *, batch: str = "") -> list[JudgedAnswer]:
        """The answers of a project that stand, oldest first; of one batch if it is named.

        Raises ProjectNotFoundError and BatchNotFoundError.
        """

        def work(connection: sa.Connection) -> list[JudgedAnswer]:
            owner = project_named(connection, project)
            in_scope = batches.c.project_id == owner.project_id
            if batch:
                if connection.execute(sa.select(id_of_batch(batch))).scalar_one() is None:
                    raise BatchNotFoundError(batch)
                in_scope = sa.and_(in_scope, batches.c.name == batch)
            return judged_answers(connection, in_scope)

        return self._database.read(work)


def judged_answers(
    connection: sa.Connection, of_tasks: sa.ColumnElement[bool], *conditions: sa.ColumnElement[bool]
) -> list[JudgedAnswer]:
    """The answers that stand, oldest first: those to the tasks of a condition on tasks and their batches."""
    texts = _texts_by_task(connection, of_tasks)
    researchers = _researchers(connection)
    query = (
        sa.select(comparisons, tasks.c.purpose, tasks.c.expected)
        .join(tasks, tasks.c.id == comparisons.c.task_id)
        .join(batches, batches.c.id == tasks.c.batch_id)
        .where(of_tasks, ~is_superseded(), *conditions)
        .order_by(comparisons.c.id)
    )
    return [
        _judged(row, texts[row.task_id], is_researcher=row.labeler_id in researchers)
        for row in connection.execute(query)
    ]


def _texts_by_task(connection: sa.Connection, in_scope: sa.ColumnElement[bool]) -> defaultdict[int, _Texts]:
    query = (
        sa.select(candidates.c.task_id, sa.func.length(candidates.c.text), candidates.c.source)
        .join(tasks, tasks.c.id == candidates.c.task_id)
        .join(batches, batches.c.id == tasks.c.batch_id)
        .where(in_scope)
        .order_by(candidates.c.task_id, candidates.c.position)
    )
    found: defaultdict[int, _Texts] = defaultdict(_Texts)
    for task_id, num_chars, source in connection.execute(query):
        found[task_id].chars.append(num_chars)
        found[task_id].sources.append(source)
    return found


def _researchers(connection: sa.Connection) -> set[str]:
    roles = [Role.RESEARCHER.value, Role.ADMIN.value]
    return set(connection.execute(sa.select(users.c.name).where(users.c.role.in_(roles))).scalars())


def _judged(row: sa.Row[Any], texts: _Texts, *, is_researcher: bool) -> JudgedAnswer:
    decision = decision_of(row)
    active_us: int | None = (row.telemetry or {}).get("active_us") or row.answer_duration_us
    if active_us is None and row.origin == Origin.SITE.value:
        active_us = row.answer_us - row.lease_us  # a page without JavaScript measures nothing
    return JudgedAnswer(
        comparison_id=row.id,
        task_id=row.task_id,
        labeler_id=row.labeler_id,
        is_researcher=is_researcher,
        tiers=decision.tiers if isinstance(decision, Ranking) else None,
        best_index=decision.best_index if isinstance(decision, Choice) else None,
        verdict=decision.affirmed if isinstance(decision, Verdict) else None,
        num_candidates=len(texts.chars),
        shown_order=tuple(row.shown_order),
        candidate_chars=tuple(texts.chars),
        candidate_sources=tuple(texts.sources),
        purpose=Purpose(row.purpose),
        round=row.round,
        expected_tiers=None if row.expected is None else tiers_from_json(row.expected),
        answer_us=row.answer_us,
        active_s=None if active_us is None else active_us / 1e6,
        confidence=row.confidence or None,
    )


def disagreeing_tasks(answers: Sequence[JudgedAnswer]) -> list[int]:
    """Tasks on which first answers differ, most divided first."""
    by_task: defaultdict[int, list[str]] = defaultdict(list)
    for answer in answers:
        if answer.round == 0:
            by_task[answer.task_id].append(repr((answer.tiers, answer.best_index, answer.verdict)))
    divided = {
        task_id: len(said) - max(said.count(one) for one in set(said))
        for task_id, said in by_task.items()
        if len(set(said)) > 1
    }
    return sorted(divided, key=lambda task_id: (-divided[task_id], task_id))
