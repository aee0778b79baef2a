"""What researchers read: progress, disagreements, one item, flags, known answers, the past."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.answers import (
    AnswerDraft,
    Choice,
    Flag,
    Ranking,
    Rating,
    Verdict,
    decision_from_preference,
)
from services.labeling.assignment import LeaseOrder
from services.labeling.database import Database
from services.labeling.demonstration_store import DemonstrationDraft, DemonstrationStore
from services.labeling.errors import AnswerNotFoundError, LeaseAlreadyAnsweredError, ProjectNotFoundError
from services.labeling.flag_store import FlagFilter, FlagStore
from services.labeling.history_store import HistoryStore
from services.labeling.import_store import ImportStore
from services.labeling.imports import ImportRow
from services.labeling.known_item_store import KnownItemStore
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStore
from services.labeling.progress_store import ProgressStore
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.review_store import ItemFilter, ReviewStore
from services.labeling.site_store import SiteStore
from services.labeling.store import LabelingStore, SkipDraft
from services.labeling.tasks import Candidate, TaskDraft, TaskKind

HOUR_US = 3_600_000_000


class Bench:
    """A project with one batch, and people who answer."""

    def __init__(self, opened: Any) -> None:
        self.database: Database = opened.database
        self.store: LabelingStore = opened.store
        self.clock = clock = opened.clock
        self.projects = ProjectStore(self.database, clock=clock)
        self.review = ReviewStore(self.database, clock=clock)
        self.flags = FlagStore(self.database, clock=clock)
        self.progress = ProgressStore(self.database, clock=clock)
        self.history = HistoryStore(self.database, clock=clock)
        self.site = SiteStore(self.database, self.store, clock=clock)
        self.messages = MessageStore(self.database, clock=clock)
        self._requests = 0
        self.projects.create_project("p", ProjectSettings(), "Read well.", actor="rita")
        self.projects.create_batch("p", "b", BatchSettings(), actor="rita")

    def request(self) -> RepeatableRequest:
        self._requests += 1
        return RepeatableRequest(method="t", request_id=str(self._requests), digest="d")

    def add(self, *drafts: TaskDraft, batch: str = "b") -> list[int]:
        return self.store.submit_tasks(self.request(), batch, drafts, project="p").task_ids

    def lease(self, labeler: str, *, max_tasks: int = 100, kind: TaskKind = TaskKind.COMPARE) -> list[str]:
        order = LeaseOrder(labeler_id=labeler, batch="b", max_tasks=max_tasks, duration_us=HOUR_US)
        return [task.lease_id for task in self.store.lease_tasks(order, kinds=(kind,))]

    def say(self, labeler: str, lease_id: str, best: int, **fields: Any) -> int:
        """Answer that the submitter's candidate ``best`` is the better one of two; None for a tie."""
        order = self.site.item(lease_id, labeler).shown_order
        decision = decision_from_preference(1 if order.index(best) == 0 else 9)
        answer = AnswerDraft(lease_id=lease_id, decision=decision, **fields)
        return self.store.submit_answers(self.request(), labeler, [answer]).comparison_ids[0]

    def answer_all(self, labeler: str, best_by_task: dict[int, int]) -> None:
        for lease_id in self.lease(labeler):
            task_id = self.site.item(lease_id, labeler).task_id
            self.say(labeler, lease_id, best_by_task[task_id])


@pytest.fixture
def bench(open_store: Callable[..., Any]) -> Bench:
    return Bench(open_store())


def pair(name: str, *, overlap: int = 3, **fields: Any) -> TaskDraft:
    return TaskDraft(
        document=f"document {name}",
        document_id=name,
        candidates=(Candidate(text=f"{name} left", source="policy"), Candidate(text=f"{name} right")),
        overlap_count=overlap,
        **fields,
    )


def test_progress_counts_what_is_wanted_given_and_worked_on(bench: Bench) -> None:
    bench.add(pair("x"), pair("y"))
    bench.add(pair("shared", purpose=Purpose.CALIBRATION))
    bench.answer_all("ann", {1: 0, 2: 0})
    bench.lease("ben")
    (progress,) = bench.progress.batches("p")
    assert (progress.num_tasks, progress.num_wanted, progress.num_given) == (3, 6, 2)
    assert (progress.num_leased, progress.num_answers) == (2, 2)
    assert progress.answers_per_hour == 2
    assert progress.hours_left == 2  # four are wanted, two come an hour
    assert bench.progress.projects()["p"].num_given == 2


def test_the_speed_is_that_of_the_last_hour(bench: Bench) -> None:
    bench.add(*(pair(str(index), overlap=1) for index in range(4)))
    leases = bench.lease("ann", max_tasks=3)
    bench.say("ann", leases[0], 0)
    bench.clock.advance_s(1800)
    bench.say("ann", leases[1], 0)
    bench.clock.advance_s(1801)
    (progress,) = bench.progress.batches("p")
    assert progress.answers_per_hour == 1
    bench.clock.advance_s(3600)
    (progress,) = bench.progress.batches("p")
    assert (progress.answers_per_hour, progress.hours_left) == (0, None)


def test_imported_answers_count_as_answers_but_not_as_speed(bench: Bench) -> None:
    row = ImportRow(
        row=1,
        document_id="i",
        document="imported",
        candidates=(Candidate(text="a"), Candidate(text="b")),
        answer=AnswerDraft(lease_id="", decision=Choice(best_index=0)),
        labeler_id="far away",
    )
    ImportStore(bench.database, clock=bench.clock).record(bench.request(), [row], project="p", batch="b")
    (progress,) = bench.progress.batches("p")
    assert (progress.num_answers, progress.num_wanted, progress.answers_per_hour) == (1, 0, 0)


def test_people_are_counted_with_skips_and_written_texts(bench: Bench) -> None:
    bench.add(pair("x"), pair("y"))
    bench.add(TaskDraft(document="to write", candidates=(), kind=TaskKind.WRITE))
    first, second = bench.lease("ann")
    bench.say("ann", first, 0)
    bench.store.skip_tasks(bench.request(), "ann", [SkipDraft(lease_id=second, reason="no")])
    bench.clock.advance_s(25 * 3600)
    (lease,) = bench.lease("ben", kind=TaskKind.WRITE)
    DemonstrationStore(bench.database, clock=bench.clock).demonstrate(
        bench.request(), "ben", DemonstrationDraft(lease_id=lease, text="A summary.")
    )
    ann, ben = bench.progress.labelers("p")
    assert (ann.labeler_id, ann.num_answers, ann.num_last_day, ann.num_skips) == ("ann", 1, 0, 1)
    assert (ben.labeler_id, ben.num_answers, ben.num_last_day, ben.num_skips) == ("ben", 1, 1, 0)
    assert bench.progress.labelers("p", batch="other") == []


def test_disagreements_come_most_divided_first(bench: Bench) -> None:
    bench.add(*(pair(str(index), overlap=5) for index in range(1, 5)))
    says = {
        "ann": {1: 0, 2: 0, 3: 0, 4: 1},
        "ben": {1: 0, 2: 1, 3: 0, 4: 1},
        "cleo": {1: 0, 2: 1, 3: 0, 4: 1},
        "dan": {1: 0, 2: 0, 3: 1, 4: 1},
        "eva": {1: 0, 2: 1, 3: 0, 4: 1},
    }
    for labeler, best in says.items():
        bench.answer_all(labeler, best)
    found = bench.review.divided_items("p", ItemFilter())
    assert [(item.task_id, item.votes, item.num_minority) for item in found] == [
        (2, (3, 2), 2),
        (3, (4, 1), 1),
    ]
    assert [item.task_id for item in bench.review.divided_items("p", ItemFilter(), offset=1)] == [3]
    assert bench.review.divided_items("p", ItemFilter(labeler_id="nobody")) == []
    assert len(bench.review.divided_items("p", ItemFilter(labeler_id="dan", batch="b"))) == 2
    assert bench.review.divided_items("p", ItemFilter(only_flagged=True)) == []


def test_a_choice_and_a_ranking_of_a_pair_are_one_opinion(bench: Bench) -> None:
    bench.add(pair("x", overlap=2))
    (ann,) = bench.lease("ann")
    (ben,) = bench.lease("ben")
    bench.say("ann", ann, 1)
    place = bench.site.item(ben, "ben").shown_order.index(1)
    answer = AnswerDraft(lease_id=ben, decision=Choice(best_index=place))
    bench.store.submit_answers(bench.request(), "ben", [answer])
    assert bench.review.divided_items("p", ItemFilter()) == []


def test_verdicts_and_choices_among_many_are_compared(bench: Bench) -> None:
    rows = [
        ImportRow(
            row=1,
            document_id=name,
            document="imported",
            candidates=tuple(Candidate(text=text) for text in texts),
            answer=AnswerDraft(lease_id="", decision=decision),
            labeler_id=labeler,
        )
        for name, texts, decision, labeler in (
            ("judged", "a", Verdict(affirmed=True), "ann"),
            ("judged", "a", Verdict(affirmed=False), "ben"),
            ("best", "abc", Choice(best_index=2), "ann"),
            ("best", "abc", Choice(best_index=2), "ben"),
            ("ranked", "abc", Ranking(tiers=((0,), (1, 2))), "ann"),
            ("ranked", "abc", Ranking(tiers=((0,), (1,), (2,))), "ben"),
        )
    ]
    ImportStore(bench.database, clock=bench.clock).record(bench.request(), rows, project="p", batch="b")
    found = bench.review.divided_items("p", ItemFilter())
    assert sorted(item.num_candidates for item in found) == [1, 3]
    assert all(item.votes == (1, 1) for item in found)


def test_a_correction_counts_in_place_of_what_it_corrects(bench: Bench) -> None:
    bench.add(pair("x", overlap=2))
    (ann,) = bench.lease("ann")
    (ben,) = bench.lease("ben")
    first = bench.say("ann", ann, 0)
    bench.say("ben", ben, 1)
    assert len(bench.review.divided_items("p", ItemFilter())) == 1
    place = bench.site.item(ann, "ann").shown_order.index(1)
    corrected = AnswerDraft(lease_id=ann, decision=decision_from_preference(1 if place == 0 else 9))
    bench.site.correct(bench.request(), "ann", first, corrected)
    assert bench.review.divided_items("p", ItemFilter()) == []
    item = bench.review.item("p", 1, reviewer="rita")
    assert [(one.labeler_id, one.is_superseded) for one in item.answers] == [
        ("ann", True),
        ("ben", False),
        ("ann", False),
    ]


def test_an_item_of_another_project_is_not_found(bench: Bench) -> None:
    (task,) = bench.add(pair("x"))
    bench.projects.create_project("q", ProjectSettings(), "", actor="rita")
    with pytest.raises(AnswerNotFoundError):
        bench.review.item("q", task, reviewer="rita")
    with pytest.raises(AnswerNotFoundError):
        bench.review.reveal("q", task, reviewer="rita")
    with pytest.raises(AnswerNotFoundError):
        bench.review.lease_for_review("q", task, reviewer="rita", duration_us=HOUR_US)
    with pytest.raises(ProjectNotFoundError):
        bench.review.divided_items("nowhere", ItemFilter())


def test_that_a_reviewer_looked_first_is_recorded_once(bench: Bench) -> None:
    (task,) = bench.add(pair("x"))
    assert bench.review.item("p", task, reviewer="rita").reveal_us is None
    bench.review.reveal("p", task, reviewer="rita")
    at = bench.clock.now_us
    bench.clock.advance_s(60)
    bench.review.reveal("p", task, reviewer="rita")
    assert bench.review.item("p", task, reviewer="rita").reveal_us == at
    assert bench.review.item("p", task, reviewer="carl").reveal_us is None
    assert bench.history.changes("p")[0].action == "item.reveal"


def test_a_review_takes_nothing_from_the_overlap(bench: Bench) -> None:
    (task,) = bench.add(pair("x", overlap=2))
    lease = bench.review.lease_for_review("p", task, reviewer="rita", duration_us=HOUR_US)
    assert bench.review.lease_for_review("p", task, reviewer="rita", duration_us=HOUR_US) == lease
    bench.say("rita", lease, 0)
    for labeler in ("ann", "ben"):
        bench.answer_all(labeler, {task: 1})
    assert bench.lease("cleo") == []
    (progress,) = bench.progress.batches("p")
    assert (progress.num_wanted, progress.num_given, progress.num_answers) == (2, 2, 3)
    item = bench.review.item("p", task, reviewer="rita")
    assert item.own_answer_us("rita") == bench.clock.now_us
    with pytest.raises(LeaseAlreadyAnsweredError):
        bench.review.lease_for_review("p", task, reviewer="rita", duration_us=HOUR_US)


def test_a_review_that_is_left_lying_gives_nobody_more_work(bench: Bench) -> None:
    (task,) = bench.add(pair("x", overlap=1))
    lease = bench.review.lease_for_review("p", task, reviewer="rita", duration_us=HOUR_US)
    bench.clock.advance_s(7200)
    bench.answer_all("ann", {task: 1})
    assert bench.lease("ben") == []
    assert bench.review.lease_for_review("p", task, reviewer="rita", duration_us=HOUR_US) == lease
    bench.say("rita", lease, 0)
    item = bench.review.item("p", task, reviewer="rita")
    assert {one.labeler_id for one in item.answers} == {"ann", "rita"}


def test_the_reviewers_letters_follow_their_own_order(bench: Bench) -> None:
    tasks = bench.add(*(pair(str(index)) for index in range(30)))
    orders = {bench.review.item("p", task, reviewer="rita").blind_order for task in tasks}
    assert orders == {(0, 1), (1, 0)}
    lease = bench.review.lease_for_review("p", tasks[0], reviewer="rita", duration_us=HOUR_US)
    shown = bench.site.item(lease, "rita").shown_order
    assert bench.review.item("p", tasks[0], reviewer="rita").blind_order == shown


def test_threads_of_an_item_are_told_by_labeler(bench: Bench) -> None:
    (task,) = bench.add(pair("x"))
    bench.answer_all("ann", {task: 0})
    bench.messages.write(bench.request(), task_id=task, labeler_id="ann", author="rita", text="Why?")
    bench.messages.write(bench.request(), task_id=task, labeler_id="ann", author="ann", text="Because.")
    threads = bench.review.threads_of_item("p", task)
    assert [(message.author, message.text) for message in threads["ann"]] == [
        ("rita", "Why?"),
        ("ann", "Because."),
    ]


def test_flags_wait_until_somebody_has_dealt_with_them(bench: Bench) -> None:
    bench.add(*(pair(str(index), overlap=1) for index in range(3)))
    leases = bench.lease("ann")
    plain = Rating(overall=5, naive_reading='it says "flags" and "harmful"')
    bench.say("ann", leases[0], 0, ratings=(plain, plain))
    harmful = bench.say("ann", leases[1], 0, ratings=(Rating(flags=(Flag.HARMFUL,)), Rating()))
    made_up = bench.say("ann", leases[2], 0, ratings=(Rating(), Rating(flags=(Flag.MADE_UP,))))

    def found(**fields: Any) -> list[int]:
        return [one.answer.comparison_id for one in bench.flags.flagged_answers("p", FlagFilter(**fields))]

    assert found() == [made_up, harmful]
    assert found(flag=Flag.HARMFUL) == [harmful]
    assert found(batch="elsewhere") == []
    assert [item.task_id for item in bench.review.divided_items("p", ItemFilter(only_flagged=True))] == []
    bench.flags.note_seen("p", made_up, reviewer="rita", note="talked to ann")
    assert found() == [harmful]
    (seen, _) = bench.flags.flagged_answers("p", FlagFilter(with_seen=True))
    assert (seen.seen_by, seen.seen_note) == ("rita", "talked to ann")
    assert bench.flags.flagged_answers("p", FlagFilter(with_seen=True), before_id=harmful) == []
    with pytest.raises(AnswerNotFoundError):
        bench.flags.note_seen("p", 99, reviewer="rita", note="")


def test_known_items_say_how_people_do_on_them(bench: Bench) -> None:
    (gold, screening) = bench.add(
        pair("gold", purpose=Purpose.GOLD, expected=((1,), (0,))),
        pair("screening", purpose=Purpose.SCREENING, expected=((0,), (1,)), explanation="because"),
    )
    for labeler, best in (("ann", 1), ("ben", 1), ("cleo", 0)):
        item = bench.site.lease_for_onboarding(labeler, gold, attempt=1, duration_us=HOUR_US)
        bench.say(labeler, item.lease_id, best)
    items = KnownItemStore(bench.database).items("p", (Purpose.GOLD, Purpose.SCREENING))
    assert [(one.task_id, one.num_answers, one.share_right) for one in items] == [
        (gold, 3, pytest.approx(2 / 3)),
        (screening, 0, None),
    ]
    assert [one.task_id for one in KnownItemStore(bench.database).items("p", (Purpose.GOLD,))] == [gold]


def test_changes_say_what_was_different(bench: Bench) -> None:
    bench.projects.create_batch("p", "c", BatchSettings(), actor="rita")
    bench.projects.update_batch("b", BatchSettings(calibration_share=0.2), actor="carl")
    bench.projects.update_project("p", ProjectSettings(rating_axes=True), "Read better.", actor="carl")
    bench.history.note(actor="rita", action="batch.add_tasks", subject="b", detail={"tasks": 7})
    bench.projects.update_batch("b", BatchSettings(calibration_share=0.2, priority=3), actor="rita")
    OnboardingStore(bench.database, clock=bench.clock).overrule("p", "ann", admit=True, actor="carl")
    bench.projects.create_project("other", ProjectSettings(), "", actor="rita")
    changes = bench.history.changes("p")
    told = {
        (change.actor, change.action, change.subject): [
            (one.name, one.before, one.after) for one in change.differences
        ]
        for change in changes
    }
    assert told["carl", "batch.update", "b"] == [("calibration_share", "0.0", "0.2")]
    assert told["rita", "batch.update", "b"] == [("priority", "0", "3")]
    assert told["carl", "project.update", "p"] == [("rating_axes", "no", "yes")]
    assert told["rita", "batch.add_tasks", "b"] == [("tasks", "", "7")]
    assert told["carl", "labeler.admit", "p/ann"] == []
    assert told["carl", "instructions.write", "p"][0] == ("version", "", "2")
    assert not any(change.subject == "other" for change in changes)
    assert [version.text for version in bench.history.instructions("p")] == ["Read better.", "Read well."]


def test_readers_of_instructions_are_counted(bench: Bench) -> None:
    for labeler in ("ann", "ben", "ann"):
        bench.projects.note_instructions_read("p", 1, labeler)
    (version,) = bench.history.instructions("p")
    assert (version.version, version.author, version.num_readers) == (1, "rita", 2)
