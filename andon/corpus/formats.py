"""Recognises the public shapes of rows and turns a row into records.

Called by ``andon.corpus.loaders``, which knows where rows come from; nothing here reads a file. A shape is
recognised by the keys of a row:

    comparisons   ``candidates``, ``tiers``                      Andon's own export
                  ``info``, ``summaries``, ``choice``            TL;DR comparisons (Stiennon et al. 2020)
                  ``info``, ``summary`` (with ``axes``)          TL;DR ratings: one candidate, no decision
                  ``chosen``, ``rejected`` (and ``prompt``)      HH (Bai et al. 2022) and its descendants
                  ``summaries``, ``choice``                      pairs (SQuALITY), ``choice`` null for a tie
                  ``responses``, ``choices``                     one choice per annotator (PandaLM)
                  ``summary``, ``factual``                       one yes or no per rater (XSum factuality)
    documents     ``document`` | ``post`` | ``article`` | ``text``, and
                  ``summaries`` | ``summary`` | ``highlights`` | ``reference``

A row without an id of its own gets one from its document's text, so that answers about the same document and
the same candidates are answers to the same task wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from andon.corpus import export_format, row_values
from andon.corpus.errors import RowError
from andon.corpus.export_format import Row
from andon.corpus.records import (
    PURPOSES,
    CandidateRecord,
    ComparisonRecord,
    DocumentRecord,
    RatingRecord,
    content_digest,
)

__all__ = ["Row", "RowError", "comparison_reader", "document_from_row", "is_document_row"]

DOCUMENT_KEYS = ("document", "post", "article", "text")
SUMMARY_KEYS = ("summaries", "summary", "highlights", "reference")
FIRST_SPEAKER = "\n\nHuman:"
LAST_SPEAKER = "\n\nAssistant:"
NO_ANSWER = "NO_ANSWER"  # the reason of a sound row in which nobody decided anything
NO_COMPARISON = "NO_COMPARISON"  # the reason of a row of no known shape

Reader = Callable[[Row, str], list[ComparisonRecord]]


def document_from_row(row: Row, fallback_id: str) -> DocumentRecord:
    """A row of documents as a record; ``fallback_id`` names it when the row does not."""
    document = next((row[key] for key in DOCUMENT_KEYS if key in row), None)
    raw = next((row[key] for key in SUMMARY_KEYS if row.get(key) is not None), ())
    summaries = (raw,) if isinstance(raw, str) else tuple(raw)
    title = row.get("title")
    facts = row.get("facts")
    return DocumentRecord(
        document_id=_first_id(row, ("id", "document_id"), fallback_id),
        document=row_values.document_text(document, "document"),
        summaries=tuple(_summary_text(summary) for summary in summaries),
        title=title if isinstance(title, str) else None,
        facts=dict(facts) if isinstance(facts, Mapping) else None,
    )


def is_document_row(row: Row) -> bool:
    """Whether the row has the keys of a document."""
    return any(key in row for key in DOCUMENT_KEYS)


def comparison_reader(row: Row) -> Reader | None:
    """The reader for comparisons of this row's shape, or None when it holds no comparison."""
    for keys, reader in _COMPARISON_SHAPES:
        if all(key in row for key in keys):
            return reader
    return None


def _from_export(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    return [export_format.comparison_from_row(row, fallback_id)]


def _from_tldr_comparison(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    document_id, document = _tldr_document(row["info"])
    summaries = row_values.entries(row["summaries"], "summaries")
    candidates = tuple(_tldr_candidate(summary) for summary in summaries)
    extra = _object(row.get("extra"), "extra")  # beside confidence, what andon.corpus.writers adds
    tiers = row_values.tiers_of_choice(row["choice"], len(candidates))
    ratings = export_format.ratings_from_row(extra.get("ratings"), len(candidates))
    readings = [row_values.text(_object(each, "a summary").get("note") or "", "note") for each in summaries]
    if not ratings and any(readings):
        ratings = tuple(RatingRecord(naive_reading=reading) for reading in readings)
    purpose = extra.get("purpose", "ordinary")
    if purpose not in PURPOSES:
        raise RowError(f"purpose must be one of {', '.join(PURPOSES)}")
    return [
        ComparisonRecord(
            document_id=document_id,
            document=document,
            candidates=candidates,
            tiers=tiers,
            only_best_known=(
                len(candidates) > 2 or row_values.truth(extra.get("only_best_known"), "only_best_known")
            ),
            labeler_id=row_values.identifier(row.get("worker"), "worker"),
            confidence=row_values.scale_point(
                extra.get("confidence"),
                "confidence",
                high=row_values.MAX_CONFIDENCE,
                reason="INVALID_CONFIDENCE",
            ),
            comparison_id=row_values.identifier(extra.get("comparison_id", fallback_id), "comparison_id"),
            batch=row_values.identifier(row.get("batch"), "batch"),
            preference=export_format.preference_from_row(extra.get("preference"), tiers),
            ratings=ratings,
            note=row_values.text(extra.get("note") or "", "note"),
            shown_order=row_values.permutation(extra.get("shown_order"), "shown_order", size=len(candidates)),
            answer_time=row_values.moment(extra.get("answer_time"), "answer_time"),
            duration_s=row_values.seconds(extra.get("duration_s"), "duration_s"),
            project=row_values.identifier(extra.get("project"), "project"),
            purpose=purpose,
            round=row_values.whole_number(extra.get("round", 0), "round", low=0),
            task_id=row_values.identifier(extra.get("task_id"), "task_id"),
        )
    ]


def _from_tldr_rating(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    document_id, document = _tldr_document(row["info"])
    summary = _object(row["summary"], "summary")
    axes = _object(summary.get("axes"), "axes")
    if not any(axes.values()):
        raise RowError("no axis was rated", NO_ANSWER)
    rating = {**axes, "flags": (), "naive_reading": summary.get("note")}
    return [
        ComparisonRecord(
            document_id=document_id,
            document=document,
            candidates=(_tldr_candidate(summary),),
            tiers=((0,),),
            labeler_id=row_values.identifier(row.get("worker"), "worker"),
            comparison_id=fallback_id,
            batch=row_values.identifier(row.get("batch"), "batch"),
            ratings=export_format.ratings_from_row((rating,), 1),
        )
    ]


def _from_chosen_rejected(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    chosen, rejected = (_last_turn(row[key]) for key in ("chosen", "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise RowError("chosen and rejected must be texts or lists of messages")
    prompt = row.get("prompt")
    if prompt is None:
        # HH repeats the whole dialogue; what both sides share up to an answer is the prompt.
        cut = _shared_dialogue_end(chosen, rejected)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    document = row_values.document_text(_last_turn(prompt), "prompt")
    return [
        ComparisonRecord(
            document_id=_first_id(row, ("id", "document_id"), content_digest(document)),
            document=document,
            candidates=(
                CandidateRecord(text=row_values.candidate_text(chosen), source="chosen"),
                CandidateRecord(text=row_values.candidate_text(rejected), source="rejected"),
            ),
            tiers=((0,), (1,)),
            comparison_id=fallback_id,
        )
    ]


def _from_plain_pair(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    # A document with a question about it is another item than the same document with another question.
    parts = [
        next((row[key] for key in (*DOCUMENT_KEYS, "prompt") if row.get(key)), None),
        row.get("question"),
    ]
    document = _joined(parts, "document")
    candidates = _named_candidates(row["summaries"], row.get("systems"))
    return [
        ComparisonRecord(
            document_id=_first_id(row, ("item_id", "id", "document_id"), content_digest(document)),
            document=document,
            candidates=candidates,
            tiers=row_values.tiers_of_choice(row["choice"], len(candidates)),
            only_best_known=len(candidates) > 2,
            labeler_id=_first_id(row, ("worker_id", "worker", "labeler_id"), ""),
            comparison_id=fallback_id,
        )
    ]


def _from_annotator_choices(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    parts = [row.get("instruction") or row.get("document") or row.get("prompt"), row.get("input")]
    document = _joined(parts, "instruction")
    candidates = _named_candidates(row["responses"], row.get("systems"))
    choices = _object(row["choices"], "choices")
    if not choices:
        raise RowError("no annotator chose", NO_ANSWER)
    return [
        ComparisonRecord(
            document_id=_first_id(row, ("item_id", "id"), content_digest(document)),
            document=document,
            candidates=candidates,
            tiers=row_values.tiers_of_choice(choice, len(candidates)),
            only_best_known=len(candidates) > 2,
            labeler_id=row_values.identifier(annotator, "annotator"),
            comparison_id=f"{fallback_id}/{annotator}",
        )
        for annotator, choice in choices.items()
    ]


def _from_rater_verdicts(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    verdicts = {
        rater: row_values.truth(verdict, "factual")
        for rater, verdict in _object(row["factual"], "factual").items()
        if verdict is not None
    }
    if not verdicts:
        raise RowError("no rater decided", NO_ANSWER)
    # The articles are not part of the set, only their ids.
    document = row_values.text(row.get("document") or "", "document")
    candidate = CandidateRecord(
        text=row_values.candidate_text(row["summary"]),
        source=row_values.identifier(row.get("system"), "system"),
    )
    return [
        ComparisonRecord(
            document_id=_first_id(row, ("document_id", "id"), content_digest(document)),
            document=document,
            candidates=(candidate,),
            tiers=((0,),),
            labeler_id=row_values.identifier(rater, "rater"),
            comparison_id=f"{fallback_id}/{rater}",
            verdict=verdict,
        )
        for rater, verdict in verdicts.items()
    ]


_COMPARISON_SHAPES: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("candidates", "tiers"), _from_export),
    (("info", "summaries", "choice"), _from_tldr_comparison),
    (("info", "summary"), _from_tldr_rating),
    (("chosen", "rejected"), _from_chosen_rejected),
    (("summaries", "choice"), _from_plain_pair),
    (("responses", "choices"), _from_annotator_choices),
    (("summary", "factual"), _from_rater_verdicts),
)


def _tldr_document(value: object) -> tuple[str, str]:
    info = _object(value, "info")
    document = next((info[key] for key in ("post", "article") if info.get(key)), None)
    document = row_values.document_text(document, "info.post")
    return _first_id(info, ("id",), content_digest(document)), document


def _tldr_candidate(value: object) -> CandidateRecord:
    summary = _object(value, "a summary")
    version = summary.get("policy_version")
    return CandidateRecord(
        text=row_values.candidate_text(summary.get("text")),
        source=row_values.identifier(summary.get("source", summary.get("policy")), "policy"),
        policy_version=None if version is None else row_values.text(version, "policy_version"),
    )


def _named_candidates(texts: object, systems: object) -> tuple[CandidateRecord, ...]:
    listed = row_values.entries(texts, "the compared texts")
    names = row_values.entries(systems, "systems") or [""] * len(listed)
    if len(listed) < 2 or len(names) != len(listed):
        raise RowError(f"{len(listed)} texts to compare by {len(names)} systems", "CANDIDATE_COUNT")
    return tuple(
        CandidateRecord(text=row_values.candidate_text(text), source=row_values.identifier(name, "a system"))
        for text, name in zip(listed, names, strict=True)
    )


def _joined(parts: list[Any], what: str) -> str:
    """The texts among the parts with an empty line between; Any: they are whatever the row holds."""
    texts = [row_values.text(part, what, reason="EMPTY_DOCUMENT") for part in parts if part]
    return row_values.document_text("\n\n".join(texts), what)


def _shared_dialogue_end(chosen: str, rejected: str) -> int:
    """Where the last answer begins that both dialogues come to with the same words."""
    start = chosen.rfind(LAST_SPEAKER)
    while start >= 0:
        end = start + len(LAST_SPEAKER)
        if rejected.startswith(chosen[:end]):
            return end
        start = chosen.rfind(LAST_SPEAKER, 0, start)
    raise RowError("chosen and rejected share no dialogue that ends before an answer")


def _first_id(row: Row, keys: tuple[str, ...], fallback: str) -> str:
    """The first id that the row has; 0 is one."""
    found = (row_values.identifier(row.get(key), key) for key in keys)
    return next(filter(None, found), fallback)


def _object(value: object, what: str) -> Row:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowError(f"{what} must be an object, not {type(value).__name__}")
    return value


def _last_turn(value: object) -> object:
    """Chat rows hold a list of messages where others hold a text; the last message is what was written."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return value[-1].get("content")
    return value


def _summary_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError("summary must be a text that is not empty")
    return row_values.text(value, "summary")
