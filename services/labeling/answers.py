"""What an answer is, which answers are taken, and what they say about the task.

A labeler speaks of places on their screen; what is recorded speaks of the submitter's order. The translation
happens here, once. The servicer calls :func:`check_answers` before the store is troubled, the store calls
:func:`decision_in_task_order` with the lease it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.labeling.errors import InvalidFieldError
from services.labeling.limits import MAX_NOTE_CHARS, check_text
from services.labeling.tasks import Candidate

MAX_ANSWERS_PER_SUBMISSION = 1_000
MAX_CONFIDENCE = 9
MAX_LEASE_ID_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best candidate; nothing is said about the others."""

    best_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All candidates, best tier first; candidates of one tier are equally good."""

    tiers: tuple[tuple[int, ...], ...]


Decision = Choice | Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDraft:
    """An answer as the labeler sent it: indices are places on their screen."""

    lease_id: str
    decision: Decision | None
    confidence: int = 0
    note: str = ""
    answer_duration_us: int | None = None  # as the labeler's client measured it


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A recorded answer with its task: indices are the submitter's."""

    comparison_id: int
    task_id: int
    batch: str
    document_id: str
    document: str
    candidates: tuple[Candidate, ...]
    decision: Decision
    confidence: int
    note: str
    labeler_id: str
    shown_order: tuple[int, ...]
    lease_us: int
    answer_us: int
    answer_duration_us: int | None


def check_answers(answers: Sequence[AnswerDraft]) -> None:
    """Refuse what no lease could make right."""
    if not answers:
        raise InvalidFieldError("at least one answer is needed", reason="EMPTY_REQUEST", field="answers")
    if len(answers) > MAX_ANSWERS_PER_SUBMISSION:
        raise InvalidFieldError(
            f"{len(answers):,} answers; at most {MAX_ANSWERS_PER_SUBMISSION:,}",
            reason="TOO_MANY_ANSWERS",
            field="answers",
        )
    seen: set[str] = set()
    for index, answer in enumerate(answers):
        field = f"answers[{index}]"
        if answer.lease_id in seen:
            raise _invalid("answered twice in one request", field=f"{field}.lease_id")
        seen.add(answer.lease_id)
        check_text(
            answer.lease_id, field=f"{field}.lease_id", max_chars=MAX_LEASE_ID_CHARS, reason="INVALID_ANSWER"
        )
        if answer.decision is None:
            raise _invalid("neither a choice nor a ranking", field=f"{field}.decision")
        if not 0 <= answer.confidence <= MAX_CONFIDENCE:
            raise _invalid(f"{answer.confidence}; 0 to {MAX_CONFIDENCE}", field=f"{field}.confidence")
        check_text(answer.note, field=f"{field}.note", max_chars=MAX_NOTE_CHARS, reason="INVALID_ANSWER")
        if answer.answer_duration_us is not None and answer.answer_duration_us < 0:
            raise _invalid("is negative", field=f"{field}.answer_duration")


def decision_in_task_order(
    decision: Decision | None, shown_order: tuple[int, ...], *, field: str
) -> Decision:
    """The decision in the submitter's indices.

    ``shown_order[i]`` is the submitter's index of the candidate at place i. ``field`` names the answer in
    errors.
    """
    if isinstance(decision, Choice):
        if not 0 <= decision.best_index < len(shown_order):
            raise _invalid(
                f"{decision.best_index}; there are {len(shown_order)} candidates",
                field=f"{field}.choice.best_index",
            )
        return Choice(best_index=shown_order[decision.best_index])
    if isinstance(decision, Ranking):
        places = [place for tier in decision.tiers for place in tier]
        if sorted(places) != list(range(len(shown_order))) or not all(decision.tiers):
            raise _invalid(
                f"each of the {len(shown_order)} candidates stands in exactly one tier, and no tier is empty",
                field=f"{field}.ranking.tiers",
            )
        # Inside a tier nothing is said about order, so the recorded one is canonical.
        return Ranking(
            tiers=tuple(tuple(sorted(shown_order[place] for place in tier)) for tier in decision.tiers)
        )
    raise _invalid("neither a choice nor a ranking", field=f"{field}.decision")


def _invalid(message: str, *, field: str) -> InvalidFieldError:
    return InvalidFieldError(message, reason="INVALID_ANSWER", field=field)
