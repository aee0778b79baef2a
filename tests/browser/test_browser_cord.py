"""The cord, in view while people work: pulled by keyboard and by mouse, released by a researcher."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from services.labeling.accounts import Role
from services.labeling.cord import CordAction
from services.labeling.cord_store import CordStore
from services.labeling.service import now_us
from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Visit
from tests.browser.projects import answers, item, make_project
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser


def test_a_labeler_pulls_the_cord_by_keyboard_and_a_researcher_releases_it(
    site: SiteUnderTest, visit: Visit
) -> None:
    make_project(site, "pairs", [item(1)])
    cord = CordStore(site.database, clock=now_us)
    person = visit("ann")
    page = person.open("/work/pairs")
    button = page.locator("details.cord > summary")
    expect(button).to_have_text("Pull the cord")
    expect(button).to_be_in_viewport()
    button.focus()
    person.press("Enter")
    panel = page.locator("details.cord form")
    expect(panel.get_by_text("Training stops within one optimizer step")).to_be_visible()
    expect(panel.get_by_label("Why must training stop?")).to_be_focused()
    page.keyboard.type("5 summaries in a row are rude.")  # its first key is no answer
    person.press("Tab")
    expect(panel.get_by_role("button", name="Pull the cord")).to_be_focused()
    person.press("Enter")

    expect(page.get_by_text("You pulled the cord.")).to_be_visible()
    expect(page.locator("blockquote")).to_have_text("5 summaries in a row are rude.")
    event = cord.last()
    assert event is not None
    assert (event.action, event.actor, event.reason) == (
        CordAction.PULL,
        "ann",
        "5 summaries in a row are rude.",
    )
    expect(page.get_by_role("button", name="Release the cord")).to_have_count(0)
    page = person.open("/work/pairs")
    expect(page.get_by_role("status").filter(has_text="The cord is pulled")).to_be_visible()
    expect(page.locator("[name=preference]:checked")).to_have_count(0)

    researcher = visit("rita", Role.RESEARCHER)
    researcher.open("/projects").get_by_role("link", name="Why?").click()
    page = researcher.page
    expect(page.locator("blockquote")).to_have_text("5 summaries in a row are rude.")
    page.get_by_label("Why is it safe to go on?").fill("The data are fixed.")
    page.get_by_role("button", name="Release the cord").click()
    expect(page.get_by_text("You released the cord.")).to_be_visible()
    event = cord.last()
    assert event is not None
    assert (event.action, event.actor, event.number) == (CordAction.RELEASE, "rita", 2)


def test_the_cord_is_pulled_by_mouse_and_asks_for_a_reason(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    cord = CordStore(site.database, clock=now_us)
    person = visit("ann")
    page = person.open("/work/pairs")
    page.get_by_text("Pull the cord").first.click()
    pull = page.locator("details.cord form").get_by_role("button", name="Pull the cord")
    pull.click()
    assert page.url == f"{site.url}/work/pairs"  # nothing was sent
    assert page.locator("#cord-reason").evaluate("(one) => one.validity.valueMissing")
    assert cord.last() is None
    person.press("Escape")
    expect(pull).to_be_hidden()
    page.get_by_text("Pull the cord").first.click()
    page.locator("#cord-reason").fill("A person is named.")
    pull.click()
    expect(page.get_by_text("You pulled the cord.")).to_be_visible()
    assert cord.last() is not None


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_cord_stays_in_view_however_far_somebody_reads(
    site: SiteUnderTest, visit: Visit, device: dict[str, Any]
) -> None:
    make_project(site, "ranks", [item(1, 9, more=" And so on." * 40)])
    person = visit("ann", **device)
    page = person.open("/work/ranks")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("scrollY > 1000")
    button = page.locator("details.cord > summary")
    expect(button).to_be_in_viewport(ratio=1)
    button.click()
    expect(page.get_by_label("Why must training stop?")).to_be_in_viewport(ratio=1)


def test_tabs_on_a_phone_lead_to_each_part_and_say_where_one_is(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "ranks", [item(1, 3, more=" And so on." * 40)])
    person = visit("ann", **PHONE)
    page = person.open("/work/ranks")
    tabs = page.locator(".item-tabs a")
    assert tabs.all_inner_texts() == ["Post", "A", "B", "C", "Answer"]
    for number, part in enumerate(("#post", "#slot-A", "#slot-B", "#slot-C", "#answer")):
        tabs.nth(number).tap()
        expect(tabs.nth(number)).to_have_attribute("aria-current", "true")
        expect(page.locator(part)).to_be_in_viewport()
        expect(page.locator(".item-tabs")).to_be_in_viewport(ratio=1)


def test_the_cord_pulled_elsewhere_shows_with_the_next_item(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    other = visit("bob")
    other.open("/cord").locator("#pull-reason").fill("Look at this.")
    other.page.get_by_role("button", name="Pull the cord").last.click()
    expect(other.page.get_by_text("You pulled the cord.")).to_be_visible()
    person.press("1", "Enter")
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    expect(page.get_by_role("status").filter(has_text="The cord is pulled")).to_be_visible()
    expect(page.locator("details.cord > summary")).to_have_text("Cord is pulled")
    person.press("1", "Enter")  # work goes on
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert len(answers(site, "pairs")) == 2
