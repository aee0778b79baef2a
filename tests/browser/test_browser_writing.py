"""Texts that people write and edit, and what is kept of an unfinished one."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from services.labeling.tasks import TaskKind
from tests.browser.conftest import Visit
from tests.browser.projects import item, make_project, text_item, texts
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

MAX_RELOADS = 50
DONE = "Nothing left for now"
SUMMARY = "A neighbour's cat on a diet eats here every evening; I wonder whether to shut it out."


def test_a_summary_is_written(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "texts", [text_item(1, TaskKind.WRITE)])
    person = visit("ann")
    page = person.open("/work/texts")
    expect(page.locator("#bar-status")).to_have_text("Write something")
    page.get_by_label("Write the best summary that you can").fill(SUMMARY)
    expect(page.locator("[data-count]")).to_have_text("17 words")
    person.press("Control+Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (text,) = texts(site, "texts")
    assert (text.kind, text.text, text.labeler_id) == (TaskKind.WRITE, SUMMARY, "ann")


def test_a_summary_is_edited_but_not_sent_back_unchanged(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "texts", [text_item(1, TaskKind.EDIT)])
    person = visit("ann")
    page = person.open("/work/texts")
    field = page.get_by_label("Make it better")
    before = field.input_value()
    assert before == "Candidate 0 of item 1: keep the window shut."
    expect(page.locator("#bar-status")).to_have_text("Nothing is changed yet")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    field.press("End")
    page.keyboard.type(" The cat is on a diet.")
    page.get_by_label("Anything to add?").fill("It missed the diet.")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (text,) = texts(site, "texts")
    assert (text.kind, text.text) == (TaskKind.EDIT, f"{before} The cat is on a diet.")
    assert text.note == "It missed the diet."


def test_a_half_written_text_is_there_after_a_reload_and_on_another_device(
    site: SiteUnderTest, visit: Visit
) -> None:
    make_project(site, "texts", [text_item(1, TaskKind.WRITE)])
    person = visit("ann")
    page = person.open("/work/texts")
    with page.expect_response("**/draft") as kept:
        page.get_by_label("Write the best").fill("A neighbour's cat")
    assert kept.value.json() == {"kept": True}
    page.reload()
    expect(page.get_by_label("Write the best")).to_have_value("A neighbour's cat")

    other = visit("ann")
    other.open("/work/texts")
    field = other.page.get_by_label("Write the best")
    expect(field).to_have_value("A neighbour's cat")
    with other.page.expect_response("**/draft"):
        field.fill("A neighbour's cat on a diet")
    # The later one wins, also where this browser keeps an older one by itself.
    page.reload()
    expect(page.get_by_label("Write the best")).to_have_value("A neighbour's cat on a diet")
    assert texts(site, "texts") == []


def test_what_is_typed_last_survives_a_page_that_goes_away_at_once(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "texts", [text_item(1, TaskKind.WRITE)])
    person = visit("ann")
    page = person.open("/work/texts")
    page.get_by_label("Write the best").fill("The last word")
    page.goto(f"{site.url}/cord")
    other = visit("ann")
    other.open("/work/texts")
    field = other.page.get_by_label("Write the best")
    for _ in range(MAX_RELOADS):  # nobody tells this browser when the beacon of that one has arrived
        if field.input_value():
            break
        other.page.reload()
    expect(field).to_have_value("The last word")


def test_a_half_finished_comparison_is_restored_with_everything(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("3")
    page.get_by_text("Flag B").click()
    page.locator("#slot-B").get_by_label("Made up").check()
    page.get_by_label("Why?").fill("B invents a Sunday.")
    order = person.on_screen()
    page.reload()
    assert person.on_screen() == order
    expect(page.locator("[name=preference][value='3']")).to_be_checked()
    expect(page.locator("#slot-B").get_by_label("Made up")).to_be_checked()
    expect(page.get_by_label("Why?")).to_have_value("B invents a Sunday.")
    expect(page.locator("#bar-status")).to_have_text("Restored. A better")
