"""Projects with items, as researchers make them, and what the store holds of the answers.

A candidate's text begins with its place in the submission ("Candidate 0 of ..."), so that what somebody saw
and pressed in a browser can be held against what was recorded.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from services.labeling.answers import Comparison, Ranking
from services.labeling.demonstration_store import Demonstration, DemonstrationStore
from services.labeling.export import ExportFilter
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchSettings, OnboardingSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from tests.site import SiteUnderTest

POST = (
    "My neighbour's cat comes through our kitchen window every evening and eats what my own cat leaves. "
    "I like it, but it is on a diet, as I learned on Sunday. Should I keep the window shut?"
)
_SUBMITTED = re.compile(r"Candidate (\d+) of")


def item(number: int, num_candidates: int = 2, *, more: str = "", **fields: Any) -> TaskDraft:
    """A task whose candidates say which they are, and more."""
    texts = [
        f"Candidate {place} of item {number}: keep the window shut.{more}" for place in range(num_candidates)
    ]
    return TaskDraft(
        document=f"Item {number}. {POST}",
        candidates=tuple(Candidate(text=text) for text in texts),
        **fields,
    )


def known(number: int, purpose: Purpose, best: int) -> TaskDraft:
    """A pair with a right answer."""
    return item(
        number,
        purpose=purpose,
        expected=((best,), (1 - best,)),
        explanation=f"Candidate {best} says what item {number} is about.",
    )


def text_item(number: int, kind: TaskKind) -> TaskDraft:
    """A task for which somebody writes."""
    return item(number, 1 if kind is TaskKind.EDIT else 0, kind=kind)


def make_project(
    site: SiteUnderTest,
    name: str,
    tasks: Iterable[TaskDraft] = (),
    *,
    instructions: str = "",
    batch: BatchSettings | None = None,
    onboarding: OnboardingSettings | None = None,
    **settings: Any,
) -> None:
    """A project with one batch."""
    ProjectStore(site.database, clock=now_us).create_project(
        name,
        ProjectSettings(onboarding=onboarding or OnboardingSettings(), **settings),
        instructions,
        actor="test",
    )
    drafts = list(tasks)
    if drafts:
        content = hashlib.sha256(repr(drafts).encode()).hexdigest()
        request = RepeatableRequest(method="test.tasks", request_id=uuid.uuid4().hex, digest=content)
        LabelingStore(site.database, clock=now_us).submit_tasks(
            request, f"{name}.1", drafts, project=name, batch_settings=batch
        )


def answers(site: SiteUnderTest, project: str, *, with_superseded: bool = False) -> list[Comparison]:
    """What the store holds, in the order in which it came in."""
    store = LabelingStore(site.database, clock=now_us)
    wanted = ExportFilter(project=project, with_superseded=with_superseded)
    found, rest = store.comparisons_after(0, wanted=wanted, limit=1_000)
    assert rest is None
    return found


def texts(site: SiteUnderTest, project: str) -> list[Demonstration]:
    """The written texts that the store holds."""
    store = DemonstrationStore(site.database, clock=now_us)
    return store.demonstrations_after(0, project=project, batch="", limit=1_000)


def submitted_places(on_screen: Sequence[str]) -> list[int]:
    """The submitter's index of what stands at each place of a screen."""
    found = [_SUBMITTED.search(text) for text in on_screen]
    return [int(match[1]) for match in found if match is not None]


def tiers(answer: Comparison) -> list[set[int]]:
    """The order that was recorded, in the submitter's indices."""
    assert isinstance(answer.decision, Ranking)
    return [set(tier) for tier in answer.decision.tiers]
