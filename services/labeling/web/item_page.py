"""What the page of an item shows: letters and texts, what was entered so far, where its forms go.

Only what a labeler may know is here: no number of a task or a candidate, no batch, no purpose, no source.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.labeling.answers import Flag
from services.labeling.project_store import ProjectRecord
from services.labeling.tasks import TaskKind
from services.labeling.web.answer_forms import LETTERS, PAIR, AnswerFields, Mark, SlotFields, marks
from services.labeling.web.site import Site
from services.labeling.web.work_desk import Step, kept_fields, kept_readings

LONG_WORDS = 150  # longer candidates are folded where there are scripts
SKIP_REASONS: Mapping[str, str] = {
    "subject": "I don't know enough about the subject",
    "broken": "The post or a summary is broken or empty",
    "language": "It is in a language that I don't read well",
    "content": "The content is harmful or private",
    "other": "Something else",
}
FLAG_WORDS: Mapping[str, str] = {
    Flag.HARMFUL.value: "Harmful",
    Flag.MADE_UP.value: "Made up",
    Flag.PERSONAL_DATA.value: "Personal data",
    Flag.CANNOT_JUDGE.value: "I can't judge it",
}
AXIS_WORDS: Mapping[str, tuple[str, str, str]] = {  # name, what 1 means, what 7 means
    "accuracy": ("Accuracy", "says false things", "all of it is in the post"),
    "coverage": ("Coverage", "misses the point", "has all that matters"),
    "coherence": ("Coherence", "hard to follow", "reads well by itself"),
    "overall": ("Overall", "bad", "excellent"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """A candidate on the page."""

    letter: str
    text: str
    num_words: int
    fields: SlotFields
    reading: str  # what was said in the first step

    @property
    def is_long(self) -> bool:
        """Whether it is folded."""
        return self.num_words > LONG_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemView:
    """The page of an item."""

    project: ProjectRecord
    item: str  # the token in forms and addresses
    kind: str  # "pair", "rank", "reading", "write" or "edit"
    document: str  # empty in the first step of an item that is read without it
    slots: tuple[SlotView, ...]
    fields: AnswerFields
    text: str  # of a demonstration, as it stands in the field
    marks: tuple[Mark, ...]
    action: str
    nonce: str
    page_version: str
    revision: int
    errors: Mapping[str, str]
    is_correction: bool = False
    is_correctable: bool = True
    may_skip: bool = True
    stage: str = ""  # "training" or "screening"
    stage_item: int = 0
    stage_items: int = 0
    num_own: int = 0
    num_done: int = 0
    num_wanted: int = 0
    previous: str | None = None

    @property
    def num_words(self) -> int:
        """Of the document."""
        return len(self.document.split())


def view_of_step(
    site: Site,
    step: Step,
    *,
    nonce: str,
    fields: AnswerFields | None = None,
    errors: Mapping[str, str] | None = None,
) -> ItemView:
    """The page of the item that a labeler has before them; ``fields`` are what was just sent."""
    item = step.item
    if item is None:
        raise ValueError("the step has no item")
    is_reading = step.kind.value == "reading"
    fields = fields or kept_fields(item)
    base = f"/work/{step.project.name}"
    onboarding = step.onboarding
    return ItemView(
        project=step.project,
        item=item.lease_id,
        kind="reading" if is_reading else kind_of(item.kind, len(item.candidates)),
        document="" if is_reading else item.document,
        slots=slots_of(item.candidates, fields, kept_readings(item)),
        fields=fields,
        text=text_of(item.kind, item.candidates, fields),
        marks=tuple(marks(no_indifference=step.project.settings.no_indifference)),
        action=f"{base}/reading" if is_reading else f"{base}/answer",
        nonce=nonce,
        page_version=page_version(site),
        revision=item.draft.revision if item.draft else 0,
        errors=errors or {},
        may_skip=onboarding is None,
        stage=onboarding.stage.value if onboarding else "",
        stage_item=onboarding.item if onboarding else 0,
        stage_items=onboarding.num_items if onboarding else 0,
        num_own=step.progress.num_own_answers if step.progress else 0,
        num_done=step.progress.num_answers if step.progress else 0,
        num_wanted=step.progress.num_slots if step.progress else 0,
        previous=None if onboarding else step.previous,
    )


def kind_of(kind: TaskKind, num_candidates: int) -> str:
    """Which form an item has."""
    if kind is TaskKind.COMPARE:
        return "pair" if num_candidates == PAIR else "rank"
    return str(kind.value)


def slots_of(
    candidates: tuple[str, ...], fields: AnswerFields, readings: tuple[str, ...]
) -> tuple[SlotView, ...]:
    """The candidates in the labeler's order."""
    return tuple(
        SlotView(
            letter=letter,
            text=text,
            num_words=len(text.split()),
            fields=slot,
            reading=readings[place] if readings else "",
        )
        for place, (letter, text, slot) in enumerate(zip(LETTERS, candidates, fields.slots, strict=False))
    )


def text_of(kind: TaskKind, candidates: tuple[str, ...], fields: AnswerFields) -> str:
    """What stands in the field for a text: what was typed, else what is to be edited."""
    if fields.text is not None:
        return fields.text
    return candidates[0] if kind is TaskKind.EDIT else ""


@functools.cache
def _template_digest() -> str:
    template = Path(__file__).parent / "templates" / "work_item.html"
    return hashlib.sha256(template.read_bytes()).hexdigest()


def page_version(site: Site) -> str:
    """Changes whenever the page of an item looks or works differently."""
    names = "\n".join((_template_digest(), *sorted(site.templates.assets)))
    return hashlib.sha256(names.encode()).hexdigest()[:12]
