"""Fills a labeling site with invented posts and five weeks of simulated people's answers, for screenshots.

The posts and their summaries stand in ``labeling_posts.json``, the best summary first. Everything goes
through the stores that the service uses, with a clock that this module sets.
"""

from __future__ import annotations

import dataclasses
import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.answers import AnswerDraft, Flag, Origin, Rating, Telemetry, decision_from_preference
from services.labeling.assignment import LeasedTask, LeaseOrder
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStore
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchMode, BatchSettings, OnboardingSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from tests.site import SiteUnderTest

PROJECT = "advice-2026"
TITLE = "Summaries of advice posts"
LABELER, RESEARCHER = "lara", "rita"  # whose pages are looked at
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
DAYS = 35
INSTRUCTIONS = """You read a post and summaries of it, and say which summary is better.

A good summary
• says what the post is about and what its author wants to know,
• says only what stands in the post,
• can be understood without the post.

Read the post first, then every summary. If one says something false, it is worse, however well it reads.

If you cannot judge an item, skip it and say why. If something looks harmful or names a person, flag it. If \
training seems to go wrong altogether, pull the cord: nobody will be cross."""
# What people think of a summary by its place in a post's list, before their own taste.
WORTH = (1.0, 0.45, -0.35, -1.1)
SOURCES = ("policy", "supervised", "reference", "policy")
KNOWN_PAIRS = ((0, 3), (1, 3), (0, 2), (0, 1))  # the better one first
FALSE_REASON = (
    "The summary about being fired is false: the flatmate sells to two cafes, and the author does not want "
    "the rent back. What says false things is worse, however well it reads."
)
PLAIN_REASON = "Only one of them says what the author asks at the end of the post."
RULES = BatchSettings(calibration_share=0.15, gold_share=0.1, drift_share=0.1, repeat_share=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A simulated person."""

    name: str
    noise: float  # standard deviation of what they think of a pair
    seconds: float  # median time an item
    toward_first: float = 0.0  # how much they lean to the left side
    tires: bool = False  # noisier from week to week
    device: str = "desktop"
    share: float = 1.0  # how often they come when it is their turn


WORKERS = (
    Worker(name="ann", noise=0.5, seconds=41),
    Worker(name="bela", noise=0.6, seconds=55),
    Worker(name="carmen", noise=0.55, seconds=38, device="phone"),
    Worker(name="david", noise=1.4, seconds=12, toward_first=0.6),
    Worker(name="emeka", noise=0.5, seconds=47, tires=True),
    Worker(name=RESEARCHER, noise=0.35, seconds=60, share=0.5),
)


class Calendar:
    """A clock that stands where it is put."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        """Microseconds since 1970."""
        return self.now_us


def posts() -> list[dict[str, Any]]:  # Any: whatever JSON holds
    """The invented posts: "document" and four "summaries", the best first."""
    text = Path(__file__).with_name("labeling_posts.json").read_text("utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


def _request(method: str) -> RepeatableRequest:
    return RepeatableRequest(method=method, request_id=uuid.uuid4().hex, digest="")


def _pair(
    post: Mapping[str, Any], places: tuple[int, int], **fields: Any
) -> TaskDraft:  # Any: of a TaskDraft
    return TaskDraft(document=post["document"], candidates=_candidates(post, places), **fields)


def _candidates(post: Mapping[str, Any], places: tuple[int, ...]) -> tuple[Candidate, ...]:
    return tuple(Candidate(text=post["summaries"][place], source=SOURCES[place]) for place in places)


class ExampleSite:
    """Fills a site."""

    def __init__(self, site: SiteUnderTest, end_us: int) -> None:
        self._site = site
        self._rng = random.Random(8)
        self._end_us = end_us
        self._clock = Calendar(end_us - DAYS * DAY_US)
        self._projects = ProjectStore(site.database, clock=self._clock)
        self._store = LabelingStore(site.database, clock=self._clock)
        self._worth = {text: WORTH[place] for post in posts() for place, text in enumerate(post["summaries"])}

    def make_project(self) -> None:
        """The project whose figures are shown."""
        onboarding = OnboardingSettings(
            training_count=3, screening_count=6, min_agreement=0.8, max_item_s=120, max_attempts=2
        )
        settings = ProjectSettings(title=TITLE, reading_aids=True, onboarding=onboarding)
        self._projects.create_project(PROJECT, settings, INSTRUCTIONS, actor=RESEARCHER)
        for name, mode, priority in (
            ("1", BatchMode.BATCHED, 3),
            ("2", BatchMode.BATCHED, 2),
            ("online", BatchMode.ONLINE, 1),
        ):
            rules = dataclasses.replace(RULES, mode=mode, priority=priority)
            self._projects.create_batch(PROJECT, f"{PROJECT}.{name}", rules, actor=RESEARCHER)
        for number, post in enumerate(posts()):
            # Which one stands first in the submission means nothing.
            pairs = [pair if self._rng.random() < 0.5 else pair[::-1] for pair in combinations(range(4), 2)]
            tasks = [_pair(post, (first, second), overlap_count=3) for first, second in pairs]
            self._submit(f"{PROJECT}.1", [*tasks, *self._known(post, number)])
            self._submit(f"{PROJECT}.2", tasks)
            self._submit(f"{PROJECT}.online", tasks[:2])

    def work(self, share: float) -> None:
        """Let people answer in turn through the weeks until about this share is done, some just now."""
        onboarding = OnboardingStore(self._site.database, clock=self._clock)
        for worker in WORKERS:
            if self._site.accounts.find_user(worker.name) is None:
                self._site.add_account(worker.name, Role.LABELER)
            onboarding.overrule(PROJECT, worker.name, admit=True, actor=RESEARCHER)
        total = round(share * 3 * 2 * 60 / 0.6)  # of a person's items, a good half is new work
        num_last = 24
        for number in range(total):
            far_us = round(DAYS * DAY_US * (1 - (number + 0.5) / total))
            near_us = (total - number) * 2 * MINUTE_US
            self._clock.now_us = self._end_us - (near_us if total - number <= num_last else far_us)
            worker = WORKERS[number % len(WORKERS)]
            if self._rng.random() < worker.share:
                self._answer_one(worker)
        self._clock.now_us = self._end_us
        for worker in WORKERS[:3]:
            self._lease(worker)

    def make_small_projects(self) -> None:
        """Projects of one item each, for the pages of a single labeler."""
        first, second, third, fourth = posts()[:4]
        four = TaskDraft(document=second["document"], candidates=_candidates(second, (0, 1, 2, 3)))
        texts = TaskDraft(document=third["document"], candidates=(), kind=TaskKind.WRITE)
        onboarding = OnboardingSettings(
            training_count=1, screening_count=1, min_agreement=0.8, max_item_s=120
        )
        for name, settings, tasks in (
            ("pair", ProjectSettings(title=TITLE, reading_aids=True), [_pair(first, (0, 1))]),
            ("rank", ProjectSettings(title="Four summaries in order", reading_aids=True), [four]),
            ("write", ProjectSettings(title="Summaries by people"), [texts]),
            (
                "axes",
                ProjectSettings(title="Ratings of summaries", rating_axes=True),
                [_pair(fourth, (0, 3))],
            ),
            ("school", ProjectSettings(title=TITLE, onboarding=onboarding), self._known(first, 0)[:2]),
        ):
            self._projects.create_project(name, settings, INSTRUCTIONS, actor=RESEARCHER)
            self._submit(f"{name}.1", tasks, project=name)
            self._projects.note_instructions_read(name, 1, LABELER)

    def talk(self, task_id: int, labeler_id: str) -> None:
        """A thread about an item."""
        messages = MessageStore(self._site.database, clock=self._clock)
        self._clock.now_us -= 3 * HOUR_US
        for author, text in (
            (RESEARCHER, "The others see this one differently. What spoke for your choice?"),
            (labeler_id, "I gave little weight to the question at the end. Does a summary always need it?"),
        ):
            messages.write(
                _request("message"), task_id=task_id, labeler_id=labeler_id, author=author, text=text
            )
            self._clock.now_us += HOUR_US

    def divided_item(self) -> int:
        """An ordinary item on which people differ, and whose answers say the most."""
        query = (
            sa.select(schema.comparisons.c.task_id)
            .join(schema.tasks, schema.tasks.c.id == schema.comparisons.c.task_id)
            .where(
                schema.tasks.c.purpose == Purpose.ORDINARY.value, schema.comparisons.c.preference.is_not(None)
            )
            .group_by(schema.comparisons.c.task_id)
            .order_by(
                (
                    sa.func.max(schema.comparisons.c.preference)
                    - sa.func.min(schema.comparisons.c.preference)
                ).desc(),
                schema.comparisons.c.task_id,
            )
        )
        with self._site.database.engine.connect() as connection:
            return int(connection.execute(query).scalars().first() or 0)

    def training_lease(self) -> str:
        """The training item that the labeler has answered."""
        query = sa.select(schema.leases.c.id).where(
            schema.leases.c.labeler_id == LABELER, schema.leases.c.is_answered
        )
        with self._site.database.engine.connect() as connection:
            return str(connection.execute(query).scalars().one())

    def _known(self, post: Mapping[str, Any], number: int) -> list[TaskDraft]:
        better, worse = KNOWN_PAIRS[number % len(KNOWN_PAIRS)]
        is_turned = number % 2 == 0
        found = [
            _pair(
                post,
                (worse, better) if is_turned else (better, worse),
                purpose=purpose,
                expected=((1,), (0,)) if is_turned else ((0,), (1,)),
                explanation=PLAIN_REASON if number else FALSE_REASON,
            )
            for purpose in (Purpose.TRAINING, Purpose.SCREENING, Purpose.GOLD)
        ]
        fixed = (2, 1) if is_turned else (1, 2)  # by their sources: supervised against reference
        return [
            *found,
            _pair(post, fixed, purpose=Purpose.CALIBRATION),
            _pair(post, fixed[::-1], purpose=Purpose.DRIFT, overlap_count=6),
        ]

    def _submit(self, batch: str, tasks: list[TaskDraft], *, project: str = PROJECT) -> None:
        self._store.submit_tasks(_request("tasks"), batch, tasks, project=project)

    def _lease(self, worker: Worker) -> LeasedTask | None:
        order = LeaseOrder(
            labeler_id=worker.name, batch="", project=PROJECT, max_tasks=1, duration_us=HOUR_US
        )
        return next(iter(self._store.lease_tasks(order)), None)

    def _answer_one(self, worker: Worker) -> None:
        task = self._lease(worker)
        if task is None:
            return
        seconds = worker.seconds * self._rng.lognormvariate(0, 0.4)
        start_us = self._clock.now_us
        self._clock.now_us += round(seconds * 1e6)
        num_weeks = (start_us - self._end_us + DAYS * DAY_US) / (7 * DAY_US)
        noise = worker.noise + (0.5 * num_weeks if worker.tires else 0.0)
        first, second = (self._worth[text] for text in task.candidates)
        opinion = second - first + self._rng.gauss(0, noise) - worker.toward_first
        preference = max(1, min(9, round(5 + 2.2 * opinion)))
        flags = [
            (Flag.MADE_UP,) if worth == WORTH[3] and self._rng.random() < 0.12 else ()
            for worth in (first, second)
        ]
        draft = AnswerDraft(
            lease_id=task.lease_id,
            decision=decision_from_preference(preference),
            preference=preference,
            ratings=tuple(Rating(flags=one) for one in flags) if any(flags) else (),
            note="It says things that are not in the post." if any(flags) else "",
            telemetry=Telemetry(
                shown_us=start_us,
                first_action_us=start_us + round(seconds * 0.8e6),
                submit_us=self._clock.now_us,
                active_us=round(seconds * 0.95e6),
                change_count=self._rng.choice((1, 1, 1, 2)),
                device_class=worker.device,
                instructions_version=1,
            ),
        )
        self._store.submit_answers(_request("answer"), worker.name, [draft], origin=Origin.SITE)
