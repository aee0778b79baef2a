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
from services.labeling.answers import (
    AXES,
    AnswerDraft,
    Choice,
    Comparison,
    Decision,
    Flag,
    Ranking,
    Rating,
    Telemetry,
    Verdict,
)
from services.labeling.assignment import LeasedTask
from services.labeling.cord import CordAction, CordEvent, is_pulled
from services.labeling.errors import InvalidFieldError
from services.labeling.export import ExportFilter, LabelerFold
from services.labeling.imports import UNKNOWN_LABELER, ImportRow, ImportTally
from services.labeling.projects import BatchMode, BatchSettings, OnboardingSettings, ProjectSettings
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.store import Progress, SkipDraft
from services.labeling.tasks import Candidate, TaskDraft, TaskKind

# The contract's words for ours; what is missing here is refused.
_KINDS = {
    labeling_pb2.TASK_KIND_UNSPECIFIED: TaskKind.COMPARE,
    labeling_pb2.TASK_KIND_COMPARE: TaskKind.COMPARE,
    labeling_pb2.TASK_KIND_WRITE: TaskKind.WRITE,
    labeling_pb2.TASK_KIND_EDIT: TaskKind.EDIT,
}
_PURPOSES = {
    labeling_pb2.TASK_PURPOSE_UNSPECIFIED: Purpose.ORDINARY,
    labeling_pb2.TASK_PURPOSE_ORDINARY: Purpose.ORDINARY,
    labeling_pb2.TASK_PURPOSE_CALIBRATION: Purpose.CALIBRATION,
    labeling_pb2.TASK_PURPOSE_DRIFT: Purpose.DRIFT,
    labeling_pb2.TASK_PURPOSE_GOLD: Purpose.GOLD,
    labeling_pb2.TASK_PURPOSE_TRAINING: Purpose.TRAINING,
    labeling_pb2.TASK_PURPOSE_SCREENING: Purpose.SCREENING,
}
_PURPOSES_OUT = {
    purpose: value for value, purpose in _PURPOSES.items() if value != labeling_pb2.TASK_PURPOSE_UNSPECIFIED
}
_CORD_ACTIONS = {
    CordAction.PULL: cord_pb2.CORD_ACTION_PULL,
    CordAction.RELEASE: cord_pb2.CORD_ACTION_RELEASE,
}
_MODES = {
    labeling_pb2.BATCH_MODE_UNSPECIFIED: BatchMode.BATCHED,
    labeling_pb2.BATCH_MODE_OFFLINE: BatchMode.OFFLINE,
    labeling_pb2.BATCH_MODE_BATCHED: BatchMode.BATCHED,
    labeling_pb2.BATCH_MODE_ONLINE: BatchMode.ONLINE,
}
_MODES_OUT = {mode: value for value, mode in _MODES.items() if value != labeling_pb2.BATCH_MODE_UNSPECIFIED}
_FLAGS = {
    labeling_pb2.FLAG_HARMFUL: Flag.HARMFUL,
    labeling_pb2.FLAG_MADE_UP: Flag.MADE_UP,
    labeling_pb2.FLAG_PERSONAL_DATA: Flag.PERSONAL_DATA,
    labeling_pb2.FLAG_CANNOT_JUDGE: Flag.CANNOT_JUDGE,
}
_FLAGS_OUT = {flag: value for value, flag in _FLAGS.items()}

_MAX_DURATION_S = 315_576_000_000  # what google.protobuf.Duration may hold
_MAX_TIMESTAMP_S = 253_402_300_799
_NANOS_PER_S = 1_000_000_000


def repeatable(method: str, request_id: str, request: Message) -> RepeatableRequest:
    """Recognises a repetition by the whole request."""
    content = request.SerializeToString(deterministic=True)
    return RepeatableRequest(method=method, request_id=request_id, digest=hashlib.sha256(content).hexdigest())


def task_from_proto(task: labeling_pb2.Task, *, field: str) -> TaskDraft:
    """A submitted task; ``field`` names it in errors."""
    if task.kind not in _KINDS or task.purpose not in _PURPOSES:
        raise InvalidFieldError(
            "a kind or purpose that tasks are not submitted with", reason="INVALID_SETTINGS", field=field
        )
    return TaskDraft(
        document=task.document,
        candidates=tuple(_candidate_from_proto(candidate) for candidate in task.candidates),
        document_id=task.document_id,
        overlap_count=task.overlap_count or 1,
        kind=_KINDS[task.kind],
        purpose=_PURPOSES[task.purpose],
        expected=_tiers(task.expected) if task.HasField("expected") else None,
        explanation=task.explanation,
    )


def project_settings_from_proto(settings: labeling_pb2.ProjectSettings) -> ProjectSettings:
    """What a researcher decided for a project, without the instructions."""
    onboarding = settings.onboarding
    max_item_s: float | None = None
    if onboarding.HasField("max_item_duration"):
        duration_us = duration_to_us(
            onboarding.max_item_duration, field="max_item_duration", reason="INVALID_SETTINGS"
        )
        max_item_s = duration_us / 1e6
    return ProjectSettings(
        title=settings.title,
        naive_reading=settings.naive_reading,
        rating_axes=settings.rating_axes,
        no_indifference=settings.no_indifference,
        reading_aids=settings.reading_aids,
        onboarding=OnboardingSettings(
            training_count=onboarding.training_count,
            screening_count=onboarding.screening_count,
            min_agreement=onboarding.min_agreement,
            max_item_s=max_item_s,
            max_attempts=onboarding.max_attempts or 1,
        ),
    )


def project_settings_to_proto(settings: ProjectSettings, instructions: str) -> labeling_pb2.ProjectSettings:
    """The same for the outside."""
    onboarding = settings.onboarding
    message = labeling_pb2.ProjectSettings(
        title=settings.title,
        instructions=instructions,
        naive_reading=settings.naive_reading,
        rating_axes=settings.rating_axes,
        no_indifference=settings.no_indifference,
        reading_aids=settings.reading_aids,
        onboarding=labeling_pb2.Onboarding(
            training_count=onboarding.training_count,
            screening_count=onboarding.screening_count,
            min_agreement=onboarding.min_agreement,
            max_attempts=onboarding.max_attempts,
        ),
    )
    if onboarding.max_item_s is not None:
        message.onboarding.max_item_duration.FromMicroseconds(round(onboarding.max_item_s * 1e6))
    return message


def batch_settings_from_proto(settings: labeling_pb2.BatchSettings) -> BatchSettings:
    """What a researcher decided for a batch."""
    if settings.mode not in _MODES:
        raise InvalidFieldError("is not known", reason="INVALID_SETTINGS", field="mode")
    return BatchSettings(
        mode=_MODES[settings.mode],
        calibration_share=settings.calibration_share,
        drift_share=settings.drift_share,
        gold_share=settings.gold_share,
        repeat_share=settings.repeat_share,
        max_answers_per_labeler=settings.max_answers_per_labeler or None,
        priority=settings.priority,
        is_closed=settings.closed,
    )


def batch_settings_to_proto(settings: BatchSettings) -> labeling_pb2.BatchSettings:
    """The same for the outside."""
    return labeling_pb2.BatchSettings(
        mode=_MODES_OUT[settings.mode],
        calibration_share=settings.calibration_share,
        drift_share=settings.drift_share,
        gold_share=settings.gold_share,
        repeat_share=settings.repeat_share,
        max_answers_per_labeler=settings.max_answers_per_labeler or 0,
        priority=settings.priority,
        closed=settings.is_closed,
    )


def export_filter_from_proto(request: labeling_pb2.ExportComparisonsRequest) -> ExportFilter:
    """Which answers are asked for."""
    fold = request.labeler_fold
    return ExportFilter(
        batch=request.batch,
        project=request.project,
        fold=(
            LabelerFold(num_folds=fold.fold_count, fold=fold.fold, complement=fold.complement)
            if request.HasField("labeler_fold")
            else None
        ),
        with_superseded=request.with_superseded,
        with_onboarding=request.with_onboarding,
    )


def skip_from_proto(skip: labeling_pb2.SkippedTask) -> SkipDraft:
    """A task that is given back."""
    return SkipDraft(lease_id=skip.lease_id, reason=skip.reason)


def import_row_from_proto(row: labeling_pb2.ImportedComparison) -> ImportRow:
    """An answer that was given elsewhere. Raises InvalidFieldError for what no value can hold."""
    decision: Decision | None = None
    kind = row.WhichOneof("decision")
    if kind == "choice":
        decision = Choice(best_index=row.choice.best_index)
    elif kind == "ranking":
        decision = Ranking(tiers=_tiers(row.ranking))
    elif kind == "verdict":
        decision = Verdict(affirmed=row.verdict.affirmed)
    return ImportRow(
        row=row.row,
        document_id=row.document_id,
        document=row.document,
        candidates=tuple(_candidate_from_proto(candidate) for candidate in row.candidates),
        answer=AnswerDraft(
            lease_id="",
            decision=decision,
            confidence=row.confidence,
            preference=row.preference or None,
            ratings=tuple(
                rating_from_proto(rating, field=f"ratings[{place}]")
                for place, rating in enumerate(row.ratings)
            ),
            note=row.note,
        ),
        labeler_id=row.labeler_id or UNKNOWN_LABELER,
        answer_us=(
            timestamp_to_us(row.answer_time, field="answer_time") if row.HasField("answer_time") else None
        ),
    )


def import_tally_to_proto(tally: ImportTally) -> labeling_pb2.ImportComparisonsResponse:
    """What became of an import."""
    return labeling_pb2.ImportComparisonsResponse(
        recorded_count=tally.num_recorded,
        repeated_count=tally.num_repeated,
        task_count=tally.num_tasks,
        refused_count=tally.num_refused,
        refused=[
            labeling_pb2.RefusedRow(row=one.row, reason=one.reason, message=one.message)
            for one in tally.refused
        ],
    )


def rating_from_proto(rating: labeling_pb2.Rating, *, field: str) -> Rating:
    """What a labeler says of one candidate."""
    unknown = [flag for flag in rating.flags if flag not in _FLAGS]
    if unknown:
        raise InvalidFieldError("is not known", reason="INVALID_ANSWER", field=f"{field}.flags")
    return Rating(
        **{axis: getattr(rating, axis) or None for axis in AXES},
        flags=tuple(_FLAGS[flag] for flag in rating.flags),
        naive_reading=rating.naive_reading,
    )


def answer_from_proto(answer: labeling_pb2.Answer, *, field: str) -> AnswerDraft:
    """A labeler's answer; ``field`` names it in errors."""
    decision: Decision | None = None
    kind = answer.WhichOneof("decision")
    if kind == "choice":
        decision = Choice(best_index=answer.choice.best_index)
    elif kind == "ranking":
        decision = Ranking(tiers=_tiers(answer.ranking))
    duration_us: int | None = None
    if answer.HasField("answer_duration"):
        duration_us = duration_to_us(
            answer.answer_duration, field=f"{field}.answer_duration", reason="INVALID_ANSWER"
        )
    return AnswerDraft(
        lease_id=answer.lease_id,
        decision=decision,
        confidence=answer.confidence,
        preference=answer.preference or None,
        ratings=tuple(
            rating_from_proto(rating, field=f"{field}.ratings[{place}]")
            for place, rating in enumerate(answer.ratings)
        ),
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
        project=comparison.project,
        batch=comparison.batch,
        purpose=_PURPOSES_OUT[comparison.purpose],
        document_id=comparison.document_id,
        document=comparison.document,
        candidates=[_candidate_to_proto(candidate) for candidate in comparison.candidates],
        confidence=comparison.confidence,
        preference=comparison.preference or 0,
        ratings=[_rating_to_proto(rating) for rating in comparison.ratings],
        note=comparison.note,
        labeler_id=comparison.labeler_id,
        round=comparison.round,
        supersedes_comparison_id=comparison.supersedes_id or 0,
        is_superseded=comparison.is_superseded,
        origin=comparison.origin.value,
        shown_order=comparison.shown_order,
        lease_time=timestamp_from_us(comparison.lease_us),
        answer_time=timestamp_from_us(comparison.answer_us),
    )
    if isinstance(comparison.decision, Choice):
        message.choice.best_index = comparison.decision.best_index
    elif isinstance(comparison.decision, Verdict):
        message.verdict.affirmed = comparison.decision.affirmed
    else:
        message.ranking.tiers.extend(
            labeling_pb2.Tier(candidate_indices=tier) for tier in comparison.decision.tiers
        )
    if comparison.answer_duration_us is not None:
        message.answer_duration.FromMicroseconds(comparison.answer_duration_us)
    if comparison.telemetry is not None:
        message.telemetry.CopyFrom(_telemetry_to_proto(comparison.telemetry))
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


def cord_event_to_proto(event: CordEvent) -> cord_pb2.CordEvent:
    """An entry of the cord's record."""
    return cord_pb2.CordEvent(
        event_number=event.number,
        action=_CORD_ACTIONS[event.action],
        actor=event.actor,
        reason=event.reason,
        event_time=timestamp_from_us(event.event_us),
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


def _tiers(ranking: labeling_pb2.Ranking) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tier.candidate_indices) for tier in ranking.tiers)


def _rating_to_proto(rating: Rating) -> labeling_pb2.Rating:
    return labeling_pb2.Rating(
        **{axis: getattr(rating, axis) or 0 for axis in AXES},
        flags=[_FLAGS_OUT[flag] for flag in rating.flags],
        naive_reading=rating.naive_reading,
    )


def _telemetry_to_proto(telemetry: Telemetry) -> labeling_pb2.Telemetry:
    message = labeling_pb2.Telemetry(
        change_count=telemetry.change_count,
        aids=telemetry.aids,
        device_class=telemetry.device_class,
        page_version=telemetry.page_version,
        instructions_version=telemetry.instructions_version,
    )
    for moment_us, timestamp in (
        (telemetry.shown_us, message.shown_time),
        (telemetry.first_action_us, message.first_action_time),
        (telemetry.submit_us, message.submit_time),
    ):
        if moment_us is not None:
            timestamp.CopyFrom(timestamp_from_us(moment_us))
    if telemetry.active_us is not None:
        message.active_duration.FromMicroseconds(telemetry.active_us)
    return message


def timestamp_to_us(timestamp: Timestamp, *, field: str) -> int:
    """A Timestamp in whole microseconds since 1970; refuses one that breaks the type's own rules."""
    seconds, nanos = timestamp.seconds, timestamp.nanos
    if not (0 <= seconds <= _MAX_TIMESTAMP_S and 0 <= nanos < _NANOS_PER_S):
        raise InvalidFieldError(
            "is not a Timestamp between 1970 and 9999", reason="INVALID_ANSWER", field=field
        )
    return seconds * 1_000_000 + nanos // 1000


def estimate_to_proto(estimate: Estimate) -> labeling_pb2.Estimate:
    """A figure with its interval."""
    return labeling_pb2.Estimate(
        value=estimate.value, low=estimate.low, high=estimate.high, unit_count=estimate.num_units
    )


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
