"""Texts of people: what labelers write and edit, and messages between them and researchers."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.answers import AnswerDraft, Ranking
from services.labeling.demonstration_store import DemonstrationDraft
from services.labeling.errors import AnswerNotFoundError, AnswerSupersededError, WrongKindError
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from tests.labeling_stores import SiteStores, pair


def test_a_task_to_write_hides_what_others_wrote(site: SiteStores) -> None:
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
    site: SiteStores, lease_one: Callable[..., Any]
) -> None:
    task = TaskDraft(document="d", candidates=(Candidate(text="draft"),), kind=TaskKind.EDIT)
    site.submit("b", task)
    assert lease_one(site.store, "ann") is None  # a program that compares
    item = site.next("ann")
    assert (item.kind, item.candidates) == (TaskKind.EDIT, ("draft",))


def test_a_thread_is_unread_until_the_other_side_opens_it(site: SiteStores) -> None:
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
