"""Which fields the form of an item has, what is missing in it, and which answer it makes.

The same fields serve the page with and without scripts, half-finished answers that are kept, and earlier
answers that are opened again. A candidate is known by its letter: its place on the labeler's screen. Pure
rules over plain values; the limits of an answer itself are those of :mod:`services.labeling.answers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.labeling.answers import (
    AXES,
    INDIFFERENT,
    MAX_NAIVE_READING_CHARS,
    MAX_PREFERENCE,
    MAX_RATING,
    AnswerDraft,
    Choice,
    Comparison,
    Decision,
    Flag,
    Ranking,
    Rating,
    Telemetry,
    decision_from_preference,
)
from services.labeling.demonstration_store import MAX_DEMONSTRATION_CHARS, DemonstrationDraft
from services.labeling.errors import InvalidFieldError
from services.labeling.limits import MAX_NOTE_CHARS
from services.labeling.projects import ProjectSettings
from services.labeling.web.forms import Form

LETTERS = "ABCDEFGHI"
AIDS = ("word_differences", "look_up")
DEVICES = ("", "desktop", "tablet", "phone")
PAIR = 2

_SHAPE = 1  # of the JSON that is kept of a half-finished answer
_MAX_MOMENT_MS = 253_402_300_799_000  # the end of the year 9999
_MAX_ACTIVE_MS = 86_400_000
_MAX_CHANGES = 1_000_000
_MAX_VERSION = 2**31 - 1
_PAGE_VERSION_CHARS = 16

_MAX_SENT_CHARS = 2_000_000  # a body is no longer

T = TypeVar("T")

_SCALE = ("far better", "much better", "better", "slightly better")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One of the nine marks of a pair."""

    value: int  # 1 .. 9
    words: str  # in full: "A far better"
    degree: str  # without the letter: "far better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What the page measured; all of it may be missing. Moments are milliseconds since 1970."""

    shown_ms: int | None = None
    first_ms: int | None = None
    submitted_ms: int | None = None
    active_ms: int | None = None
    changes: int = 0
    aids: tuple[str, ...] = ()
    device: str = ""
    page: str = ""
    instructions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFields:
    """What is said about one candidate."""

    rank: int | None = None  # 1 is the best; equal numbers are equally good
    axes: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFields:
    """The form of an item, finished or not."""

    preference: int | None = None
    slots: tuple[SlotFields, ...] = ()
    note: str = ""
    text: str | None = None  # of a demonstration; None: nothing was typed yet
    measures: Measures = field(default_factory=Measures)

    @property
    def has_all_readings(self) -> bool:
        """Whether each candidate was read by itself."""
        return bool(self.slots) and all(slot.reading for slot in self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFields:
    """A form as it was sent."""

    fields: AnswerFields
    problems: Mapping[str, str]  # by field


def marks(*, no_indifference: bool) -> list[Mark]:
    """The marks of the scale, from A to B."""
    toward_a = [Mark(value=index + 1, words=f"A {words}", degree=words) for index, words in enumerate(_SCALE)]
    toward_b = [
        Mark(value=MAX_PREFERENCE - index, words=f"B {words}", degree=words)
        for index, words in enumerate(_SCALE)
    ]
    middle = [] if no_indifference else [Mark(value=INDIFFERENT, words="No difference", degree="the same")]
    return [*toward_a, *middle, *reversed(toward_b)]


def read_fields(form: Form, *, num_candidates: int) -> ReadFields:
    """Read a form, finished or not. What no page of ours sends becomes a problem; the rest stands."""
    reader = _Reader(form)
    fields = AnswerFields(
        preference=reader.integer("preference", minimum=1, maximum=MAX_PREFERENCE),
        slots=tuple(_read_slot(reader, letter, num_candidates) for letter in LETTERS[:num_candidates]),
        note=reader.text("note", max_chars=MAX_NOTE_CHARS),
        text=reader.text("text", max_chars=MAX_DEMONSTRATION_CHARS) if "text" in form else None,
        measures=_read_measures(reader),
    )
    return ReadFields(fields=fields, problems=reader.problems)


def fields_to_json(fields: AnswerFields) -> dict[str, Any]:  # Any: whatever JSON holds
    """As a half-finished answer is kept."""
    return {"shape": _SHAPE, **dataclasses.asdict(fields)}


def fields_from_json(content: Mapping[str, Any] | None, *, num_candidates: int) -> AnswerFields:
    """Read what :func:`fields_to_json` wrote; what another version wrote counts as nothing."""
    if content is None or content.get("shape") != _SHAPE or len(content["slots"]) != num_candidates:
        return AnswerFields(slots=(SlotFields(),) * num_candidates)
    return AnswerFields(
        preference=content["preference"],
        slots=tuple(
            SlotFields(
                rank=slot["rank"], axes=slot["axes"], flags=tuple(slot["flags"]), reading=slot["reading"]
            )
            for slot in content["slots"]
        ),
        note=content["note"],
        text=content["text"],
        measures=Measures(**{**content["measures"], "aids": tuple(content["measures"]["aids"])}),
    )


def missing_readings(fields: AnswerFields) -> dict[str, str]:
    """What the first step of an item lacks, by field."""
    return {
        f"reading_{letter}": "say in a few words what it tells you"
        for letter, slot in zip(LETTERS, fields.slots, strict=False)
        if not slot.reading
    }


def missing_in_comparison(fields: AnswerFields, settings: ProjectSettings) -> dict[str, str]:
    """What a comparison lacks, by field; empty when it is complete."""
    problems: dict[str, str] = {}
    if len(fields.slots) == PAIR:
        if fields.preference is None:
            problems["preference"] = "choose how much better one of them is"
        elif fields.preference == INDIFFERENT and settings.no_indifference:
            problems["preference"] = "this project asks you to choose a side"
    else:
        without = [letter for letter, slot in zip(LETTERS, fields.slots, strict=False) if slot.rank is None]
        if len(without) == len(fields.slots):
            problems["ranking"] = "put all of them in order, the best first"
        elif without:
            problems["ranking"] = (
                f"{join_words(without)} {'has' if len(without) == 1 else 'have'} no place yet"
            )
    if settings.rating_axes:
        for letter, slot in zip(LETTERS, fields.slots, strict=False):
            unrated = [axis for axis in AXES if axis not in slot.axes]
            if unrated and Flag.CANNOT_JUDGE.value not in slot.flags:
                problems[f"axes_{letter}"] = f"rate {join_words(unrated)}, or flag that you can't judge"
    return problems


def missing_in_text(fields: AnswerFields, *, original: str | None) -> dict[str, str]:
    """What a written or, with an ``original``, edited text lacks, by field."""
    text = (fields.text or "").strip()
    if not text:
        return {"text": "write something"}
    if original is not None and text == original.strip():
        return {"text": "nothing is changed yet; if nothing needs to be, skip it and say so"}
    return {}


def answer_of(fields: AnswerFields, *, lease_id: str, readings: tuple[str, ...] = ()) -> AnswerDraft:
    """The answer that a complete form makes; ``readings`` were given in the first step, by place."""
    is_pair = len(fields.slots) == PAIR
    decision: Decision | None = None
    if not is_pair:
        decision = ranking_of(fields)
    elif fields.preference is not None:
        decision = decision_from_preference(fields.preference)
    ratings = tuple(
        Rating(
            accuracy=slot.axes.get("accuracy"),
            coverage=slot.axes.get("coverage"),
            coherence=slot.axes.get("coherence"),
            overall=slot.axes.get("overall"),
            flags=tuple(Flag(flag) for flag in slot.flags),
            naive_reading=readings[place] if readings else "",
        )
        for place, slot in enumerate(fields.slots)
    )
    return AnswerDraft(
        lease_id=lease_id,
        decision=decision,
        preference=fields.preference if is_pair else None,
        ratings=ratings if any(rating != Rating() for rating in ratings) else (),
        note=fields.note,
        answer_duration_us=duration_us_of(fields.measures),
        telemetry=telemetry_of(fields.measures),
    )


def demonstration_of(fields: AnswerFields, *, lease_id: str) -> DemonstrationDraft:
    """The text that a complete form makes."""
    return DemonstrationDraft(
        lease_id=lease_id,
        text=fields.text or "",
        note=fields.note,
        answer_duration_us=duration_us_of(fields.measures),
        telemetry=telemetry_of(fields.measures),
    )


def ranking_of(fields: AnswerFields) -> Ranking | None:
    """The order that the ranks make, None as long as one is missing."""
    tiers: dict[int, list[int]] = {}
    for place, slot in enumerate(fields.slots):
        if slot.rank is None:
            return None
        tiers.setdefault(slot.rank, []).append(place)
    return Ranking(tiers=tuple(tuple(tiers[rank]) for rank in sorted(tiers)))


def telemetry_of(measures: Measures) -> Telemetry:
    """What is recorded of how an answer came about."""
    return Telemetry(
        shown_us=_us(measures.shown_ms),
        first_action_us=_us(measures.first_ms),
        submit_us=_us(measures.submitted_ms),
        active_us=_us(measures.active_ms),
        change_count=measures.changes,
        aids=measures.aids,
        device_class=measures.device,
        page_version=measures.page,
        instructions_version=measures.instructions,
    )


def duration_us_of(measures: Measures) -> int | None:
    """From shown to submitted by the page's own clock; None where that makes no sense."""
    shown_ms, submitted_ms = measures.shown_ms, measures.submitted_ms
    if shown_ms is None or submitted_ms is None or submitted_ms < shown_ms:
        return None
    return _us(submitted_ms - shown_ms)


def fields_of_comparison(answer: Comparison) -> AnswerFields:
    """An earlier answer as the form that made it, in its labeler's order."""
    order = answer.shown_order
    place_of = {position: place for place, position in enumerate(order)}
    ranks: dict[int, int] = {}
    if isinstance(answer.decision, Ranking):
        for rank, tier in enumerate(answer.decision.tiers, start=1):
            ranks.update({place_of[position]: rank for position in tier})
    elif isinstance(answer.decision, Choice):
        ranks[place_of[answer.decision.best_index]] = 1
    preference = answer.preference
    if preference is not None and order != (0, 1):
        preference = MAX_PREFERENCE + 1 - preference
    slots = []
    for place, position in enumerate(order):
        rating = answer.ratings[position] if answer.ratings else Rating()
        axes = {axis: getattr(rating, axis) for axis in AXES}
        slots.append(
            SlotFields(
                rank=ranks.get(place),
                axes={axis: value for axis, value in axes.items() if value is not None},
                flags=tuple(flag.value for flag in rating.flags),
                reading=rating.naive_reading,
            )
        )
    return AnswerFields(preference=preference, slots=tuple(slots), note=answer.note)


def words_of_ranking(tiers: tuple[tuple[int, ...], ...]) -> str:
    """A ranking of places as people read it: "C > A = D > B"."""
    return " > ".join(" = ".join(LETTERS[place] for place in tier) for tier in tiers)


def words_of_answer(fields: AnswerFields) -> str:
    """A comparison in a few words: "B much better", "C > A = D > B"."""
    if fields.preference is not None:
        (mark,) = [mark for mark in marks(no_indifference=False) if mark.value == fields.preference]
        return mark.words
    ranking = ranking_of(fields)
    if ranking is not None:
        if len(fields.slots) == PAIR and len(ranking.tiers) == 1:
            return "No difference"
        return words_of_ranking(ranking.tiers)
    best = [letter for letter, slot in zip(LETTERS, fields.slots, strict=False) if slot.rank == 1]
    return f"{join_words(best)} best"


def join_words(words: list[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


class _Reader:
    """Reads on after a fault, so that one bad field does not cost somebody the others."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.problems: dict[str, str] = {}

    def integer(self, name: str, *, minimum: int, maximum: int) -> int | None:
        return self._read(lambda: self._form.integer(name, minimum=minimum, maximum=maximum), None)

    def text(self, name: str, *, max_chars: int) -> str:
        return self._read(lambda: self._form.text(name, max_chars=max_chars), "") or self._long(name)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        return self._read(lambda: self._form.choice(name, allowed), "")

    def several(self, name: str, allowed: Sequence[str], *, separator: str = "") -> tuple[str, ...]:
        """Some of the allowed words, in their order; with a separator, from one field."""

        def read() -> tuple[str, ...]:
            if separator:
                sent = [word for word in self._form.text(name, max_chars=500).split(separator) if word]
            else:
                sent = self._form.texts(name, max_chars=40, max_count=len(allowed))
            if len(set(sent)) != len(sent) or not set(sent) <= set(allowed):
                raise InvalidFieldError("choose of those offered", reason="INVALID_CHOICE", field=name)
            return tuple(word for word in allowed if word in sent)

        return self._read(read, ())

    def _read(self, read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except InvalidFieldError as error:
            self.problems[error.field] = error.problem
            return default

    def _long(self, name: str) -> str:
        """A text that is too long, for the page that says so."""
        return self._read(lambda: self._form.text(name, max_chars=_MAX_SENT_CHARS), "")


def _read_slot(reader: _Reader, letter: str, num_candidates: int) -> SlotFields:
    axes = {axis: reader.integer(f"{axis}_{letter}", minimum=1, maximum=MAX_RATING) for axis in AXES}
    return SlotFields(
        rank=reader.integer(f"rank_{letter}", minimum=1, maximum=num_candidates),
        axes={axis: value for axis, value in axes.items() if value is not None},
        flags=reader.several(f"flag_{letter}", [flag.value for flag in Flag]),
        reading=reader.text(f"reading_{letter}", max_chars=MAX_NAIVE_READING_CHARS),
    )


def _read_measures(reader: _Reader) -> Measures:
    def count(name: str, maximum: int = _MAX_MOMENT_MS) -> int | None:
        return reader.integer(name, minimum=0, maximum=maximum)

    return Measures(
        shown_ms=count("shown_ms"),
        first_ms=count("first_ms"),
        submitted_ms=count("submitted_ms"),
        active_ms=count("active_ms", _MAX_ACTIVE_MS),
        changes=count("changes", _MAX_CHANGES) or 0,
        aids=reader.several("aids", AIDS, separator=","),
        device=reader.choice("device", DEVICES),
        page=reader.text("page", max_chars=_PAGE_VERSION_CHARS),
        instructions=count("instructions", _MAX_VERSION) or 0,
    )


def _us(value_ms: int | None) -> int | None:
    return None if value_ms is None else value_ms * 1000
