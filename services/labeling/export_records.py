"""A recorded answer as the record that files hold, and a record as the row that an import takes.

``andon.client`` does the same by way of the contract's messages; both give the same record of an answer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from andon.corpus.records import CandidateRecord, ComparisonRecord, RatingRecord, TelemetryRecord
from andon.modeling.versions import ModelVersion
from services.labeling.answers import (
    AnswerDraft,
    Choice,
    Comparison,
    Decision,
    Flag,
    Ranking,
    Rating,
    Telemetry,
    Verdict,
    tiers_of,
)
from services.labeling.errors import InvalidFieldError
from services.labeling.imports import UNKNOWN_LABELER, ImportRow
from services.labeling.tasks import Candidate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_DIGITS = 18  # of a version's number, which the database keeps in 64 bits


def record_of(comparison: Comparison) -> ComparisonRecord:
    """The answer as a record; what was not asked is None."""
    return ComparisonRecord(
        document_id=comparison.document_id,
        document=comparison.document,
        candidates=tuple(
            CandidateRecord(
                text=candidate.text,
                source=candidate.source,
                policy_version=None if candidate.policy_version is None else str(candidate.policy_version),
            )
            for candidate in comparison.candidates
        ),
        tiers=tiers_of(comparison.decision, len(comparison.candidates)) or ((0,),),
        only_best_known=isinstance(comparison.decision, Choice),
        labeler_id=comparison.labeler_id,
        confidence=comparison.confidence or None,
        comparison_id=str(comparison.comparison_id),
        batch=comparison.batch,
        verdict=comparison.decision.affirmed if isinstance(comparison.decision, Verdict) else None,
        preference=comparison.preference,
        ratings=tuple(
            RatingRecord(
                accuracy=rating.accuracy,
                coverage=rating.coverage,
                coherence=rating.coherence,
                overall=rating.overall,
                flags=tuple(flag.value for flag in rating.flags),
                naive_reading=rating.naive_reading,
            )
            for rating in comparison.ratings
        ),
        note=comparison.note,
        shown_order=comparison.shown_order,
        lease_time=_moment(comparison.lease_us),
        answer_time=_moment(comparison.answer_us),
        duration_s=_seconds(comparison.answer_duration_us),
        project=comparison.project,
        purpose=comparison.purpose.value,
        round=comparison.round,
        supersedes_comparison_id=(
            None if comparison.supersedes_id is None else str(comparison.supersedes_id)
        ),
        is_superseded=comparison.is_superseded,
        origin=comparison.origin.value,
        task_id=str(comparison.task_id),
        telemetry=None if comparison.telemetry is None else _telemetry(comparison.telemetry),
    )


def import_row_of(record: ComparisonRecord, *, row: int) -> ImportRow:
    """A record as an answer that was given elsewhere. Raises InvalidFieldError for what no row can hold."""
    decision: Decision | None = None
    if record.verdict is not None:
        decision = Verdict(affirmed=record.verdict)
    elif record.only_best_known:
        decision = Choice(best_index=record.tiers[0][0])
    elif len(record.candidates) > 1:
        decision = Ranking(tiers=record.tiers)
    return ImportRow(
        row=row,
        document_id=record.document_id,
        document=record.document,
        candidates=tuple(
            Candidate(
                text=candidate.text,
                source=candidate.source,
                policy_version=_version(
                    candidate.policy_version, field=f"candidates[{place}].policy_version"
                ),
            )
            for place, candidate in enumerate(record.candidates)
        ),
        answer=AnswerDraft(
            lease_id="",
            decision=decision,
            confidence=record.confidence or 0,
            preference=record.preference,
            ratings=tuple(
                Rating(
                    accuracy=rating.accuracy,
                    coverage=rating.coverage,
                    coherence=rating.coherence,
                    overall=rating.overall,
                    flags=tuple(Flag(flag) for flag in rating.flags),
                    naive_reading=rating.naive_reading,
                )
                for rating in record.ratings
            ),
            note=record.note,
        ),
        labeler_id=record.labeler_id or UNKNOWN_LABELER,
        answer_us=None if record.answer_time is None else _moment_us(record.answer_time),
    )


def _version(name: str | None, *, field: str) -> ModelVersion | None:
    if name is None:
        return None
    family, slash, number = name.rpartition("/")
    if not (slash and number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS):
        raise InvalidFieldError(
            'must be a name and a number, such as "policy/12"', reason="INVALID_POLICY_VERSION", field=field
        )
    return ModelVersion(family=family, version=int(number))


def _telemetry(telemetry: Telemetry) -> TelemetryRecord:
    return TelemetryRecord(
        shown_time=None if telemetry.shown_us is None else _moment(telemetry.shown_us),
        first_action_time=(None if telemetry.first_action_us is None else _moment(telemetry.first_action_us)),
        submit_time=None if telemetry.submit_us is None else _moment(telemetry.submit_us),
        active_s=_seconds(telemetry.active_us),
        change_count=telemetry.change_count,
        aids=telemetry.aids,
        device_class=telemetry.device_class,
        page_version=telemetry.page_version,
        instructions_version=telemetry.instructions_version,
    )


def _moment(moment_us: int) -> str:
    """ISO 8601 in UTC with no more of the second than there is: none, milliseconds or microseconds."""
    rest_us = moment_us % 1_000_000
    precision = "seconds" if rest_us == 0 else "milliseconds" if rest_us % 1000 == 0 else "microseconds"
    moment = _EPOCH + timedelta(microseconds=moment_us)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def _moment_us(moment: str) -> int:
    span = datetime.fromisoformat(moment) - _EPOCH
    moment_us = span // timedelta(microseconds=1)
    if moment_us < 0:
        raise InvalidFieldError("is before 1970", reason="INVALID_ANSWER", field="answer_time")
    return moment_us


def _seconds(span_us: int | None) -> float | None:
    return None if span_us is None else span_us / 1e6
