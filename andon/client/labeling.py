"""The labeling service as a client sees it: tasks in, leases and answers, comparisons out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import Message

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id, token_or_default
from andon.corpus.records import CandidateRecord, ComparisonRecord, RatingRecord, TelemetryRecord
from andon.errors import UnavailableError
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import (
    duration_to_seconds,
    model_version_to_proto,
    seconds_to_duration,
    timestamp_to_datetime,
)

MAX_TASKS_PER_CALL = 1000
MAX_STREAM_BREAKS = 5  # in a row, without one comparison in between


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDraft:
    """A document with 2 to 9 candidates to compare."""

    document: str
    candidates: tuple[CandidateRecord, ...]
    document_id: str = ""
    overlap: int = 1  # how many labelers answer it


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTask:
    """A task as one labeler sees it: blind, in an order of their own."""

    lease_id: str
    document: str
    candidates: tuple[str, ...]
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDraft:
    """A decision about one leased task: either the best candidate or a ranking of all of them."""

    lease_id: str
    best_index: int | None = None  # into LeasedTask.candidates
    tiers: tuple[tuple[int, ...], ...] | None = None  # best first; candidates of one tier are tied
    confidence: int = 0  # 1 (a guess) to 9 (certain); 0 when not asked
    note: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelingProgress:
    """How far a batch is."""

    task_count: int
    slot_count: int  # answers wanted
    answer_count: int
    lease_count: int  # open now
    labeler_count: int


class LabelingClient(ServiceConnection):
    """Calls the labeling service."""

    def __init__(
        self, target: str, *, options: ChannelOptions | None = None, token: str | None = None
    ) -> None:
        """``token`` is the bearer token; ANDON_TOKEN when left out."""
        super().__init__(
            target,
            service_name="andon.api.labeling.v1.LabelingService",
            options=options,
            token=token_or_default(token),
        )
        self._stub = labeling_grpc.LabelingServiceStub(self.channel)

    def submit_tasks(
        self,
        tasks: Sequence[TaskDraft],
        *,
        batch: str,
        request_id: str | None = None,
        timeout_s: float = 120.0,
        wait_for_ready: bool = False,
    ) -> list[str]:
        """Adds tasks to a batch and returns their ids, in order.

        Many tasks go out as several calls. With a ``request_id`` of the caller's own the whole submission may
        be repeated after a failure: each part's id is derived from it.
        """
        base_id = request_id or new_request_id()
        task_ids: list[str] = []
        for part, start in enumerate(range(0, max(1, len(tasks)), MAX_TASKS_PER_CALL)):
            request = labeling_pb2.SubmitTasksRequest(
                request_id=base_id if part == 0 else f"{base_id}.{part}",
                batch=batch,
                tasks=[_task_to_proto(task) for task in tasks[start : start + MAX_TASKS_PER_CALL]],
            )
            answer = self.unary(
                self._stub.SubmitTasks, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
            )
            task_ids.extend(answer.task_ids)
        return task_ids

    def lease_tasks(
        self,
        labeler_id: str,
        *,
        batch: str = "",
        max_tasks: int = 1,
        lease_s: float | None = None,
        timeout_s: float = 60.0,
        wait_for_ready: bool = False,
    ) -> list[LeasedTask]:
        """Tasks that are this labeler's until the lease expires; none when there is nothing to do."""
        request = labeling_pb2.LeaseTasksRequest(
            labeler_id=labeler_id,
            batch=batch,
            max_tasks=max_tasks,
            lease_duration=None if lease_s is None else seconds_to_duration(lease_s),
        )
        answer = self.unary(
            self._stub.LeaseTasks, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
        )
        return [
            LeasedTask(
                lease_id=task.lease_id,
                document=task.document,
                candidates=tuple(task.candidates),
                expire_time=timestamp_to_datetime(task.expire_time),
            )
            for task in answer.tasks
        ]

    def submit_answers(
        self,
        labeler_id: str,
        answers: Sequence[AnswerDraft],
        *,
        request_id: str | None = None,
        timeout_s: float = 60.0,
        wait_for_ready: bool = False,
    ) -> list[int]:
        """Records answers, all or none, and returns the comparisons' ids, in order."""
        request = labeling_pb2.SubmitAnswersRequest(
            request_id=request_id or new_request_id(),
            labeler_id=labeler_id,
            answers=[_answer_to_proto(answer) for answer in answers],
        )
        answer = self.unary(
            self._stub.SubmitAnswers, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
        )
        return list(answer.comparison_ids)

    def export_comparisons(
        self,
        *,
        batch: str = "",
        after_comparison_id: int = 0,
        follow: bool = False,
        timeout_s: float | None = 600.0,
        wait_for_ready: bool = True,
    ) -> Iterator[ComparisonRecord]:
        """Streams answers in the order in which they were recorded.

        A stream that breaks is continued after the last comparison received. ``timeout_s`` holds for each
        stream; ``follow`` without a timeout waits for further answers for ever.
        """
        cursor, breaks = after_comparison_id, 0
        while True:
            request = labeling_pb2.ExportComparisonsRequest(
                batch=batch, after_comparison_id=cursor, follow=follow
            )
            answers = self.stream(
                self._stub.ExportComparisons,
                request,
                timeout_s=timeout_s,
                wait_for_ready=wait_for_ready,
            )
            try:
                with closing(answers):
                    for answer in answers:
                        yield comparison_from_proto(answer.comparison)
                        cursor, breaks = answer.comparison.comparison_id, 0
                return
            except UnavailableError:
                breaks += 1
                if breaks > MAX_STREAM_BREAKS:
                    raise

    def progress(
        self, *, batch: str = "", timeout_s: float = 30.0, wait_for_ready: bool = False
    ) -> LabelingProgress:
        """Counts tasks and answers of a batch, or of all."""
        answer = self.unary(
            self._stub.GetProgress,
            labeling_pb2.GetProgressRequest(batch=batch),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return LabelingProgress(
            task_count=answer.task_count,
            slot_count=answer.slot_count,
            answer_count=answer.answer_count,
            lease_count=answer.lease_count,
            labeler_count=answer.labeler_count,
        )


def comparison_from_proto(comparison: labeling_pb2.Comparison) -> ComparisonRecord:
    """The answer as the record that training reads. What the message leaves unset, 0 or empty is None or the
    record's default.
    """
    everyone = range(len(comparison.candidates))
    decision = comparison.WhichOneof("decision")
    tiers: tuple[tuple[int, ...], ...]
    if decision == "choice":
        best = comparison.choice.best_index
        tiers = ((best,), tuple(index for index in everyone if index != best))
    elif decision == "verdict":
        tiers = ((0,),)
    else:
        tiers = tuple(tuple(tier.candidate_indices) for tier in comparison.ranking.tiers)
    return ComparisonRecord(
        document_id=comparison.document_id,
        document=comparison.document,
        candidates=tuple(
            CandidateRecord(
                text=candidate.text,
                source=candidate.source,
                policy_version=_version_name(candidate),
            )
            for candidate in comparison.candidates
        ),
        tiers=tiers,
        only_best_known=decision == "choice",
        labeler_id=comparison.labeler_id,
        confidence=comparison.confidence or None,
        comparison_id=str(comparison.comparison_id),
        batch=comparison.batch,
        verdict=comparison.verdict.affirmed if decision == "verdict" else None,
        preference=comparison.preference or None,
        ratings=tuple(_rating_from_proto(rating) for rating in comparison.ratings),
        note=comparison.note,
        shown_order=tuple(comparison.shown_order),
        lease_time=_moment(comparison, "lease_time"),
        answer_time=_moment(comparison, "answer_time"),
        duration_s=_seconds(comparison, "answer_duration"),
        project=comparison.project,
        purpose=(
            labeling_pb2.TaskPurpose.Name(comparison.purpose).removeprefix("TASK_PURPOSE_").lower()
            if comparison.purpose
            else "ordinary"
        ),
        round=comparison.round,
        supersedes_comparison_id=(
            str(comparison.supersedes_comparison_id) if comparison.supersedes_comparison_id else None
        ),
        is_superseded=comparison.is_superseded,
        origin=comparison.origin,
        task_id=comparison.task_id,
        telemetry=_telemetry_from_proto(comparison.telemetry) if comparison.HasField("telemetry") else None,
    )


def _rating_from_proto(rating: labeling_pb2.Rating) -> RatingRecord:
    return RatingRecord(
        accuracy=rating.accuracy or None,
        coverage=rating.coverage or None,
        coherence=rating.coherence or None,
        overall=rating.overall or None,
        flags=tuple(
            labeling_pb2.Flag.Name(flag).removeprefix("FLAG_").lower() for flag in rating.flags if flag
        ),
        naive_reading=rating.naive_reading,
    )


def _telemetry_from_proto(telemetry: labeling_pb2.Telemetry) -> TelemetryRecord:
    return TelemetryRecord(
        shown_time=_moment(telemetry, "shown_time"),
        first_action_time=_moment(telemetry, "first_action_time"),
        submit_time=_moment(telemetry, "submit_time"),
        active_s=_seconds(telemetry, "active_duration"),
        change_count=telemetry.change_count,
        aids=tuple(telemetry.aids),
        device_class=telemetry.device_class,
        page_version=telemetry.page_version,
        instructions_version=telemetry.instructions_version,
    )


def _moment(message: Message, field: str) -> str | None:
    """A Timestamp field as ISO 8601 in UTC, to the nanosecond; None when it is absent."""
    return getattr(message, field).ToJsonString() if message.HasField(field) else None


def _seconds(message: Message, field: str) -> float | None:
    return duration_to_seconds(getattr(message, field)) if message.HasField(field) else None


def _version_name(candidate: labeling_pb2.Candidate) -> str | None:
    if not candidate.HasField("policy_version"):
        return None
    return f"{candidate.policy_version.name}/{candidate.policy_version.version}"


def _task_to_proto(task: TaskDraft) -> labeling_pb2.Task:
    return labeling_pb2.Task(
        document=task.document,
        candidates=[
            labeling_pb2.Candidate(
                text=candidate.text,
                source=candidate.source,
                policy_version=(
                    None
                    if candidate.policy_version is None
                    else model_version_to_proto(_version_from_name(candidate.policy_version))
                ),
            )
            for candidate in task.candidates
        ],
        document_id=task.document_id,
        overlap_count=task.overlap,
    )


def _version_from_name(name: str) -> ModelVersion:
    family, _, number = name.rpartition("/")
    return ModelVersion(family=family, version=int(number))


def _answer_to_proto(answer: AnswerDraft) -> labeling_pb2.Answer:
    if (answer.best_index is None) == (answer.tiers is None):
        raise ValueError("an answer is either a best_index or tiers")
    return labeling_pb2.Answer(
        lease_id=answer.lease_id,
        choice=None if answer.best_index is None else labeling_pb2.Choice(best_index=answer.best_index),
        ranking=(
            None
            if answer.tiers is None
            else labeling_pb2.Ranking(
                tiers=[labeling_pb2.Tier(candidate_indices=tier) for tier in answer.tiers]
            )
        ),
        confidence=answer.confidence,
        note=answer.note,
        answer_duration=seconds_to_duration(answer.duration_s),
    )
