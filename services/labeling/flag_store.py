"""Which flagged candidates wait for a researcher. A flag asks for a look and never deletes anything.

That a researcher has dealt with a flagged answer is an act in the audit trail; the answer stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.answers import Comparison, Flag
from services.labeling.audit import record_act
from services.labeling.database import Database
from services.labeling.errors import AnswerNotFoundError
from services.labeling.limits import MAX_NOTE_CHARS, Clock, check_text
from services.labeling.project_store import project_named
from services.labeling.review_store import ItemFilter, answers_of
from services.labeling.rows import candidates_by_task, comparison_of, is_superseded, select_comparisons
from services.labeling.schema import audit_events, batches, comparisons, projects

_FLAG_SEEN = "flag.seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagFilter:
    """Which flagged answers are wanted; empty takes all."""

    batch: str = ""
    flag: Flag | None = None
    with_seen: bool = False  # also those that a researcher has dealt with


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedAnswer:
    """An answer that asks for a look at a candidate."""

    answer: Comparison
    seen_by: str  # the researcher who has dealt with it, or empty
    seen_note: str


class FlagStore:
    """Flagged answers in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def flagged_answers(
        self, project: str, wanted: FlagFilter, *, before_id: int | None = None, limit: int = 25
    ) -> list[FlaggedAnswer]:
        """Answers that stand and flag a candidate, newest first. Raises ProjectNotFoundError."""

        def work(connection: sa.Connection) -> list[FlaggedAnswer]:
            owner = project_named(connection, project)
            # The names of flags stand in the JSON between quotes; what people wrote has its quotes escaped.
            pattern = '%"flags"%' if wanted.flag is None else f'%"{wanted.flag.value}"%'
            query = (
                select_comparisons()
                .where(
                    *answers_of(owner, ItemFilter(batch=wanted.batch)),
                    ~is_superseded(),
                    sa.cast(comparisons.c.ratings, sa.Text).like(pattern),
                )
                .order_by(comparisons.c.id.desc())
                .limit(limit)
            )
            if not wanted.with_seen:
                subject = sa.literal(_answer_name(project, "")) + sa.cast(comparisons.c.id, sa.Text)
                seen = sa.select(audit_events.c.subject).where(audit_events.c.action == _FLAG_SEEN)
                query = query.where(subject.not_in(seen))
            if before_id is not None:
                query = query.where(comparisons.c.id < before_id)
            rows = connection.execute(query).all()
            texts = candidates_by_task(connection, {row.task_id for row in rows})
            acts = {
                row.subject: row
                for row in connection.execute(
                    sa.select(audit_events).where(
                        audit_events.c.action == _FLAG_SEEN,
                        audit_events.c.subject.in_([_answer_name(project, row.id) for row in rows]),
                    )
                )
            }
            found = []
            for row in rows:
                act = acts.get(_answer_name(project, row.id))
                found.append(
                    FlaggedAnswer(
                        answer=comparison_of(row, texts[row.task_id]),
                        seen_by="" if act is None else act.actor,
                        seen_note="" if act is None else str(act.detail.get("note", "")),
                    )
                )
            return found

        return self._database.read(work)

    def note_seen(self, project: str, comparison_id: int, *, reviewer: str, note: str) -> None:
        """Take a flagged answer from the queue. Raises AnswerNotFoundError."""
        check_text(note, field="note", max_chars=MAX_NOTE_CHARS)

        def work(connection: sa.Connection) -> None:
            query = (
                sa.select(comparisons.c.id)
                .join(batches, batches.c.id == comparisons.c.batch_id)
                .join(projects, projects.c.id == batches.c.project_id)
                .where(comparisons.c.id == comparison_id, projects.c.name == project)
            )
            if connection.execute(query).one_or_none() is None:
                raise AnswerNotFoundError(comparison_id)
            record_act(
                connection,
                actor=reviewer,
                action=_FLAG_SEEN,
                subject=_answer_name(project, comparison_id),
                detail={"note": note},
                now_us=self._clock(),
            )

        self._database.write(work)


def _answer_name(project: str, comparison_id: int | str) -> str:
    return f"{project}/answer-{comparison_id}"
