"""Which item comes next on the site: pools and their shares, overlap, repeats, priorities, projects."""

from collections import Counter

import pytest

from services.labeling.errors import (
    BatchClosedError,
    BatchOfAnotherProjectError,
    InvalidFieldError,
    ProjectExistsError,
)
from services.labeling.projects import BatchMode, BatchSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.site_store import Item
from tests.labeling_stores import HOUR_US, SiteStores, known, pair


def work_off(site: SiteStores, labeler: str, *, most: int = 10_000) -> list[Item]:
    items = []
    while len(items) < most:
        item = site.site.next_item(labeler, project="default", duration_us=HOUR_US)
        if item is None:
            break
        site.answer(labeler, item)
        items.append(item)
    return items


def test_items_come_from_their_pools_in_the_shares_asked_for(site: SiteStores) -> None:
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


def test_overlap_stays_exact_with_repeats_and_shared_items(site: SiteStores) -> None:
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


def test_a_lapsed_repeat_goes_to_nobody_else(site: SiteStores) -> None:
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


def test_a_labelers_share_of_a_batch_can_be_limited(site: SiteStores) -> None:
    site.submit("b", *[pair(str(n)) for n in range(10)], max_answers_per_labeler=3)
    assert len(work_off(site, "ann")) == 3
    assert len(work_off(site, "bob")) == 3


def test_batches_are_worked_off_by_priority_and_closed_ones_not(site: SiteStores) -> None:
    site.submit("low", pair("low"))
    site.submit("high", pair("high"), priority=5)
    site.submit("shut", pair("shut"), priority=9)
    site.projects.update_batch("shut", BatchSettings(is_closed=True), actor="rita")
    assert [item.document for item in work_off(site, "ann")] == ["document high", "document low"]
    with pytest.raises(BatchClosedError):
        site.submit("shut", pair("more"))


def test_an_online_batch_gives_the_newest_tasks_first(site: SiteStores) -> None:
    site.submit("b", *[pair(str(n)) for n in range(5)], mode=BatchMode.ONLINE)
    assert [item.document for item in work_off(site, "ann")] == [f"document {n}" for n in (4, 3, 2, 1, 0)]


def test_projects_keep_their_work_apart(site: SiteStores) -> None:
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


def test_new_instructions_are_to_be_read_once_more(site: SiteStores) -> None:
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


def test_shares_that_leave_no_room_are_refused() -> None:
    from services.labeling.projects import check_batch_settings

    with pytest.raises(InvalidFieldError) as caught:
        check_batch_settings(BatchSettings(calibration_share=0.5, gold_share=0.5))
    assert caught.value.reason == "INVALID_SETTINGS"
    with pytest.raises(InvalidFieldError):
        check_batch_settings(BatchSettings(calibration_share=float("nan")))
