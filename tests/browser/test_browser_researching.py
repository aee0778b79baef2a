"""A researcher's day: a project, a batch, its tasks, then what came of them, and the export."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from services.labeling.accounts import Role
from tests.browser.conftest import Visit
from tests.browser.projects import POST, item, make_project, submitted_places
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

NUM_TASKS = 4


def lines() -> str:
    rows = [
        {
            "document": f"Item {number}. {POST}",
            "candidates": [f"Candidate {place} of item {number}." for place in range(2)],
            "overlap": 2,
        }
        for number in range(NUM_TASKS)
    ]
    return "\n".join(json.dumps(row) for row in rows)


def test_from_an_empty_site_to_an_export(site: SiteUnderTest, visit: Visit, tmp_path: Path) -> None:
    researcher = visit("rita", Role.RESEARCHER)
    page = researcher.open("/")
    page.get_by_role("link", name="New project").click()
    page.get_by_label("Name", exact=True).fill("cats and dogs")
    page.get_by_role("button", name="Make the project").click()
    expect(page.locator("#project-error")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("cats")
    page.get_by_label("Title").fill("Which summary is better?")
    page.get_by_label("Instructions").fill("Read the post first.")
    page.get_by_role("button", name="Make the project").click()

    page.get_by_role("link", name="New batch").click()
    page.get_by_label("Name", exact=True).fill("cats.1")
    page.get_by_label("Batched").check()
    page.get_by_role("button", name="Make the batch").click()
    expect(page.get_by_text("The batch is there.")).to_be_visible()
    tasks = page.get_by_label("Tasks, one JSON object on each line")
    tasks.fill('{"document": "no candidates"}')
    page.get_by_role("button", name="Add the tasks").click()
    expect(page.get_by_text("Line 1: candidates:")).to_be_visible()
    file = tmp_path / "tasks.jsonl"
    file.write_text(lines(), encoding="utf-8")
    page.get_by_label("or take them from a file").set_input_files(file)
    expect(tasks).to_have_value(lines())
    page.get_by_role("button", name="Add the tasks").click()
    expect(page.get_by_text(f"{NUM_TASKS} tasks added.")).to_be_visible()

    # Ann always takes the submitter's first candidate, Bob takes the second one once.
    for name in ("ann", "bob"):
        person = visit(name)
        person.open("/work/cats").get_by_role("button", name="I have read them").click()
        for number in range(NUM_TASKS):
            expect(person.page.locator("[data-progress]")).to_contain_text(f"{number} answered by you")
            text = person.on_screen()
            is_turned = submitted_places(text) == [1, 0]
            wants_second = name == "bob" and "item 0" in text[0]
            person.press("9" if is_turned != wants_second else "1", "Enter")
        expect(person.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()

    page.reload()
    expect(page.get_by_text(f"{2 * NUM_TASKS} of {2 * NUM_TASKS} wanted").first).to_be_visible()
    page.get_by_role("link", name="Quality", exact=True).first.click()
    expect(page.get_by_role("heading", name="Quality")).to_be_visible()
    pair = page.get_by_role("row").filter(has_text="ann, bob")
    expect(pair).to_contain_text("75")  # of 4 items they agree on 3

    page.get_by_role("link", name="Disagreements", exact=True).first.click()
    page.get_by_role("link", name="Item 0. My neighbour's cat").click()
    expect(page.get_by_text("Judge first")).to_be_visible()
    expect(page.get_by_role("heading", name="ann")).to_have_count(0)
    page.get_by_role("button", name="Judge it on the work page").click()
    page.get_by_role("button", name="I have read them").click()
    expect(page.locator("#answer-form")).to_be_visible()
    researcher.press("1", "Enter")
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    page.goto(f"{site.url}/projects/cats/disagreements")
    page.get_by_role("link", name="Item 0. My neighbour's cat").click()
    expect(page.get_by_text("You judged this item before you saw the answers.")).to_be_visible()
    card = page.locator("article.person").filter(has_text="bob")
    if not card.locator("textarea").is_visible():
        card.locator("summary").first.click()
    card.locator("textarea").fill("What spoke for the second?")
    card.get_by_role("button", name="Send").click()
    expect(page.get_by_text("Your message is sent.")).to_be_visible()

    labeler = visit("bob")
    labeler.open("/work").get_by_role("link", name="1 unread message").click()
    labeler.page.get_by_role("link", name="Item 0.").click()
    expect(labeler.page.locator(".theirs")).to_contain_text("What spoke for the second?")
    labeler.page.get_by_label("Reply").fill("It is shorter.")
    labeler.page.get_by_role("button", name="Send").click()
    page.goto(f"{site.url}/projects/cats/messages")
    expect(page.get_by_role("row").filter(has_text="bob")).to_contain_text("unread")

    page.get_by_role("link", name="Export", exact=True).first.click()
    page.get_by_label("Format").select_option("tldr")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    archive = tmp_path / "export.zip"
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as files:
        rows = next(name for name in files.namelist() if "manifest" not in name)
        assert len(files.read(rows).splitlines()) == 2 * NUM_TASKS + 1  # and the researcher's
        manifest = next(name for name in files.namelist() if "manifest" in name)
        assert json.loads(files.read(manifest))


def test_progress_moves_by_itself(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "cats", [item(1), item(2)])
    researcher = visit("rita", Role.RESEARCHER)
    page = researcher.page
    page.clock.install()
    researcher.open("/projects/cats")
    expect(page.get_by_text("0 of 2 wanted")).to_be_visible()
    person = visit("ann")
    person.open("/work/cats")
    person.press("1", "Enter")
    expect(person.page.locator("[data-progress]")).to_contain_text("1 answered by you")
    page.clock.fast_forward(11_000)
    expect(page.get_by_text("1 of 2 wanted")).to_be_visible()


def test_rules_that_somebody_else_changed_meanwhile_are_not_overwritten(
    site: SiteUnderTest, visit: Visit
) -> None:
    make_project(site, "cats", [item(1)])
    first, second = visit("rita", Role.RESEARCHER), visit("rolf", Role.RESEARCHER)
    for person in (first, second):
        person.open("/projects/cats/batches/cats.1")
        person.page.locator("details.card > summary").click()
    first.page.get_by_label("Calibration", exact=True).fill("15")
    first.page.get_by_role("button", name="Save the rules").click()
    expect(first.page.get_by_text("The rules are saved.")).to_be_visible()
    second.page.get_by_label("Gold", exact=True).fill("10")
    second.page.get_by_role("button", name="Save the rules").click()
    expect(second.page.get_by_text("Somebody else has changed these rules meanwhile.")).to_be_visible()
    expect(second.page.get_by_label("Gold", exact=True)).to_have_value("10")


def test_an_admin_invites_and_closes_accounts(site: SiteUnderTest, visit: Visit) -> None:
    admin = visit("root", Role.ADMIN)
    site.add_account("bob", Role.LABELER)
    page = admin.open("/people")
    page.get_by_label("As", exact=True).select_option("labeler")
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("Link").input_value()
    assert link.startswith(f"{site.url}/invitation/")
    guest = visit(None)
    guest.page.goto(link)
    expect(guest.page.get_by_role("heading", name="Open your account")).to_be_visible()
    page.get_by_role("link", name="Done").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Close the account of bob").click()
    expect(page.get_by_role("row").filter(has_text="bob").first).to_contain_text("closed")
