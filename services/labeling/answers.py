"""What an answer is, which answers are taken, and what they say about the task.

A labeler speaks of places on their screen; what is recorded speaks of the submitter's order. The translation
happens here, once, in :func:`in_task_order`. The servicer and the pages call :func:`check_answers` before the
store is troubled, the store calls the rest with the lease it found.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.labeling.errors import InvalidFieldError
from services.labeling.limits import MAX_NOTE_CHARS, check_text
from services.labeling.quality.records import Purpose
from services.labeling.tasks import Candidate

MAX_ANSWERS_PER_SUBMISSION = 1_000
MAX_CONFIDENCE = 9
MAX_PREFERENCE = 9
INDIFFERENT = 5
MAX_RATING = 7
MAX_LEASE_ID_CHARS = 200
MAX_NAIVE_READING_CHARS = 2_000
MAX_AIDS = 20
MAX_WORD_CHARS = 64
_MAX_MOMENT_US = 253_402_300_799 * 1_000_000  # the end of the year 9999, the last that a Timestamp may hold

T = TypeVar("T")


class Flag(enum.Enum):
    """Asks for a review of a candidate; it never deletes anything."""

    HARMFUL = "harmful"
    MADE_UP = "made_up"
    PERSONAL_DATA = "personal_data"
    CANNOT_JUDGE = "cannot_judge"


class Origin(enum.Enum):
    """Where an answer was given."""

    SITE = "site"
    GRPC = "grpc"
    IMPORT = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best candidate; nothing is said about the others."""

    best_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All candidates, best tier first; candidates of one tier are equally good."""

    tiers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Yes or no to the one candidate of the task."""

    affirmed: bool


Decision = Choice | Ranking | Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What a labeler says of one candidate by itself. Axes are 1 (bad) to 7 (good), None when not asked."""

    accuracy: int | None = None
    coverage: int | None = None
    coherence: int | None = None
    overall: int | None = None
    flags: tuple[Flag, ...] = ()
    naive_reading: str = ""  # what they took it to say before the document was shown


AXES = ("accuracy", "coverage", "coherence", "overall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """How an answer came about, as the labeler's page measured it."""

    shown_us: int | None = None
    first_action_us: int | None = None
    submit_us: int | None = None
    active_us: int | None = None  # the page visible and not idle
    change_count: int = 0
    aids: tuple[str, ...] = ()
    device_class: str = ""  # "desktop", "tablet" or "phone"
    page_version: str = ""
    instructions_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDraft:
    """An answer as the labeler sent it: indices are places on their screen."""

    lease_id: str
    decision: Decision | None
    confidence: int = 0
    preference: int | None = None  # pairs: 1 (the first is far better) .. 9 (the second is)
    ratings: tuple[Rating, ...] = ()  # by place, or none
    note: str = ""
    answer_duration_us: int | None = None  # as the labeler's client measured it
    telemetry: Telemetry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A recorded answer with its task: indices are the submitter's."""

    comparison_id: int
    task_id: int
    project: str
    batch: str
    purpose: Purpose
    document_id: str
    document: str
    candidates: tuple[Candidate, ...]
    decision: Decision
    confidence: int
    preference: int | None
    ratings: tuple[Rating, ...]
    note: str
    labeler_id: str
    round: int
    supersedes_id: int | None
    is_superseded: bool
    origin: Origin
    shown_order: tuple[int, ...]
    lease_us: int
    answer_us: int
    answer_duration_us: int | None
    telemetry: Telemetry | None


def check_answers(answers: Sequence[AnswerDraft]) -> None:
    """Refuse what no lease could make right."""
    check_count(len(answers), field="answers")
    seen: set[str] = set()
    for index, answer in enumerate(answers):
        field = f"answers[{index}]"
        if answer.lease_id in seen:
            raise _invalid("answered twice in one request", field=f"{field}.lease_id")
        seen.add(answer.lease_id)
        check_answer(answer, field=field)


def check_count(count: int, *, field: str) -> None:
    """At least one, and not more than one call may hold."""
    if not count:
        raise InvalidFieldError("at least one is needed", reason="EMPTY_REQUEST", field=field)
    if count > MAX_ANSWERS_PER_SUBMISSION:
        raise InvalidFieldError(
            f"{count:,}; at most {MAX_ANSWERS_PER_SUBMISSION:,}", reason="TOO_MANY_ANSWERS", field=field
        )


def check_answer(answer: AnswerDraft, *, field: str) -> None:
    """Refuse one answer that no lease could make right. ``field`` names it in errors."""
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
    if answer.preference is not None:
        _check_preference(answer.preference, answer.decision, field=f"{field}.preference")
    for place, rating in enumerate(answer.ratings):
        _check_rating(rating, field=f"{field}.ratings[{place}]")
    if answer.telemetry is not None:
        _check_telemetry(answer.telemetry, field=f"{field}.telemetry")


def decision_from_preference(preference: int) -> Choice | Ranking:
    """What a mark on the 9-point scale of a pair says: the first, the second, or no difference."""
    if preference == INDIFFERENT:
        return Ranking(tiers=((0, 1),))
    return Ranking(tiers=((0,), (1,)) if preference < INDIFFERENT else ((1,), (0,)))


def confidence_from_preference(preference: int) -> int:
    """How sure a mark on the 9-point scale is: 1 in the middle, 9 at the ends."""
    return 1 + 2 * abs(preference - INDIFFERENT)


def in_task_order(answer: AnswerDraft, shown_order: tuple[int, ...], *, field: str) -> AnswerDraft:
    """The answer in the submitter's indices.

    ``shown_order[i]`` is the submitter's index of the candidate at place i. ``field`` names the answer in
    errors.
    """
    if answer.ratings and len(answer.ratings) != len(shown_order):
        raise _invalid(
            f"{len(answer.ratings)} ratings; one for each of the {len(shown_order)} candidates, or none",
            field=f"{field}.ratings",
        )
    preference = answer.preference
    confidence = answer.confidence
    if preference is not None:
        if len(shown_order) != 2:
            raise _invalid("only pairs have one", field=f"{field}.preference")
        confidence = confidence_from_preference(preference)
        preference = preference if shown_order == (0, 1) else MAX_PREFERENCE + 1 - preference
    return replace(
        answer,
        decision=decision_in_task_order(answer.decision, shown_order, field=field),
        preference=preference,
        confidence=confidence,
        ratings=to_task_order(answer.ratings, shown_order) if answer.ratings else (),
    )


def to_task_order(by_place: Sequence[T], shown_order: Sequence[int]) -> tuple[T, ...]:
    """Values by place on the screen, in the submitter's order."""
    by_position = dict(zip(shown_order, by_place, strict=True))
    return tuple(by_position[position] for position in range(len(shown_order)))


def decision_in_task_order(
    decision: Decision | None, shown_order: tuple[int, ...], *, field: str
) -> Decision:
    """The decision in the submitter's indices; see :func:`in_task_order`."""
    if isinstance(decision, Verdict):
        if len(shown_order) != 1:
            raise _invalid("only a task with one candidate has one", field=f"{field}.verdict")
        return decision
    if len(shown_order) == 1:
        raise _invalid("a task with one candidate takes a verdict", field=f"{field}.decision")
    if isinstance(decision, Choice):
        if not 0 <= decision.best_index < len(shown_order):
            raise _invalid(
                f"{decision.best_index}; there are {len(shown_order)} candidates",
                field=f"{field}.choice.best_index",
            )
        return Choice(best_index=shown_order[decision.best_index])
    if isinstance(decision, Ranking):
        return Ranking(tiers=tiers_in_task_order(decision.tiers, shown_order, field=f"{field}.ranking.tiers"))
    raise _invalid("neither a choice nor a ranking", field=f"{field}.decision")


def tiers_in_task_order(
    tiers: tuple[tuple[int, ...], ...], shown_order: Sequence[int], *, field: str
) -> tuple[tuple[int, ...], ...]:
    """The tiers in the submitter's indices; inside a tier nothing is said about order, so it is sorted."""
    places = [place for tier in tiers for place in tier]
    if sorted(places) != list(range(len(shown_order))) or not all(tiers):
        raise _invalid(
            f"each of the {len(shown_order)} candidates stands in exactly one tier, and no tier is empty",
            field=field,
        )
    return tuple(tuple(sorted(shown_order[place] for place in tier)) for tier in tiers)


def tiers_of(decision: Decision, num_candidates: int) -> tuple[tuple[int, ...], ...] | None:
    """The decision as tiers, None for a verdict; a choice has all others in one lower tier."""
    if isinstance(decision, Ranking):
        return decision.tiers
    if isinstance(decision, Verdict):
        return None
    others = tuple(index for index in range(num_candidates) if index != decision.best_index)
    return ((decision.best_index,), others)


def _check_preference(preference: int, decision: Decision, *, field: str) -> None:
    if not 1 <= preference <= MAX_PREFERENCE:
        raise _invalid(f"{preference}; 1 to {MAX_PREFERENCE}", field=field)
    if isinstance(decision, Verdict):
        raise _invalid("a verdict has none", field=field)
    said = tuple(tuple(sorted(tier)) for tier in tiers_of(decision, 2) or ())
    if Ranking(tiers=said) != decision_from_preference(preference):
        raise _invalid(f"{preference} contradicts the decision", field=field)


def _check_rating(rating: Rating, *, field: str) -> None:
    for axis in AXES:
        value = getattr(rating, axis)
        if value is not None and not 1 <= value <= MAX_RATING:
            raise _invalid(f"{value}; 1 to {MAX_RATING}", field=f"{field}.{axis}")
    if len(set(rating.flags)) != len(rating.flags):
        raise _invalid("names a flag twice", field=f"{field}.flags")
    check_text(
        rating.naive_reading,
        field=f"{field}.naive_reading",
        max_chars=MAX_NAIVE_READING_CHARS,
        reason="INVALID_ANSWER",
    )


def _check_telemetry(telemetry: Telemetry, *, field: str) -> None:
    for name in ("shown_us", "first_action_us", "submit_us", "active_us"):
        value = getattr(telemetry, name)
        if value is not None and not 0 <= value <= _MAX_MOMENT_US:
            raise _invalid("is out of range", field=f"{field}.{name}")
    if not 0 <= telemetry.change_count < 2**31 or not 0 <= telemetry.instructions_version < 2**31:
        raise _invalid("is out of range", field=field)
    if len(telemetry.aids) > MAX_AIDS:
        raise _invalid(f"at most {MAX_AIDS}", field=f"{field}.aids")
    for word in (*telemetry.aids, telemetry.device_class, telemetry.page_version):
        check_text(word, field=field, max_chars=MAX_WORD_CHARS, reason="INVALID_ANSWER")


def _invalid(message: str, *, field: str) -> InvalidFieldError:
    return InvalidFieldError(message, reason="INVALID_ANSWER", field=field)
