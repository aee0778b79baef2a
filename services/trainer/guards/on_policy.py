"""Puts fresh samples of the policy before labelers, and brings their choices back, beside a run in training.

The PPO stage calls ``exchange`` at every update. It never waits: the labeling service is asked in a thread,
and what came back is taken up at a later update. A service that is slow or away therefore costs the run
nothing but labels; failures are logged and counted. Everything that the run must know is in ``state``, and
every submission has a request id of its own, so a run that is taken up again repeats what was cut off
without asking anything twice. What the choices mean is decided by ``people``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from andon.client.labeling import BatchSettings, LabelingClient, TaskDraft
from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.errors import AndonError, DeadlineExceededError, ResourceExhaustedError, UnavailableError

_log = structlog.stdlib.get_logger(__name__)

CALL_TIMEOUT_S = 30.0
MOST_UNSENT = 8  # submissions that wait for the service; older ones are no longer fresh and are given up
PRIORITY = 10  # before the ordinary batches of the project: the answer is wanted while the run goes on
_MAY_PASS = (UnavailableError, DeadlineExceededError, ResourceExhaustedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A pair as it goes to the labelers."""

    document: str
    first: str
    second: str
    prefers_first: bool  # the reward model's choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The questions of one update."""

    update: int
    policy_version: str | None  # as the labeling service names it
    questions: tuple[Question, ...]


@dataclass(slots=True)
class _Talk:
    """What one visit to the labeling service brought."""

    submitted: dict[int, list[str]] = field(default_factory=dict)  # update -> ids of its tasks
    refused: list[int] = field(default_factory=list)  # updates whose questions the service will never take
    answers: list[ComparisonRecord] = field(default_factory=list)
    problems: list[AndonError] = field(default_factory=list)


class OnPolicyComparisons:
    """The questions of one run."""

    def __init__(self, labeling: LabelingClient, *, run_id: str, project: str) -> None:
        self._labeling = labeling
        self._batch = f"{run_id}-on-policy"
        self._run_id = run_id
        self._project = project
        self._unsent: list[Submission] = []
        self._waiting: dict[str, bool] = {}  # task -> the reward model's choice, until the first answer
        self._cursor = 0  # the last comparison that was read
        self._new: list[bool] = []  # answers that no guard has seen
        self._counts = {"asked": 0, "agreed": 0, "disagreed": 0, "tied": 0, "failures": 0}
        self._talk: Future[_Talk] | None = None

    def ask(self, submission: Submission) -> None:
        """Have these questions submitted at the next exchange."""
        if submission.questions:
            self._unsent.append(submission)
            self._counts["asked"] += len(submission.questions)
        if len(self._unsent) > MOST_UNSENT:
            given_up = self._unsent.pop(0)
            _log.warning("people_not_asked", run_id=self._run_id, update=given_up.update, reason="too late")

    def exchange(self) -> None:
        """Take up what the labeling service answered, if it has, and ask it again."""
        if self._talk is not None:
            if not self._talk.done():
                return
            self._take_up(self._talk.result())
            self._talk = None
        if not self._unsent and not self._waiting:
            return
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="people")
        self._talk = pool.submit(self._visit, tuple(self._unsent), self._cursor)
        # Never waited for: a call that hangs ends when the run's connections are closed.
        pool.shutdown(wait=False)

    def take(self) -> tuple[bool, ...]:
        """Whether labelers agreed with the reward model: the answers since the last time, in their order."""
        new, self._new = self._new, []
        return tuple(new)

    @property
    def metrics(self) -> dict[str, float]:
        """What an update reports of it."""
        waiting = len(self._waiting) + sum(len(submission.questions) for submission in self._unsent)
        counts = {f"people_{name}": float(count) for name, count in self._counts.items()}
        return {**counts, "people_waiting": float(waiting)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint. A visit in progress is not in it: it will be made again."""
        return {
            "unsent": [asdict(submission) for submission in self._unsent],
            "waiting": dict(self._waiting),
            "cursor": self._cursor,
            "new": list(self._new),
            "counts": dict(self._counts),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self._unsent = [
            Submission(
                update=entry["update"],
                policy_version=entry["policy_version"],
                questions=tuple(Question(**question) for question in entry["questions"]),
            )
            for entry in state["unsent"]
        ]
        self._waiting = dict(state["waiting"])
        self._cursor = state["cursor"]
        self._new = list(state["new"])
        self._counts = dict(state["counts"])

    # In the thread

    def _visit(self, unsent: Sequence[Submission], cursor: int) -> _Talk:
        talk = _Talk()
        try:
            for submission in unsent:
                self._submit(submission, talk)
            for record in self._labeling.export_comparisons(
                batch=self._batch, after_comparison_id=cursor, timeout_s=CALL_TIMEOUT_S, wait_for_ready=False
            ):
                talk.answers.append(record)
        except AndonError as error:
            talk.problems.append(error)
        return talk

    def _submit(self, submission: Submission, talk: _Talk) -> None:
        try:
            talk.submitted[submission.update] = self._labeling.submit_tasks(
                [_task(question, submission) for question in submission.questions],
                batch=self._batch,
                project=self._project,
                batch_settings=BatchSettings(mode="online", priority=PRIORITY),
                request_id=f"{self._batch}-{submission.update}",
                timeout_s=CALL_TIMEOUT_S,
            )
        except _MAY_PASS:
            raise
        except AndonError as error:
            talk.refused.append(submission.update)
            talk.problems.append(error)

    # In the run's thread again

    def _take_up(self, talk: _Talk) -> None:
        for error in talk.problems:
            self._counts["failures"] += 1
            _log.warning("people_not_heard", run_id=self._run_id, reason=error.reason, message=error.message)
        for submission in self._unsent:
            task_ids = talk.submitted.get(submission.update, ())
            for task_id, question in zip(task_ids, submission.questions, strict=bool(task_ids)):
                self._waiting[task_id] = question.prefers_first
        settled = {*talk.submitted, *talk.refused}
        self._unsent = [submission for submission in self._unsent if submission.update not in settled]
        for record in talk.answers:
            self._cursor = max(self._cursor, int(record.comparison_id))
            prefers_first = self._waiting.pop(record.task_id, None)
            if prefers_first is not None:
                self._count(record, prefers_first)

    def _count(self, record: ComparisonRecord, prefers_first: bool) -> None:
        pairs = record.untied_pairs()
        if not pairs:
            self._counts["tied"] += 1
            return
        agrees = (pairs[0][0] == 0) is prefers_first
        self._new.append(agrees)
        self._counts["agreed" if agrees else "disagreed"] += 1


def _task(question: Question, submission: Submission) -> TaskDraft:
    candidates = tuple(
        CandidateRecord(text=text, source="policy", policy_version=submission.policy_version)
        for text in (question.first, question.second)
    )
    return TaskDraft(document=question.document, candidates=candidates)
