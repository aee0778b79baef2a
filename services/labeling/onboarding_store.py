"""How a labeler comes into a project: training with feedback, then a screening, then the decision.

Which answers are good enough is the rule of :mod:`services.labeling.quality.admission`; here is which items a
labeler gets, how far they are, and what was decided. One row of ``admissions`` stands for each attempt.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.assignment import Draws
from services.labeling.audit import record_act
from services.labeling.database import Database, lock_name
from services.labeling.limits import Clock
from services.labeling.project_store import ProjectRecord, project_named
from services.labeling.quality.admission import (
    Admission,
    AdmissionThresholds,
    Outcome,
    decide_admission,
)
from services.labeling.quality.gold import share_right
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality_store import judged_answers
from services.labeling.schema import admissions, batches, comparisons, projects, tasks

_RIGHT = 1.0 - 1e-12


class Stage(enum.Enum):
    """Where a labeler stands in a project."""

    NOT_NEEDED = "not_needed"  # the project asks for nothing
    NOT_READY = "not_ready"  # the project asks for a screening and has no items for it
    TRAINING = "training"
    SCREENING = "screening"
    ADMITTED = "admitted"
    MAY_RETRY = "may_retry"  # not admitted, and may take the screening again
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnboardingStep:
    """What comes next for a labeler."""

    stage: Stage
    attempt: int = 1
    task_id: int | None = None  # the item to answer, in TRAINING and SCREENING
    item: int = 0  # its number, from 1
    num_items: int = 0  # of this stage
    admission: Admission | None = None  # how the last screening went, where there was one


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRecord:
    """An attempt as a researcher sees it."""

    labeler_id: str
    attempt: int
    stage: Stage
    num_answered: int
    num_right: int
    mean_item_s: float | None
    start_us: int
    decide_us: int | None
    decided_by: str


class OnboardingStore:
    """Attempts in a database. Methods block their thread."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def advance(self, project: str, labeler_id: str) -> OnboardingStep:
        """What comes next; begins the first attempt, and decides a screening that is complete."""

        def work(connection: sa.Connection) -> OnboardingStep:
            lock_name(connection, "onboarding", project, labeler_id)
            return self._advance(connection, project_named(connection, project), labeler_id)

        return self._database.write(work)

    def retry(self, project: str, labeler_id: str) -> OnboardingStep:
        """Begin another attempt where one is left; else as :meth:`advance`."""

        def work(connection: sa.Connection) -> OnboardingStep:
            lock_name(connection, "onboarding", project, labeler_id)
            owner = project_named(connection, project)
            step = self._advance(connection, owner, labeler_id)
            if step.stage is Stage.MAY_RETRY:
                self._begin(connection, owner, labeler_id, step.attempt + 1)
                step = self._advance(connection, owner, labeler_id)
            return step

        return self._database.write(work)

    def overrule(self, project: str, labeler_id: str, *, admit: bool, actor: str) -> None:
        """Let a labeler in, or keep them out, whatever the screening said."""

        def work(connection: sa.Connection) -> None:
            lock_name(connection, "onboarding", project, labeler_id)
            owner = project_named(connection, project)
            now_us = self._clock()
            last = _last_attempt(connection, owner.project_id, labeler_id)
            connection.execute(
                sa.insert(admissions).values(
                    project_id=owner.project_id,
                    labeler_id=labeler_id,
                    attempt=1 if last is None else last.attempt + 1,
                    state=(Stage.ADMITTED if admit else Stage.FAILED).value,
                    screening_task_ids=[],
                    num_answered=0,
                    num_right=0,
                    mean_item_s=None,
                    start_us=now_us,
                    decide_us=now_us,
                    decided_by=actor,
                )
            )
            record_act(
                connection,
                actor=actor,
                action="labeler.admit" if admit else "labeler.refuse",
                subject=f"{project}/{labeler_id}",
                now_us=now_us,
            )

        self._database.write(work)

    def attempts(self, project: str) -> list[AdmissionRecord]:
        """All attempts in a project, by labeler."""

        def work(connection: sa.Connection) -> list[AdmissionRecord]:
            query = (
                sa.select(admissions)
                .join(projects, projects.c.id == admissions.c.project_id)
                .where(projects.c.name == project)
                .order_by(admissions.c.labeler_id, admissions.c.attempt)
            )
            return [
                AdmissionRecord(
                    labeler_id=row.labeler_id,
                    attempt=row.attempt,
                    stage=Stage(row.state),
                    num_answered=row.num_answered,
                    num_right=row.num_right,
                    mean_item_s=row.mean_item_s,
                    start_us=row.start_us,
                    decide_us=row.decide_us,
                    decided_by=row.decided_by,
                )
                for row in connection.execute(query)
            ]

        return self._database.read(work)

    def _advance(self, connection: sa.Connection, project: ProjectRecord, labeler_id: str) -> OnboardingStep:
        wanted = project.settings.onboarding
        if not wanted.is_needed:
            return OnboardingStep(stage=Stage.NOT_NEEDED)
        last = _last_attempt(connection, project.project_id, labeler_id)
        if last is None:
            if not self._begin(connection, project, labeler_id, 1):
                return OnboardingStep(stage=Stage.NOT_READY)
            last = _last_attempt(connection, project.project_id, labeler_id)
            if last is None:
                raise RuntimeError("the attempt that was begun is gone")
        stage = Stage(last.state)
        if stage is Stage.TRAINING:
            items = self._items(connection, project, labeler_id, Purpose.TRAINING)
            done = _answered(connection, labeler_id, items, round_number=0)
            num_items = min(wanted.training_count, len(items))
            if len(done) < num_items:
                task_id = next(task_id for task_id in items if task_id not in done)
                return OnboardingStep(
                    stage=stage,
                    attempt=last.attempt,
                    task_id=task_id,
                    item=len(done) + 1,
                    num_items=num_items,
                )
            stage = Stage.SCREENING if last.screening_task_ids else Stage.ADMITTED
            self._set(connection, last, state=stage.value)
        if stage is Stage.SCREENING:
            items = list(last.screening_task_ids)
            done = _answered(connection, labeler_id, items, round_number=last.attempt - 1)
            if len(done) < len(items):
                task_id = next(task_id for task_id in items if task_id not in done)
                return OnboardingStep(
                    stage=stage,
                    attempt=last.attempt,
                    task_id=task_id,
                    item=len(done) + 1,
                    num_items=len(items),
                )
            admission = self._decide(connection, project, labeler_id, last)
            return _step_of(admission, last.attempt)
        if stage is Stage.FAILED and last.decided_by == "rule" and last.attempt < wanted.max_attempts:
            return OnboardingStep(stage=Stage.MAY_RETRY, attempt=last.attempt)
        return OnboardingStep(stage=stage, attempt=last.attempt)

    def _begin(
        self, connection: sa.Connection, project: ProjectRecord, labeler_id: str, attempt: int
    ) -> bool:
        """Write a new attempt; False where the project lacks the items it asks for."""
        wanted = project.settings.onboarding
        screening = self._items(connection, project, labeler_id, Purpose.SCREENING)
        if wanted.screening_count > 0 and not screening:
            return False
        # Another attempt gets other items as long as there are some.
        first = (attempt - 1) * wanted.screening_count
        chosen = [
            screening[index % len(screening)]
            for index in range(first, first + min(wanted.screening_count, len(screening)))
        ]
        connection.execute(
            sa.insert(admissions).values(
                project_id=project.project_id,
                labeler_id=labeler_id,
                attempt=attempt,
                state=(Stage.TRAINING if attempt == 1 else Stage.SCREENING).value,
                screening_task_ids=chosen,
                num_answered=0,
                num_right=0,
                mean_item_s=None,
                start_us=self._clock(),
                decide_us=None,
                decided_by="rule",
            )
        )
        return True

    def _decide(
        self, connection: sa.Connection, project: ProjectRecord, labeler_id: str, last: sa.Row[Any]
    ) -> Admission:
        wanted = project.settings.onboarding
        answers = screening_answers(connection, labeler_id, last)
        admission = decide_admission(
            answers,
            thresholds=AdmissionThresholds(
                min_share_right=wanted.min_agreement,
                max_mean_s=wanted.max_item_s,
                max_attempts=wanted.max_attempts,
            ),
            attempt=min(last.attempt, wanted.max_attempts),
        )
        self._set(
            connection,
            last,
            state=(Stage.ADMITTED if admission.outcome is Outcome.ADMITTED else Stage.FAILED).value,
            num_answered=admission.num_items,
            num_right=sum((share_right(answer) or 0.0) >= _RIGHT for answer in answers),
            mean_item_s=admission.mean_s,
            decide_us=self._clock(),
        )
        return admission

    def _set(self, connection: sa.Connection, attempt: sa.Row[Any], **values: object) -> None:
        connection.execute(
            sa.update(admissions)
            .where(
                admissions.c.project_id == attempt.project_id,
                admissions.c.labeler_id == attempt.labeler_id,
                admissions.c.attempt == attempt.attempt,
            )
            .values(**values)
        )

    def _items(
        self, connection: sa.Connection, project: ProjectRecord, labeler_id: str, purpose: Purpose
    ) -> list[int]:
        """The project's items of a purpose, in the labeler's order."""
        start = Draws(seed=self._database.seed).labeler_start(labeler_id)
        query = (
            sa.select(tasks.c.id)
            .join(batches, batches.c.id == tasks.c.batch_id)
            .where(tasks.c.purpose == purpose.value, batches.c.project_id == project.project_id)
            .order_by(sa.case((tasks.c.place >= start, 0), else_=1), tasks.c.place, tasks.c.id)
        )
        return list(connection.execute(query).scalars())


def screening_answers(connection: sa.Connection, labeler_id: str, attempt: sa.Row[Any]) -> list[JudgedAnswer]:
    """The labeler's answers to the screening items of one attempt."""
    return judged_answers(
        connection,
        tasks.c.id.in_(attempt.screening_task_ids),
        comparisons.c.labeler_id == labeler_id,
        comparisons.c.round == attempt.attempt - 1,
    )


def _step_of(admission: Admission, attempt: int) -> OnboardingStep:
    stage = {
        Outcome.ADMITTED: Stage.ADMITTED,
        Outcome.MAY_RETRY: Stage.MAY_RETRY,
        Outcome.FAILED: Stage.FAILED,
    }[admission.outcome]
    return OnboardingStep(stage=stage, attempt=attempt, admission=admission)


def _last_attempt(connection: sa.Connection, project_id: int, labeler_id: str) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(admissions)
        .where(admissions.c.project_id == project_id, admissions.c.labeler_id == labeler_id)
        .order_by(admissions.c.attempt.desc())
        .limit(1)
    ).one_or_none()


def _answered(
    connection: sa.Connection, labeler_id: str, task_ids: list[int], *, round_number: int
) -> set[int]:
    """Which of the tasks the labeler has answered in a round."""
    query = sa.select(comparisons.c.task_id).where(
        comparisons.c.labeler_id == labeler_id,
        comparisons.c.task_id.in_(task_ids),
        comparisons.c.round == round_number,
    )
    return set(connection.execute(query).scalars())
