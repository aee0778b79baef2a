"""The whole of a labeler's way in a browser that runs no scripts."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from services.labeling.accounts import Role
from services.labeling.cord_store import CordStore
from services.labeling.projects import OnboardingSettings
from services.labeling.quality.records import Purpose
from services.labeling.service import now_us
from services.labeling.tasks import TaskKind
from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Visit
from tests.browser.projects import (
    answers,
    item,
    known,
    make_project,
    submitted_places,
    text_item,
    texts,
    tiers,
)
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

BEST = 1


def choose(page: Page, place: int) -> None:
    on_screen = page.locator("[data-text]").all_inner_texts()
    value = "1" if submitted_places(on_screen)[0] == place else "9"
    page.locator(f"[name=preference][value='{value}']").check()
    page.get_by_role("button", name="Submit").click()


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_from_the_invitation_to_ranking_writing_and_the_cord(
    site: SiteUnderTest, visit: Visit, device: dict[str, object]
) -> None:
    make_project(
        site,
        "school",
        [known(1, Purpose.TRAINING, BEST), known(2, Purpose.SCREENING, BEST), item(3)],
        instructions="Read the post first.",
        onboarding=OnboardingSettings(training_count=1, screening_count=1, min_agreement=1),
        naive_reading=True,
        rating_axes=True,
    )
    make_project(site, "ranks", [item(4, 4)])
    make_project(site, "texts", [text_item(5, TaskKind.WRITE)])
    make_project(site, "edits", [text_item(6, TaskKind.EDIT)])
    make_project(site, "skips", [item(7)])
    link = site.accounts.invite(role=Role.LABELER, user_name="ann", created_by="test").secret
    person = visit(None, java_script_enabled=False, **device)
    page = person.open(f"/invitation/{link}")
    page.get_by_label("Password", exact=True).fill("three unrelated words")
    page.get_by_label("The same password again").fill("three unrelated words")
    page.get_by_role("button", name="Open the account").click()

    page.get_by_role("link", name="Read the instructions").click()
    page.get_by_role("button", name="I have read them").click()
    for stage in ("training", "screening", "work"):
        page.get_by_label("What A says").fill("a window")
        page.get_by_label("What B says").fill("a cat")
        page.get_by_role("button", name="Show the post").click()
        for letter in "AB":
            for axis in ("accuracy", "coverage", "coherence", "overall"):
                page.locator(f"[name={axis}_{letter}][value='4']").check()
        choose(page, BEST)
        if stage == "training":
            expect(page.get_by_text("✓ Right.")).to_be_visible()
            page.get_by_role("link", name="Go on").click()
        if stage == "screening":
            expect(page.get_by_text("You are admitted.")).to_be_visible()
            page.get_by_role("link", name="Begin").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    (answer,) = answers(site, "school")
    assert answer.preference == 9
    assert {rating.overall for rating in answer.ratings} == {4}
    assert {rating.naive_reading for rating in answer.ratings} == {"a window", "a cat"}

    page = person.open("/work/ranks")
    order = submitted_places(person.on_screen())
    for letter, rank in zip("ABCD", "2113", strict=True):
        page.get_by_label(f"Place of {letter}").select_option(rank)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    (ranking,) = answers(site, "ranks")
    a, b, c, d = order
    assert tiers(ranking) == [{b, c}, {a}, {d}]

    page = person.open("/work/texts")
    page.get_by_label("Write the best").fill("A cat on a diet eats here.")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    page = person.open("/work/edits")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#text-error")).to_contain_text("Nothing is changed yet")
    page.get_by_label("Make it better").fill("Better.")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert [text.text for name in ("texts", "edits") for text in texts(site, name)] == [
        "A cat on a diet eats here.",
        "Better.",
    ]

    page = person.open("/work/skips")
    page.locator("[data-skip] > summary").click()
    page.get_by_label("It is in a language that I don't read well").check()
    page.get_by_role("button", name="Skip this item").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()

    page = person.open("/work/ranks/history")
    page.get_by_role("link", name="See or change it").click()
    page.get_by_label("Place of A").select_option("1")
    page.get_by_role("button", name="Save the change").click()
    expect(page.get_by_text("Your change is recorded.")).to_be_visible()
    assert tiers(answers(site, "ranks")[0]) == [{a, b, c}, {d}]

    page.locator("details.cord > summary").click()
    page.get_by_label("Why must training stop?").fill("It rambles.")
    page.locator("details.cord form").get_by_role("button", name="Pull the cord").click()
    expect(page.get_by_text("You pulled the cord.")).to_be_visible()
    event = CordStore(site.database, clock=now_us).last()
    assert event is not None
    assert event.reason == "It rambles."
    page.locator("details.account > summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
