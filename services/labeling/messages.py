"""How the labeling contract's messages map to this service's values and back. The only place that knows both.

A Duration or decision that no value can hold is refused here; every other rule is the domain layer's.
"""

from __future__ import annotations

import hashlib

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.rpc.convert import model_version_from_proto, model_version_to_proto
from services.labeling.answers import AnswerDraft, Choice, Comparison, Decision, Ranking
from services.labeling.assignment import LeasedTask
from services.labeling.cord import CordEvent, is_pulled
from services.labeling.errors import InvalidFieldError
from services.labeling.requests import RepeatableRequest
from services.labeling.store import Progress
from services.labeling.tasks import Candidate, TaskDraft

_MAX_DURATION_S = 315_576_000_000  # what google.protobuf.Duration may hold
_NANOS_PER_S = 1_000_000_000


def repeatable(method: str, request_id: str, request: Message) -> RepeatableRequest:
    """Recognises a repetition by the whole request."""
    content = request.SerializeToString(deterministic=True)
    return RepeatableRequest(method=method, request_id=request_id, digest=hashlib.sha256(content).hexdigest())


def task_from_proto(task: labeling_pb2.Task) -> TaskDraft:
    """A submitted task."""
    return TaskDraft(
        document=task.document,
        candidates=tuple(_candidate_from_proto(candidate) for candidate in task.candidates),
        document_id=task.document_id,
        overlap_count=task.overlap_count or 1,
    )


def answer_from_proto(answer: labeling_pb2.Answer, *, field: str) -> AnswerDraft:
    """A labeler's answer; ``field`` names it in errors."""
    decision: Decision | None = None
    kind = answer.WhichOneof("decision")
    if kind == "choice":
        decision = Choice(best_index=answer.choice.best_index)
    elif kind == "ranking":
        decision = Ranking(tiers=tuple(tuple(tier.candidate_indices) for tier in answer.ranking.tiers))
    duration_us: int | None = None
    if answer.HasField("answer_duration"):
        duration_us = duration_to_us(
            answer.answer_duration, field=f"{field}.answer_duration", reason="INVALID_ANSWER"
        )
    return AnswerDraft(
        lease_id=answer.lease_id,
        decision=decision,
        confidence=answer.confidence,
        note=answer.note,
        answer_duration_us=duration_us,
    )


def leased_task_to_proto(task: LeasedTask) -> labeling_pb2.LeasedTask:
    """A task as its labeler sees it."""
    return labeling_pb2.LeasedTask(
        lease_id=task.lease_id,
        document=task.document,
        candidates=task.candidates,
        expire_time=timestamp_from_us(task.expire_us),
    )


def comparison_to_proto(comparison: Comparison) -> labeling_pb2.Comparison:
    """A recorded answer."""
    message = labeling_pb2.Comparison(
        comparison_id=comparison.comparison_id,
        task_id=str(comparison.task_id),
        batch=comparison.batch,
        document_id=comparison.document_id,
        document=comparison.document,
        candidates=[_candidate_to_proto(candidate) for candidate in comparison.candidates],
        confidence=comparison.confidence,
        note=comparison.note,
        labeler_id=comparison.labeler_id,
        shown_order=comparison.shown_order,
        lease_time=timestamp_from_us(comparison.lease_us),
        answer_time=timestamp_from_us(comparison.answer_us),
    )
    if isinstance(comparison.decision, Choice):
        message.choice.best_index = comparison.decision.best_index
    else:
        message.ranking.tiers.extend(
            labeling_pb2.Tier(candidate_indices=tier) for tier in comparison.decision.tiers
        )
    if comparison.answer_duration_us is not None:
        message.answer_duration.FromMicroseconds(comparison.answer_duration_us)
    return message


def progress_to_proto(progress: Progress) -> labeling_pb2.GetProgressResponse:
    """Counts."""
    return labeling_pb2.GetProgressResponse(
        task_count=progress.num_tasks,
        slot_count=progress.num_slots,
        answer_count=progress.num_answers,
        lease_count=progress.num_open_leases,
        labeler_count=progress.num_labelers,
    )


def cord_to_proto(last: CordEvent | None) -> cord_pb2.Cord:
    """The state of the cord after its last event; None for a cord that was never touched."""
    if last is None:
        return cord_pb2.Cord(state=cord_pb2.CORD_STATE_RELEASED)
    return cord_pb2.Cord(
        state=cord_pb2.CORD_STATE_PULLED if is_pulled(last) else cord_pb2.CORD_STATE_RELEASED,
        event_number=last.number,
        actor=last.actor,
        reason=last.reason,
        event_time=timestamp_from_us(last.event_us),
    )


def duration_to_us(duration: Duration, *, field: str, reason: str) -> int:
    """A Duration in whole microseconds; refuses one that breaks the type's own rules."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_DURATION_S or abs(nanos) >= _NANOS_PER_S or seconds * nanos < 0:
        raise InvalidFieldError("is not a valid Duration", reason=reason, field=field)
    return (seconds * _NANOS_PER_S + nanos) // 1000


def timestamp_from_us(moment_us: int) -> Timestamp:
    """Microseconds since 1970 as a Timestamp."""
    seconds, rest_us = divmod(moment_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest_us * 1000)


def _candidate_from_proto(candidate: labeling_pb2.Candidate) -> Candidate:
    return Candidate(
        text=candidate.text,
        source=candidate.source,
        policy_version=(
            model_version_from_proto(candidate.policy_version)
            if candidate.HasField("policy_version")
            else None
        ),
    )


def _candidate_to_proto(candidate: Candidate) -> labeling_pb2.Candidate:
    written_by = candidate.policy_version
    return labeling_pb2.Candidate(
        text=candidate.text,
        source=candidate.source,
        policy_version=None if written_by is None else model_version_to_proto(written_by),
    )
