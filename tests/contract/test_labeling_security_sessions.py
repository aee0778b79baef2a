"""Sessions, cookies, redirects and headers of the labeling site, tried as by somebody who means harm."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import pytest

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Public
from tests.html_pages import HtmlPage
from tests.labeling_world import NAMES, World, serve_world
from tests.passwords import PASSWORD, add_with_password, sign_in
from tests.site import Person

OTHER_PASSWORD = "four other unrelated words"
EVIL = "evil.example"

EVIL_TARGETS = (
    f"https://{EVIL}/",
    f"//{EVIL}",
    f"///{EVIL}",
    f"////{EVIL}",
    f"/\\{EVIL}",
    f"\\\\{EVIL}",
    f"/\t/{EVIL}",
    f"/\n/{EVIL}",
    f"\t//{EVIL}",
    f" //{EVIL}",
    f"https:{EVIL}",
    f"https:/{EVIL}",
    f"http:///{EVIL}",
    f"/%0a/{EVIL}",
    f"/%09/{EVIL}",
    f"/..//{EVIL}",
    f"/.//{EVIL}",
    f"/x/..//{EVIL}",
    f"@{EVIL}",
    f"javascript:alert('{EVIL}')",
    f"data:text/html,{EVIL}",
    f"/cord\r\nSet-Cookie: andon={EVIL}",
    f"/cord?a=\r\nLocation: https://{EVIL}",
    f"/{'x' * 5000}{EVIL}",
    f"/ſ//{EVIL}",
)


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("sessions")
    with serve_world(server_loop, f"sqlite:///{folder}/labeling.sqlite3", folder) as world:
        yield world


@pytest.fixture(scope="module")
def behind_tls(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tls")
    url = f"sqlite:///{folder}/labeling.sqlite3"
    with serve_world(server_loop, url, folder, web_public_url="https://labels.example.org") as world:
        yield world


def let_in(person: Person, name: str, password: str = PASSWORD, **fields: str) -> None:
    answer = sign_in(person, name, password, **fields)
    assert answer.status_code == 303, answer.text


def session_of(person: Person) -> str:
    """The cookie that the site has set last."""
    values = [cookie.value for cookie in person.cookies.jar if cookie.name == "andon" and cookie.value]
    return str(values[-1])


def is_signed_in(world: World, token: str) -> bool:
    person = world.site.stranger()
    person.cookies.set("andon", token)
    return person.get("/account").status_code == 200


# Sessions


def test_a_session_that_was_planted_before_the_sign_in_is_not_the_one_after(world: World) -> None:
    add_with_password(world.site, "victim")
    mallory = world.site.person("mallory", Role.LABELER)
    planted = mallory.cookies["andon"]
    for token in (planted, "A" * 43):
        victim = world.site.stranger()
        victim.cookies.set("andon", token, domain="127.0.0.1", path="/")
        form = HtmlPage(victim.get("/sign-out").text)  # any page; the site has seen the cookie
        assert form.text
        # Somebody with a session is sent on from the form, so they send it as a script would.
        csrf = victim.csrf_of("/account" if token == planted else "/sign-in")
        answer = victim.post("/sign-in", data={"csrf": csrf, "name": "victim", "password": PASSWORD})
        assert answer.status_code == 303
        new = answer.cookies["andon"]
        assert new != token
        assert is_signed_in(world, new)
        assert not is_signed_in(world, token)


def test_what_the_form_s_cookie_held_is_no_session(world: World) -> None:
    add_with_password(world.site, "ben")
    person = world.site.stranger()
    person.get("/sign-in")
    form_cookie = person.cookies["andon-form"]
    let_in(person, "ben")
    assert not is_signed_in(world, form_cookie)
    assert session_of(person) != form_cookie


def test_the_form_s_token_of_before_the_sign_in_is_worth_nothing_after(world: World) -> None:
    add_with_password(world.site, "cleo")
    person = world.site.stranger()
    before = person.csrf_of("/sign-in")
    let_in(person, "cleo")
    assert person.post("/cord/pull", data={"csrf": before, "reason": "x"}).status_code == 403
    first = person.csrf_of("/cord")
    other = world.site.stranger()
    let_in(other, "cleo")
    # Not even with another session of the same person.
    assert other.post("/cord/pull", data={"csrf": first, "reason": "x"}).status_code == 403


def test_a_new_password_ends_all_other_sessions(world: World) -> None:
    add_with_password(world.site, "dora")
    here, there = world.site.stranger(), world.site.stranger()
    let_in(here, "dora")
    let_in(there, "dora")
    old_here, old_there = session_of(here), session_of(there)
    fields = {"old": "not the password", "password": OTHER_PASSWORD, "password_again": OTHER_PASSWORD}
    assert here.submit("/account/password", fields, page="/account").status_code == 400
    assert is_signed_in(world, old_there)
    answer = here.submit("/account/password", {**fields, "old": PASSWORD}, page="/account")
    assert answer.status_code == 303
    assert is_signed_in(world, answer.cookies["andon"])
    assert not is_signed_in(world, old_here)
    assert not is_signed_in(world, old_there)
    let_in(world.site.stranger(), "dora", OTHER_PASSWORD)
    refused = world.site.stranger().submit(
        "/sign-in", {"name": "dora", "password": PASSWORD}, page="/sign-in"
    )
    assert refused.status_code == 401


def test_a_password_link_ends_all_sessions_and_works_once(world: World) -> None:
    add_with_password(world.site, "emil")
    person = world.site.stranger()
    let_in(person, "emil")
    link = world.site.accounts.password_link("emil", created_by="test").secret
    fields = {"password": OTHER_PASSWORD, "password_again": OTHER_PASSWORD}
    answer = world.site.stranger().submit(f"/invitation/{link}", fields, page=f"/invitation/{link}")
    assert answer.status_code == 303
    assert not is_signed_in(world, session_of(person))
    assert world.site.stranger().get(f"/invitation/{link}").status_code == 404


def test_closing_an_account_and_changing_a_role_act_on_the_next_request(world: World) -> None:
    root = world.people[Role.ADMIN]
    person = world.site.person("finn", Role.RESEARCHER)
    assert person.get("/projects").status_code == 200
    change = {"user": "finn", "role": "labeler", "state": ""}
    assert root.submit("/people/change", change, page="/people").status_code == 303
    assert person.get("/projects").status_code == 403
    assert person.get("/inbox").status_code == 200
    change = {"user": "finn", "role": "", "state": "closed"}
    assert root.submit("/people/change", change, page="/people").status_code == 303
    assert not is_signed_in(world, person.cookies["andon"])
    change = {"user": "finn", "role": "", "state": "open"}
    assert root.submit("/people/change", change, page="/people").status_code == 303
    assert not is_signed_in(world, person.cookies["andon"])


def test_cookies_are_for_this_site_and_not_for_scripts(world: World, behind_tls: World) -> None:
    add_with_password(world.site, "gina")
    person = world.site.stranger()
    set_by_form = person.get("/sign-in").headers["set-cookie"]
    csrf = person.csrf_of("/sign-in")
    answer = person.post("/sign-in", data={"csrf": csrf, "name": "gina", "password": PASSWORD})
    cookies = [set_by_form, *answer.headers.get_list("set-cookie")]
    assert len(cookies) == 3
    for cookie in cookies:
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= parts
        assert not any(part.startswith("domain=") for part in parts)
        assert "secure" not in parts  # over http a browser would not send it back
    # Where people come over https, the cookies are bound to it and to the host.
    port = behind_tls.site.service.ready_facts["web_port"]
    url = f"http://127.0.0.1:{port}/sign-in"
    answer = behind_tls.site.stranger().get(url, headers={"Host": "labels.example.org"})
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-andon-form=")
    assert {"secure", "httponly", "path=/"} <= {part.strip().lower() for part in cookie.split(";")[1:]}
    assert "max-age=31536000" in answer.headers["strict-transport-security"]


# Names


def test_nobody_chooses_a_name_under_which_others_have_answered(world: World) -> None:
    """Else a guest would see, and might correct, the answers of whoever works over gRPC or was imported."""
    world.must("SubmitTasks", world.tasks(lambda field: field, 1), by="service")
    world.must("LeaseTasks", pb.LeaseTasksRequest(labeler_id="simulated-1"), by="service")
    row = pb.ImportedComparison(document="d", choice=pb.Choice(best_index=0), labeler_id="imported-1")
    row.candidates.extend([pb.Candidate(text="a"), pb.Candidate(text="b")])
    request = pb.ImportComparisonsRequest(
        request_id="i", project="default", batch="imported.1", comparisons=[row]
    )
    world.must("ImportComparisons", request, by="service")
    world.site.tokens.make(name="bot-1", role=Role.SERVICE, created_by="test")
    for name in ("simulated-1", "imported-1", "bot-1", "root"):
        link = world.site.accounts.invite(role=Role.LABELER, user_name="", created_by="test").secret
        path = f"/invitation/{link}"
        fields = {"password": PASSWORD, "password_again": PASSWORD}
        person = world.site.stranger()
        assert person.submit(path, {**fields, "name": name}, page=path).status_code == 409, name
    assert person.submit(path, {**fields, "name": "nobody-yet"}, page=path).status_code == 303
    # Whoever may invite may give the name to whom it belongs.
    link = world.site.accounts.invite(role=Role.LABELER, user_name="simulated-1", created_by="test").secret
    fields = {"password": PASSWORD, "password_again": PASSWORD}
    answer = world.site.stranger().submit(f"/invitation/{link}", fields, page=f"/invitation/{link}")
    assert answer.status_code == 303


# Redirects and hosts


def browsers_target(base: str, location: str) -> str:
    """Where a browser goes: it drops control characters and takes a backslash for a slash."""
    cleaned = location.strip("".join(map(chr, range(33))))
    cleaned = cleaned.replace("\t", "").replace("\n", "").replace("\r", "").replace("\\", "/")
    return urljoin(base, cleaned)


def test_signing_in_leads_only_to_pages_of_the_site(world: World) -> None:
    add_with_password(world.site, "hal")
    signed_in, base = world.people[Role.LABELER], world.site.url
    stranger = world.site.stranger()
    for target in EVIL_TARGETS:
        shown = stranger.get("/sign-in", params={"next": target})
        sent_on = signed_in.get("/sign-in", params={"next": target})
        if "\x00" in target:
            assert (shown.status_code, sent_on.status_code) == (400, 400)
            continue
        (form,) = [form for form in HtmlPage(shown.text).forms if form.action == "/sign-in"]
        for location in (form.filled()["next"], sent_on.headers["location"]):
            goes = urlsplit(browsers_target(base, location))
            assert (goes.scheme, goes.netloc) == ("http", urlsplit(base).netloc), target
        assert "set-cookie" not in sent_on.headers
    # The same for what the form itself sends.
    person = world.site.stranger()
    for target in EVIL_TARGETS[:8]:
        csrf = person.csrf_of("/sign-in")
        fields = {"csrf": csrf, "name": "hal", "password": PASSWORD, "next": target}
        answer = person.post("/sign-in", data=fields)
        goes = urlsplit(browsers_target(base, answer.headers["location"]))
        assert goes.netloc == urlsplit(base).netloc, target
        person.cookies.clear()


def test_another_host_s_name_stands_nowhere(world: World) -> None:
    root = world.people[Role.ADMIN]
    headers = {"Host": EVIL, "X-Forwarded-Host": EVIL, "Forwarded": f"host={EVIL}", "X-Original-URL": "/x"}
    for table in PAGE_TABLES:
        for page in table.pages:
            if page.method != "GET" or "{" in page.path:
                continue
            for person in (root, world.site.stranger()):
                answer = person.get(page.path, headers=headers)
                assert EVIL not in answer.text, page.path
                assert EVIL not in str(answer.headers), page.path
    fields = {"csrf": root.csrf_of("/people"), "role": "labeler", "name": "", "days": "3"}
    made = root.post("/people/invite", data=fields, headers={**headers, "Origin": f"http://{EVIL}"})
    assert made.status_code in (200, 403)
    assert EVIL not in made.text


def test_a_proxy_that_is_not_trusted_cannot_name_the_browser_s_address(world: World) -> None:
    stranger = world.site.stranger()
    statuses = [
        stranger.get(
            f"/invitation/{'x' * number}", headers={"X-Forwarded-For": f"203.0.113.{number}"}
        ).status_code
        for number in range(1, 33)
    ]
    assert statuses[-1] == 429  # all were counted as one address


# Headers


def test_every_page_forbids_framing_sniffing_and_keeping(world: World) -> None:
    answers = []
    stranger = world.site.stranger()
    for table in PAGE_TABLES:
        for page in table.pages:
            role = Role.LABELER if isinstance(page.roles, Public) else sorted(page.roles)[0]
            path = world.address(page, NAMES[role])
            person = stranger if isinstance(page.roles, Public) else world.people[role]
            answers.append(person.request(page.method, path))
        answers.append(person.request("DELETE", path))
    answers.append(world.site.stranger().get("/static/nothing"))
    answers.append(world.site.stranger().get("/healthz"))
    assert {answer.status_code for answer in answers} >= {200, 303, 403, 404, 405}
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["base-uri"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert policy["script-src"] == "'self'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers


def test_no_page_holds_inline_scripts_or_styles(world: World) -> None:
    for table, role in itertools.product(PAGE_TABLES, sorted(ROLES_OF_PEOPLE)):
        for page in table.pages:
            if page.method != "GET":
                continue
            path = world.address(page, NAMES[role])
            if not isinstance(page.roles, Public) and role not in page.roles:
                continue
            found = HtmlPage(world.people[role].get(path, follow_redirects=True).text)
            for tag, attributes in found.elements:
                assert not any(name.startswith("on") or name == "style" for name in attributes), (path, tag)
                if tag == "script":
                    is_data = attributes.get("type") == "application/json"
                    assert is_data or attributes.get("src", "").startswith("/static/"), path
                for name in ("src", "href", "action", "formaction"):
                    value = attributes.get(name, "")
                    is_icon = (tag, value) == ("link", "data:,")
                    assert is_icon or not urlsplit(value).scheme, (path, tag, value)


def test_no_secret_stands_in_the_log(world: World) -> None:
    log = world.log_path.read_text(encoding="utf-8")
    assert "page_unexpected_error" not in log
    for secret in (PASSWORD, OTHER_PASSWORD, *(person.cookies["andon"] for person in world.people.values())):
        assert secret not in log
