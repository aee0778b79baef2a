"""Andon's own rows of comparisons: one JSON object with every field of a ComparisonRecord.

``andon label export`` and the writers make them; ``andon.corpus.formats`` recognises them by ``candidates``
and ``tiers`` and reads them here. A row may leave out whatever has a default. Reading what was written gives
an equal record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from andon.corpus import row_values
from andon.corpus.errors import RowError
from andon.corpus.records import (
    FLAGS,
    PURPOSES,
    CandidateRecord,
    ComparisonRecord,
    RatingRecord,
    TelemetryRecord,
    content_digest,
)

Row = Mapping[str, Any]  # one decoded JSON object; its values are whatever the file holds

_AXES = ("accuracy", "coverage", "coherence", "overall")


def row_from_comparison(record: ComparisonRecord) -> dict[str, Any]:
    """The record as JSON types, fields in their order."""
    row: dict[str, Any] = {name: getattr(record, name) for name in ComparisonRecord.__slots__}
    row["candidates"] = [
        {"text": entry.text, "source": entry.source, "policy_version": entry.policy_version}
        for entry in record.candidates
    ]
    row["tiers"] = [list(tier) for tier in record.tiers]
    row["ratings"] = [rating_to_row(rating) for rating in record.ratings]
    row["shown_order"] = list(record.shown_order)
    if record.telemetry is not None:
        row["telemetry"] = {name: getattr(record.telemetry, name) for name in TelemetryRecord.__slots__}
        row["telemetry"]["aids"] = list(record.telemetry.aids)
    return row


def comparison_from_row(row: Row, fallback_id: str) -> ComparisonRecord:
    """The row as a record. Raises RowError for what no labeler can have decided."""
    candidates = tuple(_candidate(entry) for entry in row_values.entries(row["candidates"], "candidates"))
    if not candidates:
        raise RowError("there must be at least one candidate", "CANDIDATE_COUNT")
    document = row_values.text(row.get("document", ""), "document")
    tiers = tuple(
        tuple(
            row_values.whole_number(index, "an index in tiers", low=0)
            for index in row_values.entries(tier, "a tier")
        )
        for tier in row_values.entries(row["tiers"], "tiers")
    )
    if sorted(index for tier in tiers for index in tier) != list(range(len(candidates))) or not all(tiers):
        raise RowError("tiers must hold each candidate's index exactly once", "INVALID_ANSWER")
    verdict = row.get("verdict")
    if verdict is not None and (not isinstance(verdict, bool) or len(candidates) != 1):
        raise RowError("a verdict is true or false and about one candidate", "INVALID_ANSWER")
    superseded_id = row.get("supersedes_comparison_id")
    purpose = row.get("purpose", "ordinary")
    if purpose not in PURPOSES:
        raise RowError(f"purpose must be one of {', '.join(PURPOSES)}")
    return ComparisonRecord(
        document_id=(
            row_values.identifier(row["document_id"], "document_id")
            if row.get("document_id") is not None
            else content_digest(document)
        ),
        document=document,
        candidates=candidates,
        tiers=tiers,
        only_best_known=row_values.truth(row.get("only_best_known"), "only_best_known"),
        labeler_id=row_values.identifier(row.get("labeler_id"), "labeler_id"),
        confidence=row_values.scale_point(
            row.get("confidence"), "confidence", high=row_values.MAX_CONFIDENCE, reason="INVALID_CONFIDENCE"
        ),
        comparison_id=row_values.identifier(row.get("comparison_id", fallback_id), "comparison_id"),
        batch=row_values.identifier(row.get("batch"), "batch"),
        verdict=verdict,
        preference=preference_from_row(row.get("preference"), tiers),
        ratings=ratings_from_row(row.get("ratings"), len(candidates)),
        note=row_values.text(row.get("note") or "", "note"),
        shown_order=row_values.permutation(row.get("shown_order"), "shown_order", size=len(candidates)),
        lease_time=row_values.moment(row.get("lease_time"), "lease_time"),
        answer_time=row_values.moment(row.get("answer_time"), "answer_time"),
        duration_s=row_values.seconds(row.get("duration_s"), "duration_s"),
        project=row_values.identifier(row.get("project"), "project"),
        purpose=purpose,
        round=row_values.whole_number(row.get("round", 0), "round", low=0),
        supersedes_comparison_id=(
            None
            if superseded_id is None
            else row_values.identifier(superseded_id, "supersedes_comparison_id")
        ),
        is_superseded=row_values.truth(row.get("is_superseded"), "is_superseded"),
        origin=row_values.identifier(row.get("origin"), "origin"),
        task_id=row_values.identifier(row.get("task_id"), "task_id"),
        telemetry=None if row.get("telemetry") is None else _telemetry(row["telemetry"]),
    )


def preference_from_row(value: object, tiers: tuple[tuple[int, ...], ...]) -> int | None:
    """A point from 1 (the first is far better) to 9, which must not contradict the order of the pair."""
    preference = row_values.scale_point(value, "preference", high=9, reason="INVALID_ANSWER")
    if preference is None:
        return None
    if sum(map(len, tiers)) != 2:
        raise RowError("a preference is about two candidates", "INVALID_ANSWER")
    if (preference < 5 and tiers == ((1,), (0,))) or (preference > 5 and tiers == ((0,), (1,))):
        raise RowError(f"preference {preference} contradicts the order {tiers}", "INVALID_ANSWER")
    return preference


def ratings_from_row(value: object, candidate_count: int) -> tuple[RatingRecord, ...]:
    """One rating per candidate, or none at all."""
    ratings = tuple(_rating(entry) for entry in row_values.entries(value, "ratings"))
    if ratings and len(ratings) != candidate_count:
        raise RowError(f"{len(ratings)} ratings for {candidate_count} candidates", "INVALID_RATING")
    return ratings


def rating_to_row(rating: RatingRecord) -> dict[str, Any]:
    """A rating as JSON types."""
    row: dict[str, Any] = {axis: getattr(rating, axis) for axis in _AXES}
    return {**row, "flags": list(rating.flags), "naive_reading": rating.naive_reading}


def _rating(value: object) -> RatingRecord:
    if not isinstance(value, Mapping):
        raise RowError("a rating must be an object", "INVALID_RATING")
    flags = tuple(str(flag) for flag in row_values.entries(value.get("flags"), "flags"))
    if not set(flags) <= set(FLAGS):
        raise RowError(f"flags must be of {', '.join(FLAGS)}", "INVALID_RATING")
    points = {
        axis: row_values.scale_point(
            value.get(axis), axis, high=row_values.MAX_RATING, reason="INVALID_RATING"
        )
        for axis in _AXES
    }
    return RatingRecord(
        **points,
        flags=flags,
        naive_reading=row_values.text(value.get("naive_reading") or "", "naive_reading"),
    )


def _candidate(value: object) -> CandidateRecord:
    if not isinstance(value, Mapping):
        raise RowError("a candidate must be an object with a text", "INVALID_CANDIDATE")
    version = value.get("policy_version")
    return CandidateRecord(
        # Not stripped: this is the text as it was shown.
        text=row_values.text(value.get("text"), "a candidate", reason="INVALID_CANDIDATE"),
        source=row_values.identifier(value.get("source"), "source"),
        policy_version=None if version is None else row_values.text(version, "policy_version"),
    )


def _telemetry(value: object) -> TelemetryRecord:
    if not isinstance(value, Mapping):
        raise RowError("telemetry must be an object")
    return TelemetryRecord(
        shown_time=row_values.moment(value.get("shown_time"), "shown_time"),
        first_action_time=row_values.moment(value.get("first_action_time"), "first_action_time"),
        submit_time=row_values.moment(value.get("submit_time"), "submit_time"),
        active_s=row_values.seconds(value.get("active_s"), "active_s"),
        change_count=row_values.whole_number(value.get("change_count", 0), "change_count", low=0),
        aids=tuple(row_values.text(aid, "an aid") for aid in row_values.entries(value.get("aids"), "aids")),
        device_class=row_values.identifier(value.get("device_class"), "device_class"),
        page_version=row_values.identifier(value.get("page_version"), "page_version"),
        instructions_version=row_values.whole_number(
            value.get("instructions_version", 0), "instructions_version", low=0
        ),
    )
