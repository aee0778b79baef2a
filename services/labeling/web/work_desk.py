"""What a labeler has before them in a project, and how what they did there is recorded.

The labeler's pages call it in database threads. It brings the stores together: instructions come before the
onboarding, the onboarding before the work. Two things that the stores refuse are made good here where that
is right: a form that was sent twice at once, and a form that comes after its lease ran out although nobody
else got the item.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from services.labeling.answers import AnswerDraft, Origin
from services.labeling.demonstration_store import DemonstrationDraft, DemonstrationStore
from services.labeling.errors import (
    AnswerSupersededError,
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    LeaseNotFoundError,
)
from services.labeling.labeler_store import LabelerStore
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStep, OnboardingStore, Stage
from services.labeling.project_store import ProjectRecord, ProjectStore
from services.labeling.requests import RepeatableRequest
from services.labeling.site_store import Item, ItemProgress, SiteStore
from services.labeling.store import SkipDraft
from services.labeling.web.answer_forms import AnswerFields, fields_from_json
from services.labeling.web.site import Site

T = TypeVar("T")


class StepKind(enum.Enum):
    """Which page comes next."""

    INSTRUCTIONS = "instructions"
    NOT_READY = "not_ready"  # the project lacks the items of its onboarding
    RESULT = "result"  # of the screening
    READING = "reading"  # an item's first step, without its document
    ITEM = "item"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a labeler has before them."""

    kind: StepKind
    project: ProjectRecord
    onboarding: OnboardingStep | None = None  # while the item belongs to it
    item: Item | None = None
    progress: ItemProgress | None = None
    previous: str | None = None  # the lease of the item that was answered last
    is_new: bool = False  # the item was leased for this step


class Desk:
    """One labeler at work."""

    def __init__(self, site: Site, labeler_id: str) -> None:
        database, clock = site.database, site.clock
        self.labeler_id = labeler_id
        self.projects = ProjectStore(database, clock=clock)
        self.items = SiteStore(database, site.labeling, clock=clock)
        self.texts = DemonstrationStore(database, clock=clock)
        self.onboarding = OnboardingStore(database, clock=clock)
        self.messages = MessageStore(database, clock=clock)
        self.own = LabelerStore(database, self.projects, clock=clock)
        self._labeling = site.labeling
        self._clock = clock
        self._lease_us = round(site.config.default_lease_s * 1e6)

    def next_step(self, project_name: str) -> Step:
        """What comes next; leases an item where one is due. Raises ProjectNotFoundError."""
        project = self.projects.project(project_name)
        if not self.projects.has_read_instructions(project, self.labeler_id):
            return Step(kind=StepKind.INSTRUCTIONS, project=project)
        start_us = self._clock()
        onboarding = None
        if project.settings.onboarding.is_needed:
            onboarding = self.onboarding.advance(project.name, self.labeler_id)
            if onboarding.stage is Stage.NOT_READY:
                return Step(kind=StepKind.NOT_READY, project=project)
            if onboarding.admission is not None or onboarding.stage in (Stage.MAY_RETRY, Stage.FAILED):
                return Step(kind=StepKind.RESULT, project=project, onboarding=onboarding)
        if onboarding is not None and onboarding.task_id is not None:
            item: Item | None = self.items.lease_for_onboarding(
                self.labeler_id,
                onboarding.task_id,
                attempt=onboarding.attempt,
                duration_us=self._lease_us,
            )
        else:
            onboarding = None
            item = self.items.next_item(self.labeler_id, project=project.name, duration_us=self._lease_us)
        previous = self.own.previous(self.labeler_id, project=project.name)
        if item is None:
            return Step(kind=StepKind.DONE, project=project, previous=previous)
        return Step(
            kind=StepKind.READING if needs_reading(project, item) else StepKind.ITEM,
            project=project,
            onboarding=onboarding,
            item=item,
            progress=self.items.item_progress(item, self.labeler_id) if onboarding is None else None,
            previous=previous,
            is_new=item.lease_us >= start_us,
        )

    def item(self, project_name: str, lease_id: str) -> Item:
        """An item of this labeler's in this project. Raises LeaseNotFoundError."""
        item = self.items.item(lease_id, self.labeler_id)
        if item.project != project_name:
            raise LeaseNotFoundError(lease_id)
        return item

    def record_comparison(self, item: Item, answer: AnswerDraft, *, nonce: str) -> bool:
        """Record an answer that was checked; False when this form had been recorded before."""
        request = self._request("answer", nonce, _content_of(answer))
        recorded = self._insist(
            item,
            lambda: self._labeling.submit_answers(request, self.labeler_id, [answer], origin=Origin.SITE),
        )
        return not recorded.repeated

    def record_text(self, item: Item, draft: DemonstrationDraft, *, nonce: str) -> None:
        """Record a text that was checked."""
        request = self._request("text", nonce, [draft.lease_id, draft.text, draft.note])
        self._insist(item, lambda: self.texts.demonstrate(request, self.labeler_id, draft))

    def correct_comparison(self, answer_id: int, answer: AnswerDraft, *, nonce: str) -> None:
        """Record an answer in place of an earlier one."""
        request = self._request("correct", nonce, _content_of(answer))
        _twice(lambda: self.items.correct(request, self.labeler_id, answer_id, answer))

    def correct_text(self, answer_id: int, draft: DemonstrationDraft, *, nonce: str) -> None:
        """Record a text in place of an earlier one."""
        request = self._request("rewrite", nonce, [draft.lease_id, draft.text, draft.note])
        _twice(lambda: self.texts.rewrite(request, self.labeler_id, answer_id, draft))

    def skip(self, item: Item, reason: str, *, nonce: str) -> bool:
        """Give an item back; False when this form had done it before."""
        request = self._request("skip", nonce, [item.lease_id, reason])
        skip = SkipDraft(lease_id=item.lease_id, reason=reason)
        return self._insist(item, lambda: self._labeling.skip_tasks(request, self.labeler_id, [skip]))

    def say(self, item: Item, text: str, *, nonce: str) -> None:
        """Add to what is said with researchers about an item."""
        request = self._request("message", nonce, [item.lease_id, text])
        self.messages.write(
            request, task_id=item.task_id, labeler_id=self.labeler_id, author=self.labeler_id, text=text
        )

    def _insist(self, item: Item, act: Callable[[], T]) -> T:
        try:
            return _twice(act)
        except LeaseExpiredError:
            # Perhaps the item is still free: then it is theirs again under the same lease.
            step = self.next_step(item.project)
            if step.item is None or step.item.lease_id != item.lease_id:
                raise
            return act()

    def _request(self, act: str, nonce: str, content: object) -> RepeatableRequest:
        # The nonce of a form makes a double Enter one act; another person's nonce is another one.
        text = json.dumps(content, sort_keys=True)
        return RepeatableRequest(
            method=f"site.{act}",
            request_id=_sha256(f"{self.labeler_id}\n{nonce}"),
            digest=_sha256(text),
        )


def kept_fields(item: Item) -> AnswerFields:
    """What the labeler has entered so far."""
    content = item.draft.content if item.draft else {}
    return fields_from_json(content.get("fields"), num_candidates=len(item.candidates))


def kept_readings(item: Item) -> tuple[str, ...]:
    """What the labeler took the candidates to say, once all of it is given."""
    return tuple(item.draft.content.get("readings", ())) if item.draft else ()


def needs_reading(project: ProjectRecord, item: Item) -> bool:
    """Whether the candidates come without the document now."""
    return (
        project.settings.naive_reading
        and len(item.candidates) > 1
        and not item.is_answered
        and not kept_readings(item)
    )


def _twice(act: Callable[[], T]) -> T:
    try:
        return act()
    except (LeaseAlreadyAnsweredError, AnswerSupersededError):
        # Of two equal forms that came at once the other one was first. Now its outcome is remembered, and a
        # form that is not equal is refused again.
        return act()


def _content_of(answer: AnswerDraft) -> list[object]:
    # Without what the page measured: a form that is sent again says another time.
    ratings = [
        {**asdict(rating), "flags": [flag.value for flag in rating.flags]} for rating in answer.ratings
    ]
    return [answer.lease_id, repr(answer.decision), answer.preference, ratings, answer.note]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
