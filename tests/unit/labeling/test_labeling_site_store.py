"""What pages stand on: pools, the next item, drafts, skips, corrections, texts, onboarding, messages."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.answers import (
    AnswerDraft,
    Choice,
    Comparison,
    Flag,
    Origin,
    Ranking,
    Rating,
    Telemetry,
    decision_from_preference,
)
from services.labeling.demonstration_store import DemonstrationDraft, DemonstrationStore
from services.labeling.errors import (
    AnswerExportedError,
    AnswerNotFoundError,
    AnswerSupersededError,
    BatchClosedError,
    BatchOfAnotherProjectError,
    InvalidFieldError,
    LeaseExpiredError,
    LeaseNotFoundError,
    NotAdmittedError,
    ProjectExistsError,
    WrongKindError,
)
from services.labeling.export import ExportFilter, LabelerFold
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStore, Stage
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchMode, BatchSettings, OnboardingSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.quality_store import QualityStore
from services.labeling.requests import RepeatableRequest
from services.labeling.site_store import Draft, Item, SiteStore
from services.labeling.store import LabelingStore, SkipDraft
from services.labeling.tasks import Candidate, TaskDraft, TaskKind

HOUR_US = 3_600_000_000


class Site:
    """All stores over one database, and short words for what the tests do."""

    def __init__(self, opened: Any) -> None:
        self.clock = opened.clock
        self.store: LabelingStore = opened.store
        self.projects = ProjectStore(opened.database, clock=opened.clock)
        self.site = SiteStore(opened.database, opened.store, clock=opened.clock)
        self.texts = DemonstrationStore(opened.database, clock=opened.clock)
        self.onboarding = OnboardingStore(opened.database, clock=opened.clock)
        self.messages = MessageStore(opened.database, clock=opened.clock)
        self.quality = QualityStore(opened.database)
        self._num_requests = 0

    def request(self) -> RepeatableRequest:
        self._num_requests += 1
        return RepeatableRequest(method="Test", request_id=str(self._num_requests), digest="d")

    def submit(self, batch: str, *drafts: TaskDraft, **settings: Any) -> list[int]:
        project = settings.pop("project", "")
        return self.store.submit_tasks(
            self.request(), batch, drafts, project=project, batch_settings=BatchSettings(**settings)
        ).task_ids

    def next(self, labeler: str, project: str = "default") -> Item:
        item = self.site.next_item(labeler, project=project, duration_us=HOUR_US)
        assert item is not None
        return item

    def answer(self, labeler: str, item: Item, *, best: int = 0, **fields: Any) -> int:
        """Prefer the candidate with this index in the submitter's order over all others."""
        place = item.shown_order.index(best)
        others = tuple(index for index in range(len(item.candidates)) if index != place)
        draft = AnswerDraft(lease_id=item.lease_id, decision=Ranking(tiers=((place,), others)), **fields)
        return self.store.submit_answers(self.request(), labeler, [draft], origin=Origin.SITE).comparison_ids[
            0
        ]

    def export(self, **fields: Any) -> list[Comparison]:
        return self.store.comparisons_after(0, wanted=ExportFilter(**fields), limit=10_000)[0]


@pytest.fixture
def site(open_store: Callable[..., Any]) -> Site:
    return Site(open_store())


def pair(name: str, **fields: Any) -> TaskDraft:
    return TaskDraft(
        document=f"document {name}",
        document_id=name,
        candidates=(Candidate(text=f"{name}/0"), Candidate(text=f"{name}/1")),
        **fields,
    )


def known(name: str, purpose: Purpose) -> TaskDraft:
    return pair(name, purpose=purpose, expected=((1,), (0,)), explanation=f"{name}/1 is right")


def test_an_item_stays_open_until_it_is_answered(site: Site) -> None:
    site.submit("b", pair("x"), pair("y"))
    first = site.next("ann")
    site.clock.advance_s(1800)
    again = site.next("ann")
    assert (again.lease_id, again.candidates) == (first.lease_id, first.candidates)
    assert again.expire_us == first.expire_us + 1_800_000_000  # it runs anew
    site.answer("ann", first)
    second = site.next("ann")
    assert second.lease_id != first.lease_id
    site.answer("ann", second)
    assert site.site.next_item("ann", project="default", duration_us=HOUR_US) is None
    assert site.site.item_progress(second, "ann").num_own_answers == 2
    assert site.site.item(second.lease_id, "ann").is_answered


def test_what_belongs_to_another_labeler_is_not_found(site: Site) -> None:
    site.submit("b", pair("x", overlap_count=2))
    item = site.next("ann")
    comparison_id = site.answer("ann", item)
    for act in (
        lambda: site.site.item(item.lease_id, "bob"),
        lambda: site.site.save_draft(item.lease_id, "bob", Draft(content={}, revision=1)),
    ):
        with pytest.raises(LeaseNotFoundError):
            act()
    with pytest.raises(AnswerNotFoundError):
        site.site.own_answer(comparison_id, "bob")
    with pytest.raises(AnswerNotFoundError):
        site.messages.write(site.request(), task_id=1, labeler_id="bob", author="bob", text="hello")


def test_the_last_draft_is_kept_until_the_answer(site: Site) -> None:
    site.submit("b", pair("x"))
    item = site.next("ann")
    assert item.draft is None
    assert site.site.save_draft(item.lease_id, "ann", Draft(content={"preference": 3}, revision=2))
    assert not site.site.save_draft(item.lease_id, "ann", Draft(content={"preference": 9}, revision=1))
    draft = site.next("ann").draft
    assert draft is not None
    assert (draft.content, draft.revision) == ({"preference": 3}, 2)
    site.answer("ann", item)
    assert site.site.item(item.lease_id, "ann").draft is None


def test_a_skipped_task_goes_to_others_and_not_back(site: Site) -> None:
    site.submit("b", pair("x"))
    item = site.next("ann")
    request = site.request()
    skip = [SkipDraft(lease_id=item.lease_id, reason="cannot read it")]
    assert site.store.skip_tasks(request, "ann", skip)
    assert not site.store.skip_tasks(request, "ann", skip)  # a repetition
    assert site.site.next_item("ann", project="default", duration_us=HOUR_US) is None
    with pytest.raises(LeaseExpiredError):
        site.answer("ann", item)
    site.answer("bob", site.next("bob"))
    assert [comparison.labeler_id for comparison in site.export()] == ["bob"]


@pytest.mark.parametrize("preference", [1, 4, 5, 9])
def test_a_preference_is_kept_in_the_submitters_order(site: Site, preference: int) -> None:
    site.submit("b", pair("x", overlap_count=2))
    for labeler in ("ann", "bob"):  # who see the two orders
        item = site.next(labeler)
        shown = preference if item.shown_order == (0, 1) else 10 - preference
        draft = AnswerDraft(
            lease_id=item.lease_id, decision=decision_from_preference(shown), preference=shown
        )
        site.store.submit_answers(site.request(), labeler, [draft])
    found = site.export()
    assert {comparison.shown_order for comparison in found} == {(0, 1), (1, 0)}
    assert [comparison.preference for comparison in found] == [preference, preference]
    assert {comparison.confidence for comparison in found} == {1 + 2 * abs(preference - 5)}
    expected = {1: ((0,), (1,)), 4: ((0,), (1,)), 5: ((0, 1),), 9: ((1,), (0,))}[preference]
    assert [comparison.decision for comparison in found] == [Ranking(tiers=expected)] * 2


def test_ratings_and_telemetry_come_out_as_they_went_in(site: Site) -> None:
    site.submit("b", pair("x"))
    item = site.next("ann")
    by_position = (
        Rating(accuracy=1, coverage=2, coherence=3, overall=4, flags=(Flag.MADE_UP, Flag.HARMFUL)),
        Rating(overall=7, naive_reading="what it seems to say"),
    )
    telemetry = Telemetry(
        shown_us=1, submit_us=9, active_us=5, change_count=2, aids=("differences",), device_class="phone"
    )
    site.answer(
        "ann",
        item,
        ratings=tuple(by_position[position] for position in item.shown_order),
        telemetry=telemetry,
        note="why",
    )
    (comparison,) = site.export()
    assert comparison.ratings == by_position
    assert comparison.telemetry == telemetry
    assert (comparison.note, comparison.origin) == ("why", Origin.SITE)


def test_a_correction_supersedes_and_both_are_kept(site: Site) -> None:
    site.submit("b", pair("x"))
    item = site.next("ann")
    first = site.answer("ann", item, best=0)
    request = site.request()
    place = item.shown_order.index(1)
    draft = AnswerDraft(lease_id="", decision=Ranking(tiers=((place,), (1 - place,))))
    second = site.site.correct(request, "ann", first, draft)
    assert site.site.correct(request, "ann", first, draft) == second  # a repetition
    with pytest.raises(AnswerSupersededError):
        site.site.correct(site.request(), "ann", first, draft)
    (standing,) = site.export()
    assert (standing.comparison_id, standing.supersedes_id) == (second, first)
    assert standing.decision == Ranking(tiers=((1,), (0,)))
    both = site.export(with_superseded=True)
    assert [(one.comparison_id, one.is_superseded) for one in both] == [(first, True), (second, False)]
    assert [one.comparison_id for one in site.site.own_answers("ann", project="default")] == [second]
    assert site.store.progress("b").num_answers == 1


def test_an_exported_answer_stands(site: Site) -> None:
    site.submit("b", pair("x"), pair("y"))
    first = site.answer("ann", site.next("ann"))
    site.store.note_exported(ExportFilter(batch="b"), first)
    later = site.answer("ann", site.next("ann"))
    draft = AnswerDraft(lease_id="", decision=Ranking(tiers=((0,), (1,))))
    with pytest.raises(AnswerExportedError):
        site.site.correct(site.request(), "ann", first, draft)
    assert not site.site.is_correctable(site.site.own_answer(first, "ann"))
    site.site.correct(site.request(), "ann", later, draft)


def test_an_export_of_another_batch_lets_answers_be_corrected(site: Site) -> None:
    site.submit("b", pair("x"))
    first = site.answer("ann", site.next("ann"))
    site.store.note_exported(ExportFilter(batch="other"), first)
    assert site.site.is_correctable(site.site.own_answer(first, "ann"))
    site.store.note_exported(ExportFilter(project="default"), first)
    assert not site.site.is_correctable(site.site.own_answer(first, "ann"))


def work_off(site: Site, labeler: str, *, most: int = 10_000) -> list[Item]:
    items = []
    while len(items) < most:
        item = site.site.next_item(labeler, project="default", duration_us=HOUR_US)
        if item is None:
            break
        site.answer(labeler, item)
        items.append(item)
    return items


def test_items_come_from_their_pools_in_the_shares_asked_for(site: Site) -> None:
    site.submit(
        "b",
        *[pair(f"o{n}", overlap_count=2) for n in range(40)],
        *[pair(f"d{n}", purpose=Purpose.DRIFT, overlap_count=2) for n in range(10)],
        calibration_share=0.2,
        drift_share=0.1,
        gold_share=0.05,
        repeat_share=0.1,
    )
    site.submit("pool", *[pair(f"c{n}", purpose=Purpose.CALIBRATION) for n in range(30)])
    site.submit("gold", *[known(f"g{n}", Purpose.GOLD) for n in range(10)])
    for labeler in ("ann", "bob"):
        items = work_off(site, labeler, most=40)
        counts = Counter(item.purpose for item in items)
        assert counts[Purpose.CALIBRATION] == 8
        assert counts[Purpose.DRIFT] == 4
        assert counts[Purpose.GOLD] == 2
        repeated = [task for task, count in Counter(item.task_id for item in items).items() if count == 2]
        assert 1 <= len(repeated) <= 4  # nothing to repeat among the first items
    answered = site.export()
    by_labeler = [
        {one.task_id for one in answered if one.labeler_id == name and one.purpose is Purpose.CALIBRATION}
        for name in ("ann", "bob")
    ]
    assert by_labeler[0] == by_labeler[1]  # they meet in the pool


def test_overlap_stays_exact_with_repeats_and_shared_items(site: Site) -> None:
    site.submit("b", *[pair(f"o{n}", overlap_count=2) for n in range(30)], repeat_share=0.2, gold_share=0.1)
    site.submit("gold", *[known(f"g{n}", Purpose.GOLD) for n in range(20)])
    for labeler in ("ann", "bob", "cem"):
        work_off(site, labeler)
    answers = [one for one in site.export() if one.purpose is Purpose.ORDINARY]
    first = [one for one in answers if one.round == 0]
    assert set(Counter(one.task_id for one in first).values()) == {2}
    assert len(first) == 60
    again = [one for one in answers if one.round == 1]
    assert again
    assert {(one.task_id, one.labeler_id) for one in again} <= {
        (one.task_id, one.labeler_id) for one in first
    }


def test_a_lapsed_repeat_goes_to_nobody_else(site: Site) -> None:
    site.submit("b", *[pair(f"o{n}") for n in range(60)], repeat_share=0.5)
    items = work_off(site, "ann", most=30)
    while True:
        item = site.next("ann")
        if item.task_id in {earlier.task_id for earlier in items}:
            break
        site.answer("ann", item)
        items.append(item)
    site.clock.advance_s(2 * 3600)
    work_off(site, "bob")
    first = [one for one in site.export() if one.round == 0]
    assert set(Counter(one.task_id for one in first).values()) == {1}


def test_a_labelers_share_of_a_batch_can_be_limited(site: Site) -> None:
    site.submit("b", *[pair(str(n)) for n in range(10)], max_answers_per_labeler=3)
    assert len(work_off(site, "ann")) == 3
    assert len(work_off(site, "bob")) == 3


def test_batches_are_worked_off_by_priority_and_closed_ones_not(site: Site) -> None:
    site.submit("low", pair("low"))
    site.submit("high", pair("high"), priority=5)
    site.submit("shut", pair("shut"), priority=9)
    site.projects.update_batch("shut", BatchSettings(is_closed=True), actor="rita")
    assert [item.document for item in work_off(site, "ann")] == ["document high", "document low"]
    with pytest.raises(BatchClosedError):
        site.submit("shut", pair("more"))


def test_an_online_batch_gives_the_newest_tasks_first(site: Site) -> None:
    site.submit("b", *[pair(str(n)) for n in range(5)], mode=BatchMode.ONLINE)
    assert [item.document for item in work_off(site, "ann")] == [f"document {n}" for n in (4, 3, 2, 1, 0)]


def test_projects_keep_their_work_apart(site: Site) -> None:
    assert site.projects.create_project("p", ProjectSettings(title="P"), "Read well.", actor="rita")
    assert not site.projects.create_project("p", ProjectSettings(title="P"), "Read well.", actor="rita")
    with pytest.raises(ProjectExistsError):
        site.projects.create_project("p", ProjectSettings(), "Read well.", actor="rita")
    site.submit("of-p", pair("x"), project="p")
    with pytest.raises(BatchOfAnotherProjectError):
        site.submit("of-p", pair("y"), project="default")
    assert site.site.next_item("ann", project="default", duration_us=HOUR_US) is None
    assert site.next("ann", "p").project == "p"
    assert site.store.progress(project="p").num_tasks == 1
    assert site.store.progress(project="default").num_tasks == 0


def test_new_instructions_are_to_be_read_once_more(site: Site) -> None:
    site.projects.create_project("p", ProjectSettings(), "First.", actor="rita")
    project = site.projects.project("p")
    assert not site.projects.has_read_instructions(project, "ann")
    site.projects.note_instructions_read("p", 1, "ann")
    site.projects.note_instructions_read("p", 1, "ann")
    assert site.projects.has_read_instructions(project, "ann")
    changed = site.projects.update_project("p", ProjectSettings(title="New"), "Second.", actor="rita")
    assert (changed.instructions, changed.instructions_version, changed.title) == ("Second.", 2, "New")
    assert not site.projects.has_read_instructions(changed, "ann")
    same = site.projects.update_project("p", ProjectSettings(), "Second.", actor="rita")
    assert same.instructions_version == 2
    assert [event.action for event in site.projects.audit_events()] == [
        "project.update",
        "project.update",
        "project.create",
    ]


def test_a_task_to_write_hides_what_others_wrote(site: Site) -> None:
    site.submit("b", pair("x", kind=TaskKind.WRITE, overlap_count=2))
    item = site.next("ann")
    assert (item.kind, item.candidates) == (TaskKind.WRITE, ())
    with pytest.raises(WrongKindError):
        site.store.submit_answers(
            site.request(), "ann", [AnswerDraft(lease_id=item.lease_id, decision=Ranking(tiers=()))]
        )
    number = site.texts.demonstrate(
        site.request(), "ann", DemonstrationDraft(lease_id=item.lease_id, text="mine")
    )
    again = site.texts.rewrite(
        site.request(), "ann", number, DemonstrationDraft(lease_id=item.lease_id, text="better")
    )
    (standing,) = site.texts.demonstrations_after(0, limit=10)
    assert (standing.text, standing.demonstration_id, standing.supersedes_id) == ("better", again, number)
    with pytest.raises(AnswerSupersededError):
        site.texts.own_demonstration(number, "ann")
    with pytest.raises(AnswerNotFoundError):
        site.texts.own_demonstration(again, "bob")
    assert site.store.progress("b").num_answers == 1


def test_an_edit_shows_what_is_to_be_edited_and_is_not_leased_for_comparison(
    site: Site, lease_one: Callable[..., Any]
) -> None:
    task = TaskDraft(document="d", candidates=(Candidate(text="draft"),), kind=TaskKind.EDIT)
    site.submit("b", task)
    assert lease_one(site.store, "ann") is None  # a program that compares
    item = site.next("ann")
    assert (item.kind, item.candidates) == (TaskKind.EDIT, ("draft",))


@pytest.fixture
def school(site: Site) -> Site:
    """A project with two training items, two screening items out of four, and one real task."""
    settings = ProjectSettings(
        onboarding=OnboardingSettings(
            training_count=2, screening_count=2, min_agreement=1.0, max_item_s=60, max_attempts=2
        )
    )
    site.projects.create_project("p", settings, "", actor="rita")
    site.submit("school", *[known(f"t{n}", Purpose.TRAINING) for n in range(2)], project="p")
    site.submit("school", *[known(f"s{n}", Purpose.SCREENING) for n in range(4)])
    site.submit("work", pair("x"), project="p")
    return site


def take_step(site: Site, *, best: int, seconds: float = 10) -> Stage:
    """Answer the item that comes next, and say what comes after it."""
    step = site.onboarding.advance("p", "ann")
    assert step.task_id is not None
    item = site.site.lease_for_onboarding("ann", step.task_id, attempt=step.attempt, duration_us=HOUR_US)
    expected = site.site.expectation(item)
    assert expected is not None
    assert expected.tiers[0] == (item.shown_order.index(1),)
    site.answer("ann", item, best=best, telemetry=Telemetry(active_us=round(seconds * 1e6)))
    return site.onboarding.advance("p", "ann").stage


def test_whoever_passes_the_screening_may_work(school: Site, lease_one: Callable[..., Any]) -> None:
    with pytest.raises(NotAdmittedError):
        school.next("ann", "p")
    assert take_step(school, best=0) is Stage.TRAINING  # wrong, and told so
    assert take_step(school, best=1) is Stage.SCREENING
    assert take_step(school, best=1) is Stage.SCREENING
    assert take_step(school, best=1) is Stage.ADMITTED
    assert school.next("ann", "p").document == "document x"
    (attempt,) = school.onboarding.attempts("p")
    assert (attempt.stage, attempt.num_answered, attempt.num_right) == (Stage.ADMITTED, 2, 2)
    assert attempt.mean_item_s == pytest.approx(10)
    assert school.export() == []  # onboarding is no data
    assert len(school.export(with_onboarding=True)) == 4


def test_whoever_fails_gets_other_items_once_more(school: Site) -> None:
    seen: list[int] = []
    for _ in range(2):
        take_step(school, best=1)
    for best in (1, 0):
        step = school.onboarding.advance("p", "ann")
        assert step.task_id is not None
        seen.append(step.task_id)
        stage = take_step(school, best=best)
    assert stage is Stage.MAY_RETRY
    with pytest.raises(NotAdmittedError):
        school.next("ann", "p")
    step = school.onboarding.retry("p", "ann")
    assert (step.stage, step.attempt) == (Stage.SCREENING, 2)
    for best in (0, 0):
        step = school.onboarding.advance("p", "ann")
        assert step.task_id not in seen
        stage = take_step(school, best=best)
    assert stage is Stage.FAILED
    assert school.onboarding.retry("p", "ann").stage is Stage.FAILED
    school.onboarding.overrule("p", "ann", admit=True, actor="rita")
    assert school.onboarding.advance("p", "ann").stage is Stage.ADMITTED
    assert school.next("ann", "p").document == "document x"


def test_whoever_is_too_slow_is_not_admitted(school: Site) -> None:
    for _ in range(2):
        take_step(school, best=1)
    take_step(school, best=1, seconds=10)
    assert take_step(school, best=1, seconds=1000) is Stage.MAY_RETRY


def test_a_screening_without_items_says_so(site: Site) -> None:
    settings = ProjectSettings(onboarding=OnboardingSettings(screening_count=2))
    site.projects.create_project("p", settings, "", actor="rita")
    assert site.onboarding.advance("p", "ann").stage is Stage.NOT_READY


def test_a_thread_is_unread_until_the_other_side_opens_it(site: Site) -> None:
    site.submit("b", pair("x"))
    item = site.next("ann")
    request = site.request()
    for _ in range(2):  # a repetition
        site.messages.write(request, task_id=item.task_id, labeler_id="ann", author="rita", text="why?")
    (thread,) = site.messages.threads(reader="ann", labeler_id="ann")
    assert (thread.num_messages, thread.is_unread, thread.document) == (1, True, "document x")
    assert not site.messages.threads(reader="rita")[0].is_unread  # her own words
    (message,) = site.messages.read(task_id=item.task_id, labeler_id="ann", reader="ann")
    assert (message.author, message.text) == ("rita", "why?")
    assert not site.messages.threads(reader="ann", labeler_id="ann")[0].is_unread
    site.messages.write(site.request(), task_id=item.task_id, labeler_id="ann", author="ann", text="because")
    assert site.messages.threads(reader="rita")[0].is_unread
    assert site.messages.threads(reader="bob", labeler_id="bob") == []


def test_groups_of_labelers_split_everything_and_share_nobody(site: Site) -> None:
    names = [f"labeler-{number}" for number in range(40)]
    folds = [{name for name in names if LabelerFold(num_folds=4, fold=fold).takes(name)} for fold in range(4)]
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert all(folds)
    for fold, members in enumerate(folds):
        rest = {name for name in names if LabelerFold(num_folds=4, fold=fold, complement=True).takes(name)}
        assert rest == set(names) - members
    site.submit("b", pair("x", overlap_count=40))
    for name in names:
        site.answer(name, site.next(name))
    exported = site.export(fold=LabelerFold(num_folds=4, fold=1))
    assert {one.labeler_id for one in exported} == folds[1]


def test_figures_see_answers_that_stand(site: Site) -> None:
    site.submit("b", pair("x", overlap_count=2))
    first = site.answer("ann", site.next("ann"), best=0)
    draft = AnswerDraft(lease_id="", decision=Choice(best_index=0))
    site.site.correct(site.request(), "ann", first, draft)
    site.answer("bob", site.next("bob"), best=1, telemetry=Telemetry(active_us=2_500_000))
    ann, bob = sorted(site.quality.judged_answers("default"), key=lambda one: one.labeler_id)
    assert (ann.best_index is None, bob.tiers) == (False, ((1,), (0,)))
    assert (bob.candidate_chars, bob.active_s, bob.is_researcher) == ((3, 3), 2.5, False)


def test_shares_that_leave_no_room_are_refused() -> None:
    from services.labeling.projects import check_batch_settings

    with pytest.raises(InvalidFieldError) as caught:
        check_batch_settings(BatchSettings(calibration_share=0.5, gold_share=0.5))
    assert caught.value.reason == "INVALID_SETTINGS"
    with pytest.raises(InvalidFieldError):
        check_batch_settings(BatchSettings(calibration_share=float("nan")))
