"""Answers on the site: open items, drafts, skips, corrections, and what exports and figures see of them."""

import pytest

from services.labeling.answers import (
    AnswerDraft,
    Choice,
    Flag,
    Origin,
    Ranking,
    Rating,
    Telemetry,
    decision_from_preference,
)
from services.labeling.errors import (
    AnswerExportedError,
    AnswerNotFoundError,
    AnswerSupersededError,
    LeaseExpiredError,
    LeaseNotFoundError,
)
from services.labeling.export import ExportFilter, LabelerFold
from services.labeling.site_store import Draft
from services.labeling.store import SkipDraft
from tests.labeling_stores import HOUR_US, SiteStores, pair


def test_an_item_stays_open_until_it_is_answered(site: SiteStores) -> None:
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


def test_what_belongs_to_another_labeler_is_not_found(site: SiteStores) -> None:
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


def test_the_last_draft_is_kept_until_the_answer(site: SiteStores) -> None:
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


def test_a_skipped_task_goes_to_others_and_not_back(site: SiteStores) -> None:
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
def test_a_preference_is_kept_in_the_submitters_order(site: SiteStores, preference: int) -> None:
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


def test_ratings_and_telemetry_come_out_as_they_went_in(site: SiteStores) -> None:
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


def test_a_correction_supersedes_and_both_are_kept(site: SiteStores) -> None:
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


def test_an_exported_answer_stands(site: SiteStores) -> None:
    site.submit("b", pair("x"), pair("y"))
    first = site.answer("ann", site.next("ann"))
    site.store.note_exported(ExportFilter(batch="b"), first)
    later = site.answer("ann", site.next("ann"))
    draft = AnswerDraft(lease_id="", decision=Ranking(tiers=((0,), (1,))))
    with pytest.raises(AnswerExportedError):
        site.site.correct(site.request(), "ann", first, draft)
    assert not site.site.is_correctable(site.site.own_answer(first, "ann"))
    site.site.correct(site.request(), "ann", later, draft)


def test_an_export_of_another_batch_lets_answers_be_corrected(site: SiteStores) -> None:
    site.submit("b", pair("x"))
    first = site.answer("ann", site.next("ann"))
    site.store.note_exported(ExportFilter(batch="other"), first)
    assert site.site.is_correctable(site.site.own_answer(first, "ann"))
    site.store.note_exported(ExportFilter(project="default"), first)
    assert not site.site.is_correctable(site.site.own_answer(first, "ann"))


def test_groups_of_labelers_split_everything_and_share_nobody(site: SiteStores) -> None:
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


def test_figures_see_answers_that_stand(site: SiteStores) -> None:
    site.submit("b", pair("x", overlap_count=2))
    first = site.answer("ann", site.next("ann"), best=0)
    draft = AnswerDraft(lease_id="", decision=Choice(best_index=0))
    site.site.correct(site.request(), "ann", first, draft)
    site.answer("bob", site.next("bob"), best=1, telemetry=Telemetry(active_us=2_500_000))
    ann, bob = sorted(site.quality.judged_answers("default"), key=lambda one: one.labeler_id)
    assert (ann.best_index is None, bob.tiers) == (False, ((1,), (0,)))
    assert (bob.candidate_chars, bob.active_s, bob.is_researcher) == ((3, 3), 2.5, False)
