"""What a page asks for beside the comparison, what it refuses, and how answers are changed and given back."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from services.labeling import schema
from services.labeling.answers import Flag
from services.labeling.export import ExportFilter
from services.labeling.service import now_us
from services.labeling.store import LabelingStore
from tests.browser.conftest import Visit
from tests.browser.projects import answers, item, make_project, submitted_places
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

DONE = "Nothing left for now"


def test_an_empty_comparison_cannot_be_sent_and_the_page_says_why(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    expect(page.locator("#bar-status")).to_have_text("Choose 1 to 9")
    person.press("Enter")
    expect(page.locator("#bar-status")).to_have_class("bar-status is-problem")
    expect(page.locator("#live")).to_have_text("Choose 1 to 9.")
    expect(page.locator("[name=preference]").first).to_be_focused()
    assert answers(site, "pairs") == []


@pytest.mark.parametrize("num_candidates", [2, 3])
def test_the_server_refuses_an_empty_answer_beside_its_control(
    site: SiteUnderTest, visit: Visit, num_candidates: int
) -> None:
    make_project(site, "pairs", [item(1, num_candidates)])
    person = visit("ann", java_script_enabled=False)
    page = person.open("/work/pairs")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Not recorded yet.")).to_be_visible()
    name = "preference" if num_candidates == 2 else "ranking"
    error = page.locator(f"#{name}-error")
    expect(error).to_be_visible()
    pointing = page.locator(f"[aria-describedby='{name}-error']")
    assert pointing.count() >= 1
    assert answers(site, "pairs") == []


def test_a_ranking_with_a_gap_says_who_is_missing(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "ranks", [item(1, 4)])
    person = visit("ann")
    page = person.open("/work/ranks")
    person.press("b", "d")
    expect(page.locator("#bar-status")).to_have_text("Without a place: A, C")
    person.press("Enter")
    assert answers(site, "ranks") == []
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()


def test_axes_are_rated_by_digits_that_lead_on(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "axes", [item(1)], rating_axes=True)
    person = visit("ann")
    page = person.open("/work/axes")
    order = submitted_places(person.on_screen())
    person.press("7")
    expect(page.locator("#bar-status")).to_have_text("Rate A: accuracy")
    person.press("g", *"1234567")
    expect(page.locator("#bar-status")).to_have_text("Rate B: overall")
    person.press("5", "Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "axes")
    by_place = [answer.ratings[place] for place in order]
    assert [(one.accuracy, one.coverage, one.coherence, one.overall) for one in by_place] == [
        (1, 2, 3, 4),
        (5, 6, 7, 5),
    ]
    assert answer.preference == (7 if order == [0, 1] else 3)


def test_who_cannot_judge_a_summary_need_not_rate_it(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "axes", [item(1)], rating_axes=True)
    person = visit("ann")
    page = person.open("/work/axes")
    order = submitted_places(person.on_screen())
    for letter in "AB":
        page.get_by_text(f"Flag {letter}").click()
        page.locator(f"#slot-{letter}").get_by_label("I can't judge it").check()
    page.locator("#slot-A").get_by_label("Harmful").check()
    page.locator("[name=preference][value='5']").check()
    page.get_by_label("Why?").fill("It is about medicine.")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "axes")
    assert set(answer.ratings[order[0]].flags) == {Flag.HARMFUL, Flag.CANNOT_JUDGE}
    assert answer.ratings[order[1]].flags == (Flag.CANNOT_JUDGE,)
    assert answer.note == "It is about medicine."


def test_summaries_are_read_by_themselves_before_the_post(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "blind", [item(1)], naive_reading=True)
    person = visit("ann")
    page = person.open("/work/blind")
    order = submitted_places(person.on_screen())
    assert "My neighbour's cat" not in page.content()
    expect(page.locator("#bar-status")).to_have_text("Say what A tells you")
    page.get_by_label("What A says").fill("a window")
    page.get_by_label("What B says").fill("a cat")
    page.get_by_role("button", name="Show the post").click()
    expect(page.get_by_text("My neighbour's cat")).to_be_visible()
    assert submitted_places(person.on_screen()) == order
    page.get_by_text("What you took it to say").first.click()
    expect(page.locator("#slot-A").get_by_text("a window")).to_be_visible()
    page.reload()
    expect(page.get_by_text("My neighbour's cat")).to_be_visible()
    person.press("6", "Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    (answer,) = answers(site, "blind")
    assert [answer.ratings[place].naive_reading for place in order] == ["a window", "a cat"]


def test_a_project_may_leave_out_no_difference(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "sides", [item(1)], no_indifference=True)
    person = visit("ann")
    page = person.open("/work/sides")
    expect(page.locator("[name=preference]")).to_have_count(8)
    person.press("5", "Enter")
    expect(page.locator("#bar-status")).to_contain_text("Choose a side")
    person.press("4", "ArrowRight")
    expect(page.locator("#bar-status")).to_have_text("B slightly better")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()


def test_skipping_needs_a_reason_and_gives_the_item_to_somebody_else(
    site: SiteUnderTest, visit: Visit
) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("s")
    skip = page.get_by_role("button", name="Skip this item")
    skip.click()
    assert page.locator("#skip-form [name=reason]").first.evaluate("(one) => one.validity.valueMissing")
    page.get_by_label("Something else").check()
    skip.click()
    expect(page.locator("#reason-error")).to_have_text("Say why.")
    page.get_by_label("I don't know enough about the subject").check()
    page.get_by_label("In your words, if you like").fill("Cats are beyond me.")
    skip.click()
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    with site.database.engine.connect() as connection:
        reasons = connection.execute(sa.select(schema.skips.c.reason)).scalars().all()
    assert reasons == ["I don't know enough about the subject: Cats are beyond me."]
    other = visit("bob")
    other.open("/work/pairs")
    expect(other.page.locator("#answer-form")).to_be_visible()


def test_skipping_by_keyboard(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    person.press("s", "2", "Enter")
    expect(page.get_by_role("heading", name=DONE)).to_be_visible()
    assert person.num_keys == 3
    assert answers(site, "pairs") == []


def test_an_earlier_answer_is_corrected_until_it_is_exported(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1), item(2)])
    person = visit("ann")
    page = person.open("/work/pairs")
    order = submitted_places(person.on_screen())
    person.press("1", "Enter")
    expect(page.locator("[data-progress]")).to_contain_text("1 answered by you")
    person.press("p")
    expect(page.get_by_role("heading", name="An earlier answer")).to_be_visible()
    expect(page.locator("[name=preference][value='1']")).to_be_checked()
    person.press("8")
    page.get_by_role("button", name="Save the change").click()
    expect(page.get_by_text("Your change is recorded.")).to_be_visible()
    first, second = answers(site, "pairs", with_superseded=True)
    assert second.supersedes_id == first.comparison_id
    assert (first.preference, second.preference) == ((1, 8) if order == [0, 1] else (9, 2))

    LabelingStore(site.database, clock=now_us).note_exported(
        ExportFilter(project="pairs"), second.comparison_id
    )
    page.reload()
    page.get_by_role("link", name="See it").click()
    expect(page.get_by_text("This answer has been exported and stands as it is.")).to_be_visible()
    expect(page.get_by_role("button", name="Save the change")).to_have_count(0)


def test_a_labeler_asks_a_researcher_about_an_item(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    page.get_by_role("link", name="Ask about it").click()
    page.get_by_label("What do you want to ask?").fill("Does the diet matter?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".own-talk .mine")).to_contain_text("Does the diet matter?")
    page.get_by_role("link", name="Back to the work").click()
    expect(page.locator("#answer-form")).to_be_visible()
