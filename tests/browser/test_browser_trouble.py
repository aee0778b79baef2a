"""A lost network, hasty fingers, two windows, leases that run out: nothing is lost and nothing is doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.projects import answers, item, make_project
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

DONE = "Nothing left for now"


def test_an_answer_given_offline_is_recorded_when_the_network_is_back(
    site: SiteUnderTest, visit: Visit
) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.context.set_offline(True)
    page.get_by_label("Why?").fill("Written in a tunnel.")
    person.press("Escape", "2", "Enter")
    status = page.locator("#bar-status")
    expect(status).to_have_text("You are offline. Your answer is kept here and is sent again by itself.")
    expect(page.get_by_label("Why?")).to_have_value("Written in a tunnel.")
    expect(page.locator("[name=preference][value='2']")).to_be_checked()
    assert answers(site, "pairs") == []

    person.context.set_offline(False)
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    (answer,) = answers(site, "pairs")
    assert answer.note == "Written in a tunnel."
    assert answer.preference == (2 if answer.shown_order == (0, 1) else 8)


def test_what_is_entered_offline_survives_closing_the_tab(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.context.set_offline(True)
    person.press("2")
    page.close()
    person.context.set_offline(False)
    again = person.context.new_page()
    again.goto(f"{site.url}/work/pairs")
    expect(again.locator("[name=preference][value='2']")).to_be_checked()


def test_a_double_enter_makes_one_record(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("2", "Enter", "Enter")
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    expect(page.locator("#bar-status")).to_contain_text("Choose 1 to 9")
    assert len(answers(site, "pairs")) == 1


def test_a_double_click_on_a_slow_network_makes_one_record(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    held: list[Callable[[], None]] = []
    page.route("**/answer", lambda route: held.append(route.continue_))
    person.press("2")
    submit = page.get_by_role("button", name="Submit")
    submit.click()
    expect(page.locator("#bar-status")).to_have_text("Sending …")
    submit.click(force=True)
    person.press("Enter")
    page.evaluate("document.getElementById('answer-form').requestSubmit()")
    assert len(held) == 1
    held[0]()
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    assert len(answers(site, "pairs")) == 1


def test_an_answer_whose_receipt_was_lost_is_not_recorded_twice(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    lost: list[int] = []

    def lose(route):  # type: ignore[no-untyped-def]
        if lost:
            route.continue_()
            return
        lost.append(route.fetch(max_redirects=0).status)  # it is recorded, and nobody hears of it
        route.abort()

    page.route("**/answer", lose)
    person.press("2", "Enter")
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    for _ in range(50):  # the page may say so a moment before this thread hears of the call
        if lost:
            break
        page.wait_for_timeout(100)
    assert lost == [200]
    assert len(answers(site, "pairs")) == 1


def test_the_same_key_within_300_ms_counts_once(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "ranks", [item(1, 3)])
    person = visit("ann")
    page = person.open("/work/ranks")
    person.press("a", "b", "b", "c")
    person.press("Backspace", "Backspace")  # taking back may be repeated
    expect(page.locator("[data-strip]")).to_have_text("A")
    page.keyboard.down("b")
    page.keyboard.down("b")  # held down: the keyboard repeats it
    page.keyboard.up("b")
    expect(page.locator("[data-strip]")).to_have_text("A > B")


def test_two_equal_keys_far_apart_both_count(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "ranks", [item(1, 3)])
    person = visit("ann")
    page = person.open("/work/ranks")
    tie = page.locator("[data-tie]")
    person.press("a", "=")
    expect(tie).to_have_attribute("aria-pressed", "true")
    person.pause()
    person.press("=")
    expect(tie).to_have_attribute("aria-pressed", "false")


def test_keys_are_letters_while_somebody_types(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("4", "n")
    note = page.get_by_label("Why?")
    expect(note).to_be_focused()
    words = "9 of 10 say so? no, pass (w = 1)"
    page.keyboard.type(words)
    person.press("Enter")
    page.keyboard.type("second line")
    expect(note).to_have_value(f"{words}\nsecond line")
    expect(page.locator("[name=preference][value='4']")).to_be_checked()
    assert answers(site, "pairs") == []
    person.press("Control+Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "pairs")
    assert answer.note == f"{words}\nsecond line"


def test_single_keys_can_be_switched_off(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Say which is better")).to_be_visible()
    dialog.get_by_label("Use single keys").uncheck()
    dialog.get_by_role("button", name="Close").click()
    person.press("4", "s")
    expect(page.locator("[name=preference]:checked")).to_have_count(0)
    page.locator("[name=preference][value='4']").check()
    person.press("Control+Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()


def test_an_item_answered_in_another_window_is_not_answered_twice(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    other = visit("ann")
    other.open("/work/pairs")
    other.press("3", "Enter")
    expect(other.page.get_by_role("heading", name=DONE)).to_be_visible()
    person.press("8", "Enter")
    expect(page.get_by_role("heading", name="Answered already")).to_be_visible()
    assert len(answers(site, "pairs")) == 1
