"""Who may open which page, and from where a form may be sent: every page of the site over real HTTP.

The pages come from the site's own tables, so that a new one is covered by itself.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import pkgutil
import uuid
from collections.abc import Iterator

import httpx
import pytest

import services.labeling.web
from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.session_store import SessionStore, SessionTimes
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Page, PageTable, Public
from tests.html_pages import HtmlPage
from tests.labeling_world import NAMES, OTHER_LABELER, World, serve_world
from tests.site import Person

PAGES = [page for table in PAGE_TABLES for page in table.pages]
GUARDED = [page for page in PAGES if not isinstance(page.roles, Public)]
POSTS = [page for page in PAGES if page.method == "POST"]
ADDRESSES: dict[tuple[str, str], str] = {}  # of pages, as each person has them


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pages")
    with serve_world(server_loop, f"sqlite:///{folder}/labeling.sqlite3", folder) as world:
        world.populate(lambda field: f"{field} text")
        yield world


def acting_fields(world: World, name: str) -> dict[str, str]:
    """Fields with which any page's form would do something, were it let in."""
    lease = world.leases_of(name)[-1] if world.leases_of(name) else "0" * 32
    return {
        "item": lease,
        "preference": "1",
        "nonce": uuid.uuid4().hex,
        "text": "intruder",
        "reason": "subject",
        "note": "intruder",
        "user": OTHER_LABELER,
        "role": "labeler",
        "state": "closed",
        "name": f"intruder-{uuid.uuid4().hex[:8]}",
        "decision": "refuse",
        "labeler_id": OTHER_LABELER,
        "project": "intruder",
        "batch": "intruder.1",
        "title": "intruder",
        "instructions": "intruder",
        "version": "1",
        "revision": "1000",
        "tasks": '{"document": "d", "candidates": ["a", "b"]}',
        "rows": '{"post": "p", "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}',
        "days": "3",
    }


def ask(world: World, person: Person, page: Page, *, name: str, csrf: str | None = None) -> httpx.Response:
    """Open a page, or send its form."""
    if (page.path, name) not in ADDRESSES:
        ADDRESSES[page.path, name] = world.address(page, name)
    path = ADDRESSES[page.path, name]
    if page.method == "GET":
        return person.get(path)
    fields = acting_fields(world, name)
    if csrf is not None:
        fields["csrf"] = csrf
    return person.post(path, data=fields)


def with_cookie(world: World, token: str) -> Person:
    person = world.site.stranger()
    person.cookies.set("andon", token)
    return person


def ended_sessions(world: World) -> dict[str, Person]:
    """Browsers whose session is over, or never was."""
    site = world.site
    short = SessionStore(
        site.database, clock=lambda: 1, times=SessionTimes(absolute_us=1, idle_us=1)
    )  # began and ended in 1970
    signed_out = site.person("gone", Role.ADMIN)
    token = signed_out.cookies["andon"]
    assert signed_out.submit("/sign-out").status_code == 303
    closed = site.person("closed", Role.ADMIN)
    site.accounts.update_user("closed", role=None, is_closed=True, actor="test")
    hashed = site.sessions.find(world.people[Role.ADMIN].cookies["andon"])
    assert hashed is not None
    return {
        "stranger": site.stranger(),
        "made up": with_cookie(world, "A" * 43),
        "malformed": with_cookie(world, "x" * 5000),
        "expired": with_cookie(world, short.begin(NAMES[Role.ADMIN], ended_token=None)),
        "signed out": with_cookie(world, token),
        "closed": closed,
        "the hash of a session": with_cookie(world, hashed.token_sha256),
    }


def test_every_page_module_is_in_the_table_of_pages() -> None:
    found = {
        name
        for _finder, name, _is_package in pkgutil.iter_modules(services.labeling.web.__path__)
        if isinstance(
            getattr(importlib.import_module(f"services.labeling.web.{name}"), "table", None), PageTable
        )
        and name.startswith("pages_")
    }
    served = {page.handler.__module__.rpartition(".")[2] for page in PAGES}
    assert found - served == set()


def test_without_a_session_every_page_leads_to_the_sign_in(world: World) -> None:
    people = ended_sessions(world)
    csrf = people["stranger"].csrf_of("/sign-in")
    before = world.fingerprint()
    wrong = []
    # What is no session at all is tried on a few pages, what was one on all of them.
    once = {"made up", "malformed", "the hash of a session"}
    for number, (page, (words, person)) in enumerate(itertools.product(GUARDED, people.items())):
        if words in once and number > 5 * len(people):
            continue
        answer = ask(world, person, page, name=NAMES[Role.ADMIN], csrf=csrf)
        if page.method == "GET":
            leads = answer.headers.get("location", "").startswith("/sign-in?next=")
            is_right = (answer.status_code, leads, answer.content) == (303, True, b"")
        else:
            is_right = answer.status_code == 401 and "Sign in" in answer.text
        if not is_right:
            wrong.append((page.method, page.path, words, answer.status_code))
    assert wrong == []
    assert world.fingerprint() == before


def test_a_wrong_role_gets_a_page_that_says_so_and_changes_nothing(world: World) -> None:
    tokens = {role: person.csrf_of("/cord") for role, person in world.people.items()}
    before = world.fingerprint()
    wrong, num_refused = [], 0
    for page in GUARDED:
        assert not isinstance(page.roles, Public)
        for role in ROLES_OF_PEOPLE - page.roles:
            answer = ask(world, world.people[role], page, name=NAMES[role], csrf=tokens[role])
            num_refused += 1
            if answer.status_code != 403 or "Your role does not allow this." not in answer.text:
                wrong.append((page.method, page.path, role, answer.status_code))
    assert wrong == []
    assert num_refused > 0
    assert world.fingerprint() == before


def test_no_form_is_taken_without_its_own_token(world: World) -> None:
    stranger = world.site.stranger()
    tokens = {role: person.csrf_of("/cord") for role, person in world.people.items()}
    in_form_cookie = stranger.csrf_of("/sign-in")
    before = world.fingerprint()
    wrong = []
    for page in POSTS:
        roles = ROLES_OF_PEOPLE if isinstance(page.roles, Public) else page.roles
        role = sorted(roles)[0]
        person, name = world.people[role], NAMES[role]
        another = next(token for owner, token in tokens.items() if owner is not role)
        few = (None, another, in_form_cookie)
        for csrf in few if page is not POSTS[0] else (*few, "", "x", "A" * 86, person.cookies["andon"]):
            answer = ask(world, person, page, name=name, csrf=csrf)
            if answer.status_code != 403 or "This form is out of date." not in answer.text:
                wrong.append((page.path, csrf, answer.status_code))
        # A token counts in the form or in its header, once, and not in the address.
        path, fields = world.address(page, name), acting_fields(world, name)
        answer = person.post(path, params={"csrf": tokens[role]}, data=fields)
        if answer.status_code != 403:
            wrong.append((page.path, "in the address", answer.status_code))
        answer = person.post(path, data={**fields, "csrf": [tokens[role], tokens[role]]})
        if answer.status_code != 400:
            wrong.append((page.path, "twice", answer.status_code))
    assert wrong == []
    assert world.fingerprint() == before


def test_no_form_is_taken_from_another_site(world: World) -> None:
    tokens = {role: person.csrf_of("/cord") for role, person in world.people.items()}
    host = httpx.URL(world.site.url).netloc.decode()
    headers = (
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", ""),
        ("Origin", f"http://{host}.evil.example"),
        ("Origin", f"http://evil.example/{host}"),
        ("Origin", f"http://{host}@evil.example"),
        ("Origin", "http://[::1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    )
    before = world.fingerprint()
    wrong = []
    for page, header in itertools.product(POSTS, headers):
        if page is not POSTS[0] and header not in (headers[0], headers[1], headers[-2]):
            continue
        roles = ROLES_OF_PEOPLE if isinstance(page.roles, Public) else page.roles
        role = sorted(roles)[0]
        fields = {"csrf": tokens[role], **acting_fields(world, NAMES[role])}
        path = world.address(page, NAMES[role])
        answer = world.people[role].post(path, data=fields, headers=dict([header]))
        if answer.status_code != 403 or "This form was sent by another site." not in answer.text:
            wrong.append((page.path, header, answer.status_code))
    assert wrong == []
    assert world.fingerprint() == before


def test_every_form_of_the_site_carries_the_token_and_acts_by_post(world: World) -> None:
    posts = {page.path for page in POSTS}
    num_forms = 0
    for page in PAGES:
        if page.method != "GET":
            continue
        roles = ROLES_OF_PEOPLE if isinstance(page.roles, Public) else page.roles
        for role in roles:
            text = world.people[role].get(world.address(page, NAMES[role]), follow_redirects=True).text
            for form in HtmlPage(text).forms:
                num_forms += 1
                if form.method == "post":
                    assert "csrf" in form.filled(), (page.path, form.action)
                else:
                    assert "csrf" not in form.filled(), (page.path, form.action)
                    assert form.action not in posts, page.path
    assert num_forms > 3 * len(PAGE_TABLES)


def test_right_roles_are_let_in(world: World) -> None:
    """Last, because it acts."""
    guests: dict[Role, Person] = {}
    wrong = []
    for page, role in itertools.product(GUARDED, sorted(ROLES_OF_PEOPLE)):
        assert not isinstance(page.roles, Public)
        if role not in page.roles:
            continue
        if role not in guests:
            guests[role] = world.site.person(f"a-{role}", role)
        person = guests[role]
        answer = ask(world, person, page, name=f"a-{role}", csrf=person.csrf_of("/cord"))
        is_refused = answer.status_code in (401, 403, 405) or answer.status_code >= 500
        if is_refused or answer.headers.get("location", "").startswith("/sign-in?"):
            wrong.append((page.method, page.path, role, answer.status_code))
        if page.path == "/sign-out":
            del guests[role]
    assert wrong == []


def test_no_secret_stands_in_the_log(world: World) -> None:
    log = world.log_path.read_text(encoding="utf-8")
    assert "page_answered" in log
    assert "page_unexpected_error" not in log
    for person in world.people.values():
        assert person.cookies["andon"] not in log
