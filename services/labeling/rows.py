"""How tasks and answers are written as rows and read back.

Only the stores call this; what the values mean is decided in ``tasks`` and ``answers``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from andon.modeling.versions import ModelVersion
from services.labeling.answers import (
    AXES,
    AnswerDraft,
    Choice,
    Comparison,
    Decision,
    Flag,
    Origin,
    Ranking,
    Rating,
    Telemetry,
    Verdict,
)
from services.labeling.assignment import Draws, LeaseRecord
from services.labeling.quality.records import Purpose
from services.labeling.schema import batches, candidates, comparisons, projects, slots, tasks
from services.labeling.tasks import Candidate, TaskDraft

Row = dict[str, Any]  # Any: a column's value, of the type that schema.py gives it


def id_of_batch(name: str) -> sa.ScalarSelect[int]:
    """A subquery; null for a batch that does not exist, so that nothing is found."""
    return sa.select(batches.c.id).where(batches.c.name == name).scalar_subquery()


def id_of_project(name: str) -> sa.ScalarSelect[int]:
    """A subquery; null for a project that does not exist, so that nothing is found."""
    return sa.select(projects.c.id).where(projects.c.name == name).scalar_subquery()


def is_superseded() -> sa.Exists:
    """Whether a later row of ``comparisons`` corrects this one."""
    later = comparisons.alias("later")
    return sa.exists().where(later.c.supersedes_id == comparisons.c.id)


def insert_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert many rows that name the same columns, in one round trip."""
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(sa.insert(table), list(rows))
        return
    # As one value, because binding each value of each row costs several times more than the insert itself.
    names = ", ".join(rows[0])
    connection.execute(
        sa.text(
            f"INSERT INTO {table.name} ({names})"
            f" SELECT {names} FROM json_populate_recordset(NULL::{table.name}, CAST(:rows AS JSON))"
        ),
        {"rows": json.dumps(rows, ensure_ascii=False)},
    )


def is_one_of(dialect: str, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """Whether a column has one of the values that the list parameter ``name`` gives.

    PostgreSQL gets them as one value, so that their number does not make another statement, which it would
    have to read and plan anew.
    """
    if dialect == "postgresql":
        return column == sa.any_(sa.bindparam(name, type_=ARRAY(column.type)))
    return column.in_(sa.bindparam(name, expanding=True, type_=column.type))


def insert_tasks(
    connection: sa.Connection, batch_id: int, drafts: Mapping[int, TaskDraft], *, draws: Draws, now_us: int
) -> None:
    """Add tasks, by id, with their candidates and their free slots.

    A task for everybody has none; it gets one for each labeler who comes to it.
    """
    insert_rows(
        connection,
        tasks,
        [
            {
                "id": task_id,
                "batch_id": batch_id,
                "document_id": draft.document_id,
                "document": draft.document,
                "overlap_count": 0 if draft.is_for_everybody else draft.overlap_count,
                "kind": draft.kind.value,
                "purpose": draft.purpose.value,
                "place": draws.task_place(task_id),
                "expected": draft.expected,
                "explanation": draft.explanation,
                "content_sha256": None,
                "create_us": now_us,
            }
            for task_id, draft in drafts.items()
        ],
    )
    insert_rows(
        connection,
        candidates,
        [
            candidate_row(task_id, position, candidate)
            for task_id, draft in drafts.items()
            for position, candidate in enumerate(draft.candidates)
        ],
    )
    insert_rows(
        connection,
        slots,
        [
            {
                "task_id": task_id,
                "number": number,
                "batch_id": batch_id,
                "purpose": draft.purpose.value,
                "place": place,
                "lease_id": None,
                "free_from_us": 0,
            }
            for task_id, draft in drafts.items()
            if not draft.is_for_everybody
            for place in (draws.task_place(task_id),)
            for number in range(draft.overlap_count)
        ],
    )


def candidates_by_task(connection: sa.Connection, task_ids: set[int]) -> dict[int, list[Candidate]]:
    """The candidates of each task in the submitter's order."""
    found: dict[int, list[Candidate]] = {task_id: [] for task_id in task_ids}
    query = _select_candidates(connection.dialect.name)
    for row in connection.execute(query, {"task_ids": sorted(task_ids)}):
        written_by = (
            None
            if row.policy_family is None
            else ModelVersion(
                family=row.policy_family, version=row.policy_version, weights_sha256=row.policy_sha256
            )
        )
        found[row.task_id].append(Candidate(text=row.text, source=row.source, policy_version=written_by))
    return found


@functools.cache
def _select_candidates(dialect: str) -> sa.Select[Any]:
    return (
        sa.select(candidates)
        .where(is_one_of(dialect, candidates.c.task_id, "task_ids"))
        .order_by(candidates.c.task_id, candidates.c.position)
    )


def comparison_row(
    comparison_id: int,
    lease: LeaseRecord,
    answer: AnswerDraft,
    *,
    origin: Origin,
    supersedes_id: int | None,
    now_us: int,
) -> Row:
    """A new row of ``comparisons``; the answer is in the submitter's order already."""
    return {
        "id": comparison_id,
        "batch_id": lease.batch_id,
        "task_id": lease.task_id,
        "lease_id": lease.lease_id,
        "labeler_id": lease.labeler_id,
        "round": lease.round,
        "supersedes_id": supersedes_id,
        "origin": origin.value,
        **decision_columns(answer.decision),
        "preference": answer.preference,
        "confidence": answer.confidence,
        "ratings": ratings_to_json(answer.ratings),
        "note": answer.note,
        "shown_order": list(lease.shown_order),
        "lease_us": lease.lease_us,
        "answer_us": now_us,
        "answer_duration_us": answer.answer_duration_us,
        "telemetry": telemetry_to_json(answer.telemetry),
    }


def decision_columns(decision: Decision | None) -> Row:
    """A decision as the three columns of which one is set."""
    return {
        "best_position": decision.best_index if isinstance(decision, Choice) else None,
        "tiers": [list(tier) for tier in decision.tiers] if isinstance(decision, Ranking) else None,
        "verdict": decision.affirmed if isinstance(decision, Verdict) else None,
    }


def decision_of(row: sa.Row[Any]) -> Decision:
    """Read the three columns."""
    if row.tiers is not None:
        return Ranking(tiers=tiers_from_json(row.tiers))
    if row.verdict is not None:
        return Verdict(affirmed=row.verdict)
    return Choice(best_index=row.best_position)


def tiers_from_json(value: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Tiers as the database keeps them."""
    return tuple(tuple(tier) for tier in value)


def select_comparisons() -> sa.Select[Any]:
    """Rows that :func:`comparison_of` reads."""
    return (
        sa.select(
            comparisons,
            tasks.c.document_id,
            tasks.c.document,
            tasks.c.purpose,
            batches.c.name.label("batch"),
            projects.c.name.label("project"),
            is_superseded().label("is_superseded"),
        )
        .join(tasks, tasks.c.id == comparisons.c.task_id)
        .join(batches, batches.c.id == comparisons.c.batch_id)
        .join(projects, projects.c.id == batches.c.project_id)
    )


def comparison_of(row: sa.Row[Any], texts: list[Candidate]) -> Comparison:
    """Read a row of :func:`select_comparisons`."""
    return Comparison(
        comparison_id=row.id,
        task_id=row.task_id,
        project=row.project,
        batch=row.batch,
        purpose=Purpose(row.purpose),
        document_id=row.document_id,
        document=row.document,
        candidates=tuple(texts),
        decision=decision_of(row),
        confidence=row.confidence,
        preference=row.preference,
        ratings=ratings_from_json(row.ratings),
        note=row.note,
        labeler_id=row.labeler_id,
        round=row.round,
        supersedes_id=row.supersedes_id,
        is_superseded=row.is_superseded,
        origin=Origin(row.origin),
        shown_order=tuple(row.shown_order),
        lease_us=row.lease_us,
        answer_us=row.answer_us,
        answer_duration_us=row.answer_duration_us,
        telemetry=telemetry_from_json(row.telemetry),
    )


def ratings_to_json(ratings: tuple[Rating, ...]) -> list[Row] | None:
    """Ratings by position; what was not asked is left out."""
    if not ratings:
        return None
    return [
        {
            **{axis: getattr(rating, axis) for axis in AXES if getattr(rating, axis) is not None},
            **({"flags": [flag.value for flag in rating.flags]} if rating.flags else {}),
            **({"naive_reading": rating.naive_reading} if rating.naive_reading else {}),
        }
        for rating in ratings
    ]


def ratings_from_json(value: list[Row] | None) -> tuple[Rating, ...]:
    """Read what :func:`ratings_to_json` wrote."""
    return tuple(
        Rating(
            **{axis: rating.get(axis) for axis in AXES},
            flags=tuple(Flag(flag) for flag in rating.get("flags", ())),
            naive_reading=rating.get("naive_reading", ""),
        )
        for rating in value or ()
    )


def telemetry_to_json(telemetry: Telemetry | None) -> Row | None:
    """How an answer came about, as one JSON object."""
    return None if telemetry is None else dataclasses.asdict(telemetry)


def telemetry_from_json(value: Row | None) -> Telemetry | None:
    """Read what :func:`telemetry_to_json` wrote."""
    return None if value is None else Telemetry(**{**value, "aids": tuple(value["aids"])})


def candidate_row(task_id: int, position: int, candidate: Candidate) -> Row:
    """A new row of ``candidates``."""
    written_by = candidate.policy_version
    return {
        "task_id": task_id,
        "position": position,
        "text": candidate.text,
        "source": candidate.source,
        "policy_family": written_by.family if written_by else None,
        "policy_version": written_by.version if written_by else None,
        "policy_sha256": written_by.weights_sha256 if written_by else None,
    }
