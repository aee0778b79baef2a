"""How the labeling contract's messages map to the client's values and back."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.client.labeling_values import (
    Agreement,
    AnswerDraft,
    BatchSettings,
    Estimate,
    ImportReport,
    LabelerPair,
    ProjectSettings,
    RefusedRow,
    TaskDraft,
)
from andon.corpus.records import CandidateRecord, ComparisonRecord, RatingRecord, TelemetryRecord
from andon.errors import InvalidArgumentError
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import duration_to_seconds, model_version_to_proto, seconds_to_duration


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


def task_to_proto(task: TaskDraft) -> labeling_pb2.Task:
    """A task that is submitted. Raises INVALID_SETTINGS for an unknown kind or purpose."""
    return labeling_pb2.Task(
        document=task.document,
        candidates=[_candidate_to_proto(candidate) for candidate in task.candidates],
        document_id=task.document_id,
        overlap_count=task.overlap,
        kind=_enum_value(labeling_pb2.TaskKind, "TASK_KIND_", task.kind),
        purpose=_enum_value(labeling_pb2.TaskPurpose, "TASK_PURPOSE_", task.purpose),
        expected=None if task.expected is None else _ranking(task.expected),
        explanation=task.explanation,
    )


def project_settings_to_proto(settings: ProjectSettings) -> labeling_pb2.ProjectSettings:
    """What a researcher decides for a project."""
    return labeling_pb2.ProjectSettings(
        title=settings.title,
        instructions=settings.instructions,
        naive_reading=settings.naive_reading,
        rating_axes=settings.rating_axes,
        no_indifference=settings.no_indifference,
        reading_aids=settings.reading_aids,
        onboarding=labeling_pb2.Onboarding(
            training_count=settings.training_count,
            screening_count=settings.screening_count,
            min_agreement=settings.min_agreement,
            max_item_duration=(
                None if settings.max_item_s is None else seconds_to_duration(settings.max_item_s)
            ),
            max_attempts=settings.max_attempts,
        ),
    )


def batch_settings_to_proto(settings: BatchSettings) -> labeling_pb2.BatchSettings:
    """What a researcher decides for a batch. Raises INVALID_SETTINGS for an unknown mode."""
    return labeling_pb2.BatchSettings(
        mode=_enum_value(labeling_pb2.BatchMode, "BATCH_MODE_", settings.mode),
        calibration_share=settings.calibration_share,
        drift_share=settings.drift_share,
        gold_share=settings.gold_share,
        repeat_share=settings.repeat_share,
        max_answers_per_labeler=settings.max_answers_per_labeler,
        priority=settings.priority,
    )


def comparison_to_import(record: ComparisonRecord, *, row: int) -> labeling_pb2.ImportedComparison:
    """An answer that was given elsewhere. Raises ValueError for what the message cannot hold."""
    message = labeling_pb2.ImportedComparison(
        row=row,
        document_id=record.document_id,
        document=record.document,
        candidates=[_candidate_to_proto(candidate) for candidate in record.candidates],
        confidence=record.confidence or 0,
        preference=record.preference or 0,
        note=record.note,
        labeler_id=record.labeler_id,
        ratings=[_rating_to_proto(rating) for rating in record.ratings],
    )
    if record.verdict is not None:
        message.verdict.affirmed = record.verdict
    elif record.only_best_known:
        message.choice.best_index = record.tiers[0][0]
    elif len(record.candidates) > 1:
        message.ranking.CopyFrom(_ranking(record.tiers))
    if record.answer_time is not None:
        message.answer_time.FromJsonString(record.answer_time)
    return message


def agreement_from_proto(answer: labeling_pb2.GetAgreementResponse) -> Agreement:
    """How far labelers agree."""
    return Agreement(
        pairs=tuple(
            LabelerPair(
                a=pair.a,
                b=pair.b,
                agreement=_estimate(pair.agreement),
                cohen_kappa=_estimate(pair.cohen_kappa),
            )
            for pair in answer.pairs
        ),
        fleiss_kappa=_estimate(answer.fleiss_kappa),
        krippendorff_alpha=_estimate(answer.krippendorff_alpha),
        labeler_labeler=_estimate(answer.labeler_labeler),
        labeler_researcher=_estimate(answer.labeler_researcher),
        labeler_majority=_estimate(answer.labeler_majority),
    )


def import_report_from_proto(answer: labeling_pb2.ImportComparisonsResponse) -> ImportReport:
    """What became of an import."""
    return ImportReport(
        recorded_count=answer.recorded_count,
        repeated_count=answer.repeated_count,
        task_count=answer.task_count,
        refused_count=answer.refused_count,
        refused=tuple(
            RefusedRow(row=one.row, reason=one.reason, message=one.message) for one in answer.refused
        ),
    )


def _version_from_name(name: str) -> ModelVersion:
    family, _, number = name.rpartition("/")
    return ModelVersion(family=family, version=int(number))


def answer_to_proto(answer: AnswerDraft) -> labeling_pb2.Answer:
    """A decision about a leased task."""
    if (answer.best_index is None) == (answer.tiers is None):
        raise ValueError("an answer is either a best_index or tiers")
    return labeling_pb2.Answer(
        lease_id=answer.lease_id,
        choice=None if answer.best_index is None else labeling_pb2.Choice(best_index=answer.best_index),
        ranking=None if answer.tiers is None else _ranking(answer.tiers),
        confidence=answer.confidence,
        preference=answer.preference,
        ratings=[_rating_to_proto(rating) for rating in answer.ratings],
        note=answer.note,
        answer_duration=seconds_to_duration(answer.duration_s),
    )


def _ranking(tiers: tuple[tuple[int, ...], ...]) -> labeling_pb2.Ranking:
    return labeling_pb2.Ranking(tiers=[labeling_pb2.Tier(candidate_indices=tier) for tier in tiers])


def _candidate_to_proto(candidate: CandidateRecord) -> labeling_pb2.Candidate:
    return labeling_pb2.Candidate(
        text=candidate.text,
        source=candidate.source,
        policy_version=(
            None
            if candidate.policy_version is None
            else model_version_to_proto(_version_from_name(candidate.policy_version))
        ),
    )


def _rating_to_proto(rating: RatingRecord) -> labeling_pb2.Rating:
    return labeling_pb2.Rating(
        accuracy=rating.accuracy or 0,
        coverage=rating.coverage or 0,
        coherence=rating.coherence or 0,
        overall=rating.overall or 0,
        flags=[labeling_pb2.Flag.Value(f"FLAG_{flag.upper()}") for flag in rating.flags],
        naive_reading=rating.naive_reading,
    )


def _estimate(estimate: labeling_pb2.Estimate) -> Estimate:
    return Estimate(
        value=estimate.value if estimate.HasField("value") else None,
        low=estimate.low if estimate.HasField("low") else None,
        high=estimate.high if estimate.HasField("high") else None,
        unit_count=estimate.unit_count,
    )


def _enum_value(kind: Any, prefix: str, word: str) -> Any:  # protobuf's enum wrappers share no public type
    try:
        return kind.Value(f"{prefix}{word.upper()}")
    except ValueError:
        known = ", ".join(name.removeprefix(prefix).lower() for name in kind.keys()[1:])
        raise InvalidArgumentError(f"{word!r} is none of {known}", reason="INVALID_SETTINGS") from None
