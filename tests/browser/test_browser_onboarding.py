"""From an invitation link to the first item: instructions, training, a failed and a passed screening."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from services.labeling.accounts import Role
from services.labeling.onboarding_store import OnboardingStore, Stage
from services.labeling.projects import OnboardingSettings
from services.labeling.quality.records import Purpose
from services.labeling.service import now_us
from tests.browser.chromium import Visitor
from tests.browser.conftest import Visit
from tests.browser.projects import answers, item, known, make_project, submitted_places
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

BEST = 1  # of every item with a known answer, in the submitter's order


def choose(person: Visitor, place: int) -> None:
    """Say that a candidate, by its place in the submission, is far better, and go on."""
    is_first = submitted_places(person.on_screen())[0] == place
    person.press("1" if is_first else "9", "Enter")


def screen(person: Visitor, *, rightly: bool, num_items: int) -> None:
    for number in range(1, num_items + 1):
        expect(person.page.locator("[data-progress]")).to_have_text(f"Item {number} of {num_items}")
        choose(person, BEST if rightly else 1 - BEST)


def test_a_newcomer_fails_a_screening_passes_the_next_and_works(site: SiteUnderTest, visit: Visit) -> None:
    make_project(
        site,
        "summaries",
        [
            *(known(number, Purpose.TRAINING, BEST) for number in range(2)),
            *(known(number, Purpose.SCREENING, BEST) for number in range(2, 8)),
            *(item(number) for number in range(8, 10)),
        ],
        instructions="Choose the summary that tells more of what matters.",
        onboarding=OnboardingSettings(
            training_count=2, screening_count=3, min_agreement=0.9, max_item_s=600, max_attempts=2
        ),
    )
    link = site.accounts.invite(role=Role.LABELER, user_name="", created_by="test").secret
    person = visit(None)
    page = person.open(f"/invitation/{link}")

    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password", exact=True).fill("three unrelated words")
    page.get_by_label("The same password again").fill("three unrelated words")
    page.get_by_role("button", name="Open the account").click()
    page.get_by_role("link", name="Read the instructions").click()
    expect(page.get_by_text("Choose the summary that tells more")).to_be_visible()
    page.get_by_role("button", name="I have read them").click()

    # Training: one right, one wrong, each with the reason.
    expect(page.get_by_role("heading", name="Training")).to_be_visible()
    choose(person, BEST)
    expect(page.get_by_role("status").filter(has_text="✓ Right.")).to_be_visible()
    expect(page.get_by_text("Candidate 1 says what item")).to_be_visible()
    person.pause()
    person.press("Enter")
    expect(page.locator("[data-progress]")).to_have_text("Item 2 of 2")
    choose(person, 1 - BEST)
    expect(page.get_by_role("status").filter(has_text="✗ Not right.")).to_be_visible()
    page.get_by_role("link", name="Go on").click()

    screen(person, rightly=False, num_items=3)
    expect(page.get_by_text("You were not admitted this time.")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    screen(person, rightly=True, num_items=3)
    expect(page.get_by_text("You are admitted.")).to_be_visible()
    page.get_by_role("link", name="Begin").click()
    expect(page.locator("[data-progress]")).to_contain_text("0 answered by you")
    choose(person, 0)
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")

    attempts = OnboardingStore(site.database, clock=now_us).attempts("summaries")
    assert [(one.stage, one.num_right) for one in attempts] == [(Stage.FAILED, 0), (Stage.ADMITTED, 3)]
    (answer,) = answers(site, "summaries")
    assert answer.preference == 1
    assert answer.labeler_id == "ann"


def test_instructions_that_have_changed_are_shown_again(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "summaries", [item(1)], instructions="First version.")
    person = visit("ann")
    page = person.open("/work/summaries")
    page.get_by_role("button", name="I have read them").click()
    expect(page.locator("#answer-form")).to_be_visible()
    researcher = visit("rita", Role.RESEARCHER)
    researcher.open("/projects/summaries/settings")
    researcher.page.get_by_label("Instructions").fill("Second version.")
    researcher.page.get_by_role("button", name="Save").click()
    expect(researcher.page.get_by_text("Saved.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("The instructions have changed.")).to_be_visible()
    expect(page.get_by_text("Second version.")).to_be_visible()


def test_the_instructions_stay_at_hand_in_a_drawer(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "summaries", [item(1)], instructions="Tell more of what matters.")
    person = visit("ann")
    page = person.open("/work/summaries")
    page.get_by_role("button", name="I have read them").click()
    page.locator("[name=preference][value='3']").check()
    person.press("r")
    expect(page.get_by_role("dialog").get_by_text("Tell more of what matters.")).to_be_visible()
    person.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("[name=preference][value='3']")).to_be_checked()
