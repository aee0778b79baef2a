"""What a researcher reads one by one: items on which people differ, and one item with all that was said.

A reviewer judges before they look: an item's answers are for whoever has answered it or has asked to see
them, and that they asked is recorded. An answer by a reviewer has a slot of its own and takes nothing from
the overlap of the task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.answers import Comparison
from services.labeling.assignment import Draws
from services.labeling.audit import record_act
from services.labeling.database import Database, lock_name
from services.labeling.errors import AnswerNotFoundError, LeaseAlreadyAnsweredError
from services.labeling.leases import Taken, lease_taken
from services.labeling.limits import Clock
from services.labeling.message_store import Message
from services.labeling.project_store import ProjectRecord, project_named
from services.labeling.quality.records import Purpose
from services.labeling.rows import (
    candidates_by_task,
    comparison_of,
    is_superseded,
    select_comparisons,
    tiers_from_json,
)
from services.labeling.schema import (
    audit_events,
    batches,
    comparisons,
    demonstrations,
    leases,
    messages,
    projects,
    skips,
    tasks,
)
from services.labeling.tasks import ONBOARDING_PURPOSES, Candidate, TaskKind, Tiers

REVIEW_POOL = "review"  # of slots that reviewers made for themselves; nobody is given work from it
_REVEAL = "item.reveal"
_IN_EARNEST = tasks.c.purpose.not_in([purpose.value for purpose in ONBOARDING_PURPOSES])


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFilter:
    """Which items are wanted; empty takes all."""

    batch: str = ""
    labeler_id: str = ""  # who has answered it
    only_flagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedItem:
    """An item on which first answers differ."""

    task_id: int
    batch: str
    document: str
    num_candidates: int
    votes: tuple[int, ...]  # how many gave each opinion, the most frequent first
    last_us: int

    @property
    def num_minority(self) -> int:
        """How many do not say what most say."""
        return sum(self.votes[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Somebody gave the item back."""

    labeler_id: str
    reason: str
    skip_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """A text that somebody wrote or edited for the item."""

    demonstration_id: int
    labeler_id: str
    text: str
    note: str
    supersedes_id: int | None
    is_superseded: bool
    answer_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewItem:
    """An item with everything that is known of it."""

    task_id: int
    project: str
    batch: str
    kind: TaskKind
    purpose: Purpose
    overlap_count: int  # 0: everybody answers it
    document_id: str
    document: str
    candidates: tuple[Candidate, ...]
    expected: Tiers | None
    explanation: str
    create_us: int
    blind_order: tuple[int, ...]  # in which this reviewer sees the candidates
    answers: tuple[Comparison, ...]  # corrected ones too, oldest first
    texts: tuple[WrittenText, ...]
    skips: tuple[Skip, ...]
    reveal_us: int | None  # when this reviewer asked to see the answers
    has_skipped: bool  # this reviewer gave it back

    def own_answer_us(self, reviewer: str) -> int | None:
        """When this reviewer first answered it themselves."""
        moments = [answer.answer_us for answer in self.answers if answer.labeler_id == reviewer]
        moments += [text.answer_us for text in self.texts if text.labeler_id == reviewer]
        return min(moments, default=None)


class ReviewStore:
    """A researcher's view of items. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def divided_items(
        self, project: str, wanted: ItemFilter, *, offset: int = 0, limit: int = 25
    ) -> list[DividedItem]:
        """Items on which first answers differ, the most divided first. Raises ProjectNotFoundError."""

        def work(connection: sa.Connection) -> list[DividedItem]:
            owner = project_named(connection, project)
            said = (
                sa.select(comparisons.c.task_id, comparisons.c.answer_us, _opinion().label("opinion"))
                .join(tasks, tasks.c.id == comparisons.c.task_id)
                .where(
                    comparisons.c.round == 0,
                    ~is_superseded(),
                    _IN_EARNEST,
                    *answers_of(owner, wanted),
                )
                .subquery()
            )
            opinions = (
                sa.select(
                    said.c.task_id,
                    sa.func.count().label("number"),
                    sa.func.max(said.c.answer_us).label("last_us"),
                )
                .group_by(said.c.task_id, said.c.opinion)
                .subquery()
            )
            minority = sa.func.sum(opinions.c.number) - sa.func.max(opinions.c.number)
            divided = (
                sa.select(opinions.c.task_id, sa.func.max(opinions.c.last_us).label("last_us"))
                .group_by(opinions.c.task_id)
                .having(sa.func.count() > 1)
                .order_by(minority.desc(), opinions.c.task_id)
                .offset(offset)
                .limit(limit)
            )
            found = connection.execute(divided).all()
            ids = [row.task_id for row in found]
            votes: defaultdict[int, list[int]] = defaultdict(list)
            for row in connection.execute(sa.select(opinions).where(opinions.c.task_id.in_(ids))):
                votes[row.task_id].append(row.number)
            texts = candidates_by_task(connection, set(ids))
            about = {row.id: row for row in connection.execute(_select_tasks().where(tasks.c.id.in_(ids)))}
            return [
                DividedItem(
                    task_id=row.task_id,
                    batch=about[row.task_id].batch,
                    document=about[row.task_id].document,
                    num_candidates=len(texts[row.task_id]),
                    votes=tuple(sorted(votes[row.task_id], reverse=True)),
                    last_us=row.last_us,
                )
                for row in found
            ]

        return self._database.read(work)

    def item(self, project: str, task_id: int, *, reviewer: str) -> ReviewItem:
        """One item. Raises AnswerNotFoundError for one that is not in the project."""

        def work(connection: sa.Connection) -> ReviewItem:
            row = _task(connection, project, task_id)
            texts = candidates_by_task(connection, {task_id})[task_id]
            own_lease = connection.execute(
                sa.select(leases.c.shown_order, leases.c.is_skipped).where(
                    leases.c.task_id == task_id, leases.c.labeler_id == reviewer, leases.c.round == 0
                )
            ).one_or_none()
            if own_lease is not None and own_lease.shown_order:
                order = tuple(own_lease.shown_order)
            else:
                drawn = Draws(seed=f"{self._database.seed}\n{reviewer}")
                order = drawn.shown_order(task_id, 0, len(texts))
            answers = connection.execute(
                select_comparisons().where(comparisons.c.task_id == task_id).order_by(comparisons.c.id)
            )
            return ReviewItem(
                task_id=task_id,
                project=project,
                batch=row.batch,
                kind=TaskKind(row.kind),
                purpose=Purpose(row.purpose),
                overlap_count=row.overlap_count,
                document_id=row.document_id,
                document=row.document,
                candidates=tuple(texts),
                expected=None if row.expected is None else tiers_from_json(row.expected),
                explanation=row.explanation,
                create_us=row.create_us,
                blind_order=order,
                answers=tuple(comparison_of(answer, texts) for answer in answers),
                texts=_written_texts(connection, task_id),
                skips=_skips(connection, task_id),
                reveal_us=_reveal_us(connection, _item_name(project, task_id), reviewer),
                has_skipped=own_lease is not None and bool(own_lease.is_skipped),
            )

        return self._database.read(work)

    def reveal(self, project: str, task_id: int, *, reviewer: str) -> None:
        """Note that a reviewer looks at the answers before giving their own."""

        def work(connection: sa.Connection) -> None:
            _task(connection, project, task_id)
            name = _item_name(project, task_id)
            if _reveal_us(connection, name, reviewer) is None:
                record_act(connection, actor=reviewer, action=_REVEAL, subject=name, now_us=self._clock())

        self._database.write(work)

    def lease_for_review(self, project: str, task_id: int, *, reviewer: str, duration_us: int) -> str:
        """A lease of the item for a reviewer's own answer; its id.

        Raises AnswerNotFoundError, and LeaseAlreadyAnsweredError where the reviewer has answered or skipped.
        """

        def work(connection: sa.Connection) -> str:
            _task(connection, project, task_id)
            lock_name(connection, "labeler", reviewer)
            now_us = self._clock()
            own = connection.execute(
                sa.select(leases).where(
                    leases.c.task_id == task_id, leases.c.labeler_id == reviewer, leases.c.round == 0
                )
            ).one_or_none()
            if own is not None and (own.is_answered or own.is_skipped):
                raise LeaseAlreadyAnsweredError(own.id)
            if own is not None and own.expire_us > now_us:
                return str(own.id)
            lease_taken(
                connection,
                reviewer,
                [Taken(task_id=task_id, pool=REVIEW_POOL)],
                duration_us=duration_us,
                draws=Draws(seed=self._database.seed),
                max_text_chars=0,
                now_us=now_us,
            )
            return str(
                connection.execute(
                    sa.select(leases.c.id).where(
                        leases.c.task_id == task_id, leases.c.labeler_id == reviewer, leases.c.round == 0
                    )
                ).scalar_one()
            )

        return self._database.write(work)

    def threads_of_item(self, project: str, task_id: int) -> dict[str, list[Message]]:
        """What was said about an item, by the labeler whose thread it is."""

        def work(connection: sa.Connection) -> dict[str, list[Message]]:
            _task(connection, project, task_id)
            found: defaultdict[str, list[Message]] = defaultdict(list)
            query = sa.select(messages).where(messages.c.task_id == task_id).order_by(messages.c.id)
            for row in connection.execute(query):
                found[row.labeler_id].append(
                    Message(message_id=row.id, author=row.author, text=row.text, create_us=row.create_us)
                )
            return dict(found)

        return self._database.read(work)


def _opinion() -> sa.ColumnElement[str]:
    """A decision as a text that is the same for the same opinion; a pair's choice is its ranking."""
    tiers = sa.func.replace(sa.cast(comparisons.c.tiers, sa.Text), " ", "")
    best = sa.literal("best ") + sa.cast(comparisons.c.best_position, sa.Text)
    return sa.case(
        (tiers == "[[0],[1]]", "best 0"),
        (tiers == "[[1],[0]]", "best 1"),
        (comparisons.c.tiers.is_not(None), tiers),
        (comparisons.c.verdict.is_(True), "yes"),
        (comparisons.c.verdict.is_(False), "no"),
        else_=best,
    )


def answers_of(owner: ProjectRecord, wanted: ItemFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions on ``comparisons`` for the items of a project that are wanted."""
    own_batches = sa.select(batches.c.id).where(batches.c.project_id == owner.project_id)
    if wanted.batch:
        own_batches = own_batches.where(batches.c.name == wanted.batch)
    conditions: list[sa.ColumnElement[bool]] = [comparisons.c.batch_id.in_(own_batches)]
    other = comparisons.alias("other")
    if wanted.labeler_id:
        conditions.append(
            comparisons.c.task_id.in_(
                sa.select(other.c.task_id).where(other.c.labeler_id == wanted.labeler_id)
            )
        )
    if wanted.only_flagged:
        conditions.append(
            comparisons.c.task_id.in_(
                sa.select(other.c.task_id).where(sa.cast(other.c.ratings, sa.Text).like('%"flags"%'))
            )
        )
    return conditions


def _select_tasks() -> sa.Select[Any]:
    return (
        sa.select(tasks, batches.c.name.label("batch"), projects.c.name.label("project"))
        .join(batches, batches.c.id == tasks.c.batch_id)
        .join(projects, projects.c.id == batches.c.project_id)
    )


def _task(connection: sa.Connection, project: str, task_id: int) -> sa.Row[Any]:
    row = connection.execute(
        _select_tasks().where(tasks.c.id == task_id, projects.c.name == project)
    ).one_or_none()
    if row is None:
        raise AnswerNotFoundError(task_id)
    return row


def _written_texts(connection: sa.Connection, task_id: int) -> tuple[WrittenText, ...]:
    rows: Sequence[sa.Row[Any]] = connection.execute(
        sa.select(demonstrations).where(demonstrations.c.task_id == task_id).order_by(demonstrations.c.id)
    ).all()
    rewritten = {row.supersedes_id for row in rows}
    return tuple(
        WrittenText(
            demonstration_id=row.id,
            labeler_id=row.labeler_id,
            text=row.text,
            note=row.note,
            supersedes_id=row.supersedes_id,
            is_superseded=row.id in rewritten,
            answer_us=row.answer_us,
        )
        for row in rows
    )


def _skips(connection: sa.Connection, task_id: int) -> tuple[Skip, ...]:
    query = (
        sa.select(leases.c.labeler_id, skips.c.reason, skips.c.skip_us)
        .join(leases, leases.c.id == skips.c.lease_id)
        .where(leases.c.task_id == task_id)
        .order_by(skips.c.skip_us)
    )
    return tuple(
        Skip(labeler_id=row.labeler_id, reason=row.reason, skip_us=row.skip_us)
        for row in connection.execute(query)
    )


def _item_name(project: str, task_id: int) -> str:
    return f"{project}/item-{task_id}"


def _reveal_us(connection: sa.Connection, name: str, reviewer: str) -> int | None:
    moment: int | None = connection.execute(
        sa.select(sa.func.min(audit_events.c.event_us)).where(
            audit_events.c.action == _REVEAL,
            audit_events.c.subject == name,
            audit_events.c.actor == reviewer,
        )
    ).scalar_one()
    return moment
