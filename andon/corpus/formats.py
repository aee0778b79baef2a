"""Recognises the public shapes of rows and turns a row into records.

Called by ``andon.corpus.loaders``, which knows where rows come from; nothing here reads a file. A shape is
recognised by the keys of a row:

    comparisons   ``candidates``, ``tiers``                      Andon's own export
                  ``info``, ``summaries``, ``choice``, ``worker``  TL;DR comparisons (Stiennon et al. 2020)
                  ``chosen``, ``rejected`` (and ``prompt``)      HH (Bai et al. 2022) and its descendants
                  ``summaries``, ``choice``                      plain pairs, ``choice`` null for a tie
                  ``responses``, ``choices``                     one choice per annotator (PandaLM)
    documents     ``document`` | ``post`` | ``article`` | ``text``, and
                  ``summaries`` | ``summary`` | ``highlights`` | ``reference``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from andon.corpus.records import CandidateRecord, ComparisonRecord, DocumentRecord

Row = Mapping[str, Any]  # one decoded JSON object; its values are whatever the file holds

DOCUMENT_KEYS = ("document", "post", "article", "text")
SUMMARY_KEYS = ("summaries", "summary", "highlights", "reference")
_LAST_SPEAKER = "\n\nAssistant:"


class RowError(ValueError):
    """A row has the keys of a shape but not its values."""


def document_from_row(row: Row, fallback_id: str) -> DocumentRecord:
    """A row of documents as a record; ``fallback_id`` names it when the row does not."""
    document = next((row[key] for key in DOCUMENT_KEYS if key in row), None)
    raw = next((row[key] for key in SUMMARY_KEYS if row.get(key) is not None), ())
    summaries = (raw,) if isinstance(raw, str) else tuple(raw)
    title = row.get("title")
    facts = row.get("facts")
    return DocumentRecord(
        document_id=str(row.get("id") or row.get("document_id") or fallback_id),
        document=_text(document, "document"),
        summaries=tuple(_text(summary, "summary") for summary in summaries),
        title=title if isinstance(title, str) else None,
        facts=dict(facts) if isinstance(facts, Mapping) else None,
    )


def is_document_row(row: Row) -> bool:
    """Whether the row has the keys of a document."""
    return any(key in row for key in DOCUMENT_KEYS)


def comparison_reader(row: Row) -> Callable[[Row, str], list[ComparisonRecord]] | None:
    """The reader for comparisons of this row's shape, or None when it holds no comparison."""
    for keys, reader in _COMPARISON_SHAPES:
        if all(key in row for key in keys):
            return reader
    return None


def _from_export(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    candidates = tuple(
        CandidateRecord(
            text=_candidate_text(candidate.get("text")),
            source=str(candidate.get("source", "")),
            policy_version=candidate.get("policy_version"),
        )
        for candidate in row["candidates"]
    )
    tiers = tuple(tuple(int(index) for index in tier) for tier in row["tiers"])
    if sorted(index for tier in tiers for index in tier) != list(range(len(candidates))):
        raise RowError("tiers must hold each candidate's index exactly once")
    return [
        ComparisonRecord(
            document_id=str(row.get("document_id") or fallback_id),
            document=_text(row.get("document"), "document"),
            candidates=candidates,
            tiers=tiers,
            only_best_known=bool(row.get("only_best_known", False)),
            labeler_id=str(row.get("labeler_id", "")),
            confidence=row.get("confidence"),
            comparison_id=str(row.get("comparison_id", fallback_id)),
            batch=str(row.get("batch", "")),
        )
    ]


def _from_tldr_comparison(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    info = row["info"]
    document = next((info[key] for key in ("post", "article") if info.get(key)), None)
    confidence = (row.get("extra") or {}).get("confidence")
    return [
        ComparisonRecord(
            document_id=str(info.get("id") or fallback_id),
            document=_text(document, "info.post"),
            candidates=tuple(
                CandidateRecord(
                    text=_candidate_text(summary.get("text")), source=str(summary.get("policy", ""))
                )
                for summary in row["summaries"]
            ),
            tiers=_tiers(row["choice"], len(row["summaries"])),
            only_best_known=len(row["summaries"]) > 2,
            labeler_id=str(row.get("worker", "")),
            confidence=confidence if isinstance(confidence, int) and 1 <= confidence <= 9 else None,
            comparison_id=fallback_id,
            batch=str(row.get("batch", "")),
        )
    ]


def _from_chosen_rejected(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    chosen, rejected = (_last_turn(row[key]) for key in ("chosen", "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise RowError("chosen and rejected must be texts or lists of messages")
    prompt = row.get("prompt")
    if prompt is None:
        # HH repeats the whole dialogue; what both sides share up to the last answer is the prompt.
        cut = chosen.rfind(_LAST_SPEAKER)
        if cut < 0 or not rejected.startswith(chosen[:cut]):
            raise RowError("chosen and rejected share no dialogue that ends before an answer")
        cut += len(_LAST_SPEAKER)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:].removeprefix(_LAST_SPEAKER)
    return [
        ComparisonRecord(
            document_id=str(row.get("id") or fallback_id),
            document=_text(_last_turn(prompt), "prompt"),
            candidates=(
                CandidateRecord(text=_candidate_text(chosen), source="chosen"),
                CandidateRecord(text=_candidate_text(rejected), source="rejected"),
            ),
            tiers=((0,), (1,)),
            comparison_id=fallback_id,
        )
    ]


def _from_plain_pair(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    document = next((row[key] for key in (*DOCUMENT_KEYS, "prompt", "question") if row.get(key)), None)
    systems = row.get("systems") or [""] * len(row["summaries"])
    return [
        ComparisonRecord(
            document_id=str(row.get("item_id") or row.get("id") or fallback_id),
            document=_text(document, "document"),
            candidates=tuple(
                CandidateRecord(text=_candidate_text(text), source=str(system))
                for text, system in zip(row["summaries"], systems, strict=True)
            ),
            tiers=_tiers(row["choice"], len(row["summaries"])),
            only_best_known=len(row["summaries"]) > 2,
            labeler_id=str(row.get("worker_id", row.get("worker", ""))),
            comparison_id=fallback_id,
        )
    ]


def _from_annotator_choices(row: Row, fallback_id: str) -> list[ComparisonRecord]:
    parts = [row.get("instruction") or row.get("document") or row.get("prompt"), row.get("input")]
    document = "\n\n".join(part for part in parts if part)
    candidates = tuple(
        CandidateRecord(text=_candidate_text(text), source=str(system))
        for text, system in zip(row["responses"], row.get("systems") or ("", ""), strict=True)
    )
    return [
        ComparisonRecord(
            document_id=str(row.get("item_id", fallback_id)),
            document=_text(document, "instruction"),
            candidates=candidates,
            tiers=_tiers(choice, len(candidates)),
            only_best_known=len(candidates) > 2,
            labeler_id=str(annotator),
            comparison_id=f"{fallback_id}/{annotator}",
        )
        for annotator, choice in row["choices"].items()
    ]


_COMPARISON_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Row, str], list[ComparisonRecord]]], ...] = (
    (("candidates", "tiers"), _from_export),
    (("info", "summaries", "choice"), _from_tldr_comparison),
    (("chosen", "rejected"), _from_chosen_rejected),
    (("summaries", "choice"), _from_plain_pair),
    (("responses", "choices"), _from_annotator_choices),
)


def _tiers(choice: object, candidate_count: int) -> tuple[tuple[int, ...], ...]:
    """The decision "candidate ``choice`` is best" (None: all alike) as tiers."""
    everyone = range(candidate_count)
    if choice is None:
        return (tuple(everyone),)
    if not isinstance(choice, int) or isinstance(choice, bool) or choice not in everyone:
        raise RowError(f"choice must be null or 0..{candidate_count - 1}, not {choice!r}")
    return ((choice,), tuple(index for index in everyone if index != choice))


def _last_turn(value: object) -> object:
    """Chat rows hold a list of messages where others hold a text; the last message is what was written."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return value[-1].get("content")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{what} must be a text that is not empty")
    return value


def _candidate_text(value: object) -> str:
    """A text that was compared. It may be empty: people judged that nothing, too."""
    if not isinstance(value, str):
        raise RowError(f"a candidate must be a text, not {type(value).__name__}")
    return value.strip()
