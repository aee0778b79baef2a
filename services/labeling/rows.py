"""How tasks and answers are written as rows and read back.

Only the stores call this; what the values mean is decided in ``tasks`` and ``answers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from andon.modeling.versions import ModelVersion
from services.labeling.answers import AnswerDraft, Choice, Comparison, Decision, Ranking
from services.labeling.assignment import Draws, LeaseRecord
from services.labeling.schema import batches, candidates, slots, tasks
from services.labeling.tasks import Candidate, TaskDraft

Row = dict[str, Any]  # Any: a column's value, of the type that schema.py gives it


def id_of_batch(name: str) -> sa.ScalarSelect[int]:
    """A subquery; null for a batch that does not exist, so that nothing is found."""
    return sa.select(batches.c.id).where(batches.c.name == name).scalar_subquery()


def insert_tasks(
    connection: sa.Connection, batch_id: int, drafts: Mapping[int, TaskDraft], *, draws: Draws, now_us: int
) -> None:
    """Add tasks, by id, with their candidates and their free slots."""
    connection.execute(
        sa.insert(tasks),
        [
            {
                "id": task_id,
                "batch_id": batch_id,
                "document_id": draft.document_id,
                "document": draft.document,
                "overlap_count": draft.overlap_count,
                "create_us": now_us,
            }
            for task_id, draft in drafts.items()
        ],
    )
    connection.execute(
        sa.insert(candidates),
        [
            _candidate_row(task_id, position, candidate)
            for task_id, draft in drafts.items()
            for position, candidate in enumerate(draft.candidates)
        ],
    )
    connection.execute(
        sa.insert(slots),
        [
            {
                "task_id": task_id,
                "number": number,
                "batch_id": batch_id,
                "place": place,
                "lease_id": None,
                "free_from_us": 0,
            }
            for task_id, draft in drafts.items()
            for place in (draws.task_place(task_id),)
            for number in range(draft.overlap_count)
        ],
    )


def candidates_by_task(connection: sa.Connection, task_ids: set[int]) -> dict[int, list[Candidate]]:
    """The candidates of each task in the submitter's order."""
    found: dict[int, list[Candidate]] = {task_id: [] for task_id in task_ids}
    rows = connection.execute(
        sa.select(candidates)
        .where(candidates.c.task_id.in_(sorted(task_ids)))
        .order_by(candidates.c.task_id, candidates.c.position)
    )
    for row in rows:
        written_by = (
            None
            if row.policy_family is None
            else ModelVersion(
                family=row.policy_family, version=row.policy_version, weights_sha256=row.policy_sha256
            )
        )
        found[row.task_id].append(Candidate(text=row.text, source=row.source, policy_version=written_by))
    return found


def comparison_row(
    comparison_id: int, lease: LeaseRecord, answer: AnswerDraft, decision: Decision, *, now_us: int
) -> Row:
    """A new row of ``comparisons``."""
    return {
        "id": comparison_id,
        "batch_id": lease.batch_id,
        "task_id": lease.task_id,
        "lease_id": lease.lease_id,
        "labeler_id": lease.labeler_id,
        "best_position": decision.best_index if isinstance(decision, Choice) else None,
        "tiers": [list(tier) for tier in decision.tiers] if isinstance(decision, Ranking) else None,
        "confidence": answer.confidence,
        "note": answer.note,
        "shown_order": list(lease.shown_order),
        "lease_us": lease.lease_us,
        "answer_us": now_us,
        "answer_duration_us": answer.answer_duration_us,
    }


def comparison_of(row: sa.Row[Any], texts: list[Candidate]) -> Comparison:
    """Read a row of ``comparisons`` joined with its task and batch."""
    decision: Decision
    if row.tiers is None:
        decision = Choice(best_index=row.best_position)
    else:
        decision = Ranking(tiers=tuple(tuple(tier) for tier in row.tiers))
    return Comparison(
        comparison_id=row.id,
        task_id=row.task_id,
        batch=row.batch,
        document_id=row.document_id,
        document=row.document,
        candidates=tuple(texts),
        decision=decision,
        confidence=row.confidence,
        note=row.note,
        labeler_id=row.labeler_id,
        shown_order=tuple(row.shown_order),
        lease_us=row.lease_us,
        answer_us=row.answer_us,
        answer_duration_us=row.answer_duration_us,
    )


def _candidate_row(task_id: int, position: int, candidate: Candidate) -> Row:
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
