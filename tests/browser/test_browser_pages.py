"""Every page there is, for both roles: accessible, blind, and no wider than the window it is read in.

The pages come from the site's own tables, so that a new one is covered by itself; beside them stand the
states of an item that one address does not show.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page

from andon.modeling.versions import ModelVersion
from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.projects import OnboardingSettings
from services.labeling.quality.records import Purpose
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from services.labeling.web import pages as site_pages
from services.labeling.web.app import PAGE_TABLES
from tests.browser.chromium import DESKTOP, PHONE, Visitor, let_in
from tests.browser.projects import item, known, make_project, text_item
from tests.html_pages import HtmlPage
from tests.labeling_world import NAMES, SCHOOL, World, serve_world

pytestmark = pytest.mark.browser

MIN_TARGET_PX = 44
CLOSING_MS = 300
SERIOUS = ("serious", "critical")
# One word that finds no place to break, and lines of ordinary length.
LONG = f"{'unbreakable' * 20} https://example.org/{'a/' * 60} and a few ordinary words beside it"
VERSION = ModelVersion(family="policy-of-nobody", version=424242, weights_sha256="ab" * 32)
SOURCE = "source-of-nobody"
HIDDEN_PURPOSES = set(Purpose) - {Purpose.TRAINING, Purpose.SCREENING}  # of those two labelers are told
GETS = [page for table in PAGE_TABLES for page in table.pages if page.method == "GET"]
# By role, what its person sees of a project of one item.
STATES = ("pair", "pair-aids", "rank", "rank-nine", "axes", "reading", "write", "edit", "first-steps", "long")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a page is looked at."""

    device: str
    scheme: str

    @property
    def options(self) -> dict[str, Any]:
        """For a browser's context."""
        return {**(PHONE if self.device == "phone" else DESKTOP), "color_scheme": self.scheme}


LOOKS = [
    Look(device=device, scheme=scheme) for device, scheme in product(("desktop", "phone"), ("light", "dark"))
]


def with_origin(task: TaskDraft) -> TaskDraft:
    """The task with everything that nobody who labels may see."""
    return replace(
        task,
        document=f"{task.document} {LONG}",
        document_id="document-of-nobody",
        candidates=tuple(
            Candidate(text=f"{one.text} {LONG}", source=SOURCE, policy_version=VERSION)
            for one in task.candidates
        ),
    )


def furnish(world: World) -> None:
    """A project for each state of an item's page."""
    site = world.site
    tasks: dict[str, list[TaskDraft]] = {
        "pair": [item(1)],
        "pair-aids": [item(2)],
        "rank": [item(3, 4)],
        "rank-nine": [item(4, 9)],
        "axes": [item(5, 3)],
        "reading": [item(6)],
        "write": [text_item(7, TaskKind.WRITE)],
        "edit": [text_item(8, TaskKind.EDIT)],
        "first-steps": [known(9, Purpose.TRAINING, 1), known(10, Purpose.SCREENING, 1)],
        "long": [item(11, more=" And so on." * 100)],
    }
    settings: dict[str, dict[str, Any]] = {
        "pair-aids": {"reading_aids": True},
        "rank": {"reading_aids": True},
        "axes": {"rating_axes": True},
        "reading": {"naive_reading": True},
        "first-steps": {
            "onboarding": OnboardingSettings(training_count=1, screening_count=1, min_agreement=1)
        },
    }
    for name, drafts in tasks.items():
        sound = [replace(with_origin(one), overlap_count=4) for one in drafts]
        make_project(site, name, sound, title=f"{name} {LONG[:150]}", **settings.get(name, {}))


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A site on which everything has happened once, with long words everywhere."""
    folder = tmp_path_factory.mktemp("pages")
    with serve_world(server_loop, f"sqlite:///{folder}/labeling.sqlite3", folder) as world:
        world.populate(lambda field: f"{field} {LONG}"[:900])
        furnish(world)
        yield world


def paths(world: World, role: Role) -> list[str]:
    """What the person of this role can open."""
    found = []
    for page in GETS:
        is_public = page.roles is site_pages.PUBLIC
        if not (is_public or role in page.roles):  # type: ignore[operator]
            continue
        found.append(world.address(page, NAMES[role]))
    lease = feedback_lease(world, NAMES[role])
    if lease is not None:
        found = [path.rsplit("/", 1)[0] + f"/{lease}" if "/feedback/" in path else path for path in found]
    found = [re.sub("/work/pairs/(feedback|result)", f"/work/{SCHOOL}/\\1", path) for path in found]
    if role is Role.LABELER:
        found += [f"/work/{state}" for state in STATES]
    return found


def feedback_lease(world: World, name: str) -> str | None:
    """An item of the training that the person has answered."""
    rows = world.rows(
        sa.select(schema.leases.c.id)
        .join(schema.tasks, schema.tasks.c.id == schema.leases.c.task_id)
        .where(
            schema.leases.c.labeler_id == name,
            schema.leases.c.is_answered,
            schema.tasks.c.purpose == Purpose.TRAINING.value,
        )
    )
    return rows[0].id if rows else None


@pytest.fixture
def visitor(browser: Browser, world: World, look: Look, role: Role) -> Iterator[Visitor]:
    context = browser.new_context(**look.options)
    let_in(context, world.people[role])
    yield Visitor(context, world.site)
    context.close()


def violations(page: Page, axe: str) -> list[str]:
    """What axe finds that is serious, one line each."""
    page.evaluate(axe)
    found: list[dict[str, Any]] = page.evaluate(
        """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations"""
    )
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look.device}-{look.scheme}")
@pytest.mark.parametrize("role", [Role.LABELER, Role.ADMIN])
def test_axe_finds_no_serious_fault_on_any_page(
    world: World, visitor: Visitor, role: Role, look: Look, axe: str
) -> None:
    faults = []
    for path in paths(world, role):
        page = visitor.open(path)
        faults += [f"{path}: {fault}" for fault in violations(page, axe)]
        if look.device == "phone":
            faults += [f"{path}: {wide}" for wide in visitor.overflow()]
    assert not faults, "\n".join(faults)
    assert not visitor.faults, visitor.faults


@pytest.mark.parametrize("look", LOOKS[:1], ids=["desktop"])
@pytest.mark.parametrize("role", [Role.LABELER])
def test_open_menus_and_dialogs_are_accessible_too(
    world: World, visitor: Visitor, role: Role, look: Look, axe: str
) -> None:
    page = visitor.open("/work/rank")
    faults: list[str] = []
    for selector in ("details.cord > summary", "details.account > summary", "[data-skip] > summary"):
        page.locator(selector).click()
        faults += [f"{selector}: {fault}" for fault in violations(page, axe)]
        page.keyboard.press("Escape")
        # Chromium closes what is open a moment after the key, and would take a dialog of that moment along.
        page.wait_for_timeout(CLOSING_MS)
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    faults += [f"keys: {fault}" for fault in violations(page, axe)]
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.keyboard.press("=")
    page.keyboard.press("b")
    page.keyboard.press("w")
    faults += [f"half a ranking: {fault}" for fault in violations(page, axe)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("look", [LOOKS[2]], ids=["phone"])
@pytest.mark.parametrize("role", [Role.LABELER])
def test_what_a_finger_touches_is_large_enough(
    world: World, visitor: Visitor, role: Role, look: Look
) -> None:
    small = []
    for state in STATES:
        page = visitor.open(f"/work/{state}")
        for menu in page.locator("main details > summary").all():
            menu.click()
        small += [f"{state}: {one}" for one in page.evaluate(SMALL_TARGETS, MIN_TARGET_PX)]
        small += [f"{state}: {one}" for one in visitor.overflow()]
        page.locator("details.cord > summary").click()
        small += [f"{state} with the cord: {one}" for one in visitor.overflow()]
    assert not small, "\n".join(small)


# A radio or a checkbox is as large as its label, which is touched as well.
SMALL_TARGETS = """(least) => [...document.querySelectorAll(
    "a, button, select, textarea, summary, input:not([type=hidden])")]
  .map((one) => [one, one.matches("[type=radio], [type=checkbox]") ? one.closest("label") || one : one])
  .map(([one, area]) => [one, area.getBoundingClientRect()])
  .filter(([one, box]) => one.checkVisibility({visibilityProperty: true}) && box.width > 0 && box.bottom > 0
    && !one.closest(".skip-link") && (box.width < least - 0.5 || box.height < least - 0.5))
  .map(([one, box]) => `${one.tagName} ${one.className || one.name} "${one.textContent.trim().slice(0, 30)}" `
    + `${Math.round(box.width)} x ${Math.round(box.height)}`)
"""


@pytest.mark.parametrize("look", LOOKS[:1], ids=["desktop"])
@pytest.mark.parametrize("role", [Role.LABELER])
def test_a_labeler_never_gets_what_would_unblind_them(
    world: World, visitor: Visitor, role: Role, look: Look
) -> None:
    rows = world.rows(sa.select(schema.tasks.c.id, schema.tasks.c.batch_id))
    task_ids = {str(row.id) for row in rows}
    others = {str(row.labeler_id) for row in world.rows(sa.select(schema.comparisons.c.labeler_id))}
    others.discard(NAMES[role])
    told: list[str] = []
    visitor.page.on(
        "response",
        lambda response: (
            told.append(f"{response.url}\n{response.headers}") if "/static/" not in response.url else None
        ),
    )
    secrets = (
        SOURCE,
        VERSION.family,
        "424242",
        VERSION.weights_sha256,
        "document-of-nobody",
        "document id",
        "source unb",
        "model name",
        *(f"{name}.1" for name in STATES),
        *others,
    )
    found = []
    for path in paths(world, role):
        page = visitor.open(path)
        raw = html.unescape(page.content())
        found += [f"{path}: {secret!r}" for secret in secrets if secret in raw]
        found += [
            f"{path}: {one.value}"
            for one in HIDDEN_PURPOSES
            if re.search(rf"\b{one.value}\b", attributes(raw))
        ]
        numbers = set(re.findall(r"(?<![\w.-])\d+(?![\w.-])", identifiers(raw)))
        found += [f"{path}: task {number}" for number in numbers & task_ids if len(number) > 2]
    assert not found, "\n".join(found)
    headers = "\n".join(told)
    assert not [secret for secret in secrets if secret in headers]


def attributes(text: str) -> str:
    """The values of all attributes."""
    page = HtmlPage(text)
    return "\n".join(value for _, found in page.elements for value in found.values())


def identifiers(text: str) -> str:
    """Where a number of a task would stand: addresses, data attributes, hidden fields."""
    found = []
    for tag, attributes in HtmlPage(text).elements:
        for name, value in attributes.items():
            is_hidden = tag == "input" and attributes.get("type") == "hidden" and name == "value"
            measured = attributes.get("name", "").endswith("_ms")
            if name in ("href", "action", "id") or name.startswith("data-") or (is_hidden and not measured):
                found.append(value)
    return "\n".join(found)
