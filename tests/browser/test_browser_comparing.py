"""Comparisons and rankings by keyboard, by finger and by mouse, and what the store holds of them."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.chromium import PHONE, Visitor
from tests.browser.conftest import Visit
from tests.browser.projects import answers, item, make_project, submitted_places, tiers
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

NUM_PAIRS = 20
DONE = "Nothing left for now"


def wait_for_item(person: Visitor, num_own: int) -> None:
    expect(person.page.locator("[data-progress]")).to_contain_text(f"{num_own} answered by you")


def strip(person: Visitor) -> str:
    """The order as it stands on the page."""
    return " ".join(person.page.locator("[data-strip]").inner_text().split())


def open_ranking(site: SiteUnderTest, visit: Visit, num_candidates: int, **options: object) -> Visitor:
    make_project(site, "ranks", [item(1, num_candidates)])
    person = visit("ann", **options)
    person.open("/work/ranks")
    return person


def test_twenty_comparisons_take_two_keys_each(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(number) for number in range(NUM_PAIRS)])
    person = visit("ann")
    page = person.open("/work/pairs")
    rng = random.Random(20)
    expected = []
    for number in range(NUM_PAIRS):
        wait_for_item(person, number)
        order = submitted_places(person.on_screen())
        digit = rng.randint(1, 9)
        # 1 is "A far better". Seen from the submitter's side, a pair that stood turned is turned back.
        expected.append((order, digit if order == [0, 1] else 10 - digit))
        person.press(str(digit), "Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    assert person.num_keys == 2 * NUM_PAIRS

    recorded = answers(site, "pairs")
    assert [(list(one.shown_order), one.preference) for one in recorded] == expected
    assert {tuple(one.shown_order) for one in recorded} == {(0, 1), (1, 0)}
    for one in recorded:
        assert one.telemetry is not None
        assert one.telemetry.device_class == "desktop"
        assert one.telemetry.change_count == 1
        assert one.telemetry.shown_us is not None
        assert one.telemetry.submit_us is not None
        assert one.telemetry.first_action_us is not None
        assert one.telemetry.shown_us <= one.telemetry.first_action_us <= one.telemetry.submit_us


def test_arrows_move_the_mark_a_step(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    status = page.locator("#bar-status")
    person.press("2")
    expect(status).to_have_text("A much better")
    person.press("ArrowRight", "ArrowRight", "ArrowRight")
    expect(status).to_have_text("No difference")
    person.press("ArrowLeft")
    expect(status).to_have_text("A slightly better")
    person.press("Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "pairs")
    assert answer.preference == (4 if answer.shown_order == (0, 1) else 6)


def test_a_ranking_of_nine_takes_ten_keys(site: SiteUnderTest, visit: Visit) -> None:
    person = open_ranking(site, visit, 9)
    order = submitted_places(person.on_screen())
    letters = "FADIBHCEG"
    person.press(*letters.lower())
    assert strip(person) == " > ".join(letters)
    person.press("Enter")
    expect(person.page.get_by_role("heading", name=DONE)).to_be_visible()
    assert person.num_keys == 10
    (answer,) = answers(site, "ranks")
    assert tiers(answer) == [{order["ABCDEFGHI".index(letter)]} for letter in letters]


def test_a_ranking_with_ties_and_second_thoughts(site: SiteUnderTest, visit: Visit) -> None:
    person = open_ranking(site, visit, 4)
    order = submitted_places(person.on_screen())
    person.press("c", "=", "a", "b")
    assert strip(person) == "C = A > B"
    person.press("Backspace", "d", "=", "b")
    assert strip(person) == "C = A > D = B"
    person.press("Enter")
    expect(person.page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "ranks")
    a, b, c, d = order
    assert tiers(answer) == [{c, a}, {d, b}]


def test_a_ranking_by_tapping_on_a_phone(site: SiteUnderTest, visit: Visit) -> None:
    person = open_ranking(site, visit, 4, **PHONE)
    page = person.page
    order = submitted_places(person.on_screen())
    page.locator("#slot-B .take-next").tap()
    pool = page.locator("[data-pool]")
    pool.get_by_role("button", name="Put D next").tap()
    page.get_by_role("button", name="Tie the next").tap()
    pool.get_by_role("button", name="Put A next").tap()
    page.get_by_role("button", name="Undo").tap()
    pool.get_by_role("button", name="Put C next").tap()
    pool.get_by_role("button", name="Put A next").tap()
    assert strip(person) == "B > D > C > A"
    page.get_by_role("button", name="Submit").tap()
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "ranks")
    a, b, c, d = order
    assert tiers(answer) == [{b}, {d}, {c}, {a}]
    assert answer.telemetry is not None
    assert answer.telemetry.device_class == "phone"


def drag(person: Visitor, chip: Locator, target: Locator, share: float) -> None:
    """Drag with the mouse to a place of the target, as a share of its width from the left."""
    start, end = chip.bounding_box(), target.bounding_box()
    assert start is not None
    assert end is not None
    mouse = person.page.mouse
    mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    mouse.down()
    mouse.move(end["x"] + share * end["width"], end["y"] + end["height"] / 2, steps=6)
    mouse.up()


def test_a_ranking_by_dragging(site: SiteUnderTest, visit: Visit) -> None:
    person = open_ranking(site, visit, 4)
    page = person.page
    order = submitted_places(person.on_screen())
    pool, line = page.locator("[data-pool] button"), page.locator("[data-strip]")

    def chip(letter: str) -> Locator:
        return line.locator(f"[data-chip={letter}]")

    drag(person, pool.nth(0), line, 0.9)
    drag(person, pool.nth(1), line, 0.9)
    assert strip(person) == "A > B"
    drag(person, pool.nth(2), chip("A"), 0.1)  # before
    drag(person, pool.nth(3), chip("B"), 0.5)  # as good as
    assert strip(person) == "C > A > B = D"
    drag(person, chip("B"), chip("C"), 0.1)
    assert strip(person) == "B > C > A > D"
    person.press("Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "ranks")
    a, b, c, d = order
    assert tiers(answer) == [{b}, {c}, {a}, {d}]


def test_long_candidates_must_be_opened_first(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "long", [item(1, more=" And so on." * 60)])
    person = visit("ann")
    page = person.open("/work/long")
    person.press("7")
    expect(page.locator("#bar-status")).to_have_text("Read all of A, B first")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    person.press("o")
    page.get_by_role("button", name="Show all 189 words").click()
    person.press("Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    assert len(answers(site, "long")) == 1


def test_reading_aids_mark_words_and_are_recorded(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "aids", [item(1)], reading_aids=True)
    person = visit("ann")
    page = person.open("/work/aids")
    order = submitted_places(person.on_screen())
    person.press("w")
    assert page.locator(".only-here").all_inner_texts() == [str(place) for place in order]
    page.get_by_role("button", name="Word differences").click()
    expect(page.locator(".only-here")).to_have_count(0)
    page.evaluate(
        """() => {
          const text = document.querySelector("[data-text]").firstChild;
          const at = text.data.indexOf("the window shut");
          getSelection().setBaseAndExtent(text, at, text, at + "the window shut".length);
        }"""
    )
    expect(page.locator("[data-post] mark")).to_have_text("the window shut")
    person.press("4", "Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "aids")
    assert answer.telemetry is not None
    assert set(answer.telemetry.aids) == {"word_differences", "look_up"}
