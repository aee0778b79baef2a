"""What holds for every form and page of the labeling site over real HTTP: tokens, bodies, roles, headers."""

from __future__ import annotations

import re

import httpx
import pytest

from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import PageTable, Public
from tests.passwords import PASSWORD
from tests.site import StartSite, form_token

# Forms


def test_a_form_needs_its_token(start_site: StartSite) -> None:
    site = start_site()
    ann, bob = site.person("ann", Role.LABELER), site.person("bob", Role.LABELER)
    fields = {"reason": "it rambles"}
    for token in (None, "", "x", "A" * 86, bob.csrf_of("/cord")):
        data = fields if token is None else {**fields, "csrf": token}
        assert ann.post("/cord/pull", data=data).status_code == 403
    assert ann.post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 403
    stranger = site.stranger()
    assert stranger.post("/sign-in", data={"csrf": ann.csrf_of("/cord")}).status_code == 403
    token = ann.csrf_of("/cord")
    assert ann.post("/cord/pull", data=fields, headers={"X-CSRF-Token": token}).status_code == 303
    assert ann.post("/cord/pull", data={**fields, "csrf": token}).status_code == 303  # pages stay good


def test_a_form_from_another_site_is_refused(start_site: StartSite) -> None:
    site = start_site()
    ann = site.person("ann", Role.LABELER)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert ann.submit("/cord/pull", {"reason": "x"}, headers=headers).status_code == 403, headers
    own = {"Origin": site.url, "Sec-Fetch-Site": "same-origin"}
    assert ann.submit("/cord/pull", {"reason": "x"}, headers=own).status_code == 303


def test_the_token_in_a_page_is_never_twice_the_same(start_site: StartSite) -> None:
    ann = start_site().person("ann", Role.LABELER)
    assert len({ann.csrf_of("/cord") for _ in range(5)}) == 5


def test_malformed_bodies_are_the_sender_s_mistake(start_site: StartSite) -> None:
    ann = start_site().person("ann", Role.LABELER)
    form = "application/x-www-form-urlencoded"
    for body, media_type, status in (
        (b"csrf=%zz", form, 400),
        (b"csrf=%ff%fe", form, 400),
        (b"reason=a%00b", form, 400),
        (b"\xff\xfe", form, 400),
        (b"a=1&" * 2000, form, 400),
        (b"a" * (2 * 1024 * 1024 + 1), form, 413),
        (b"{}", "application/json", 415),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 415),
        (b"reason=x", "text/plain", 415),
        (b"reason=x", "", 415),
    ):
        answer = ann.post("/cord/pull", content=body, headers={"Content-Type": media_type})
        assert answer.status_code == status, (body[:20], media_type)
        assert "<h1>" in answer.text


def test_a_large_body_in_pieces_is_refused_before_it_is_all_there(start_site: StartSite) -> None:
    ann = start_site(web_max_body_bytes=1024).person("ann", Role.LABELER)
    sent = 0

    def pieces():  # type: ignore[no-untyped-def]
        nonlocal sent
        for _ in range(100_000):
            sent += 1
            yield b"a" * 1024

    try:
        status = ann.post("/cord/pull", content=pieces()).status_code
    except httpx.HTTPError:  # the server hung up while we were still sending
        status = 413
    assert status == 413
    assert sent < 100_000


# Every page


def test_pages_without_roles_cannot_be_registered() -> None:
    table = PageTable()
    with pytest.raises(ValueError, match="declares no roles"):
        table.get("/open", roles=frozenset())
    with pytest.raises(ValueError, match="roles that no person has"):
        table.post("/open", roles=frozenset({Role.SERVICE}))


def test_the_public_pages_are_these_and_no_others() -> None:
    public = {
        (page.method, page.path)
        for table in PAGE_TABLES
        for page in table.pages
        if isinstance(page.roles, Public)
    }
    assert public == {
        ("GET", "/sign-in"),
        ("POST", "/sign-in"),
        ("GET", "/invitation/{token}"),
        ("POST", "/invitation/{token}"),
        ("GET", "/sign-in/oidc"),
        ("GET", "/sign-in/oidc/callback"),
    }


def test_every_page_refuses_strangers_and_wrong_roles(start_site: StartSite) -> None:
    site = start_site()
    stranger = site.stranger()
    token = form_token(stranger.get("/sign-in").text)
    people = {role: site.person(role.value, role) for role in ROLES_OF_PEOPLE}
    tokens = {role: person.csrf_of("/cord") for role, person in people.items()}
    num_checked = 0
    for table in PAGE_TABLES:
        for page in table.pages:
            if isinstance(page.roles, Public):
                continue
            path = re.sub(r"\{[^}]*\}", "1", page.path)
            if page.method == "GET":
                answer = stranger.get(path)
                assert answer.status_code == 303, path
                assert answer.headers["location"].startswith("/sign-in?next="), path
            else:
                assert stranger.post(path, data={"csrf": token}).status_code == 401, path
            for role in ROLES_OF_PEOPLE - page.roles:
                if page.method == "GET":
                    refused = people[role].get(path)
                else:
                    refused = people[role].post(path, data={"csrf": tokens[role]})
                assert refused.status_code == 403, (path, role)
                num_checked += 1
    assert num_checked > 0


def test_every_answer_carries_the_headers_that_protect_it(start_site: StartSite) -> None:
    site = start_site()
    ann = site.person("ann", Role.LABELER)
    for answer in (ann.get("/cord"), ann.get("/nothing"), ann.get("/static/nothing"), ann.get("/people")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers  # over http it would lock people out


def test_static_files_are_kept_for_ever_and_compressed(start_site: StartSite) -> None:
    person = start_site().stranger()
    page = person.get("/sign-in").text
    paths = re.findall(r"/static/[a-z0-9.-]+", page)
    assert len(paths) == 2
    sizes = []
    for path in paths:
        answer = person.get(path)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        sizes.append(int(answer.headers.get("content-length", 0)))
    assert sum(sizes) < 50_000


def test_unknown_paths_and_methods_are_plain_pages(start_site: StartSite) -> None:
    site = start_site()
    person = site.stranger()
    root = site.person("root", Role.ADMIN)
    assert root.get("/projects/%00").status_code == 404
    assert root.get("/people?after=%00").status_code == 400
    assert root.get("/cord?%00=1").status_code == 400
    assert person.get("/nothing").status_code == 404
    assert person.get("/cord/").status_code == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = person.request(method, "/cord")
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert person.get("/healthz").text == "ok\n"
    assert person.head("/sign-in").status_code == 200


def test_scripts_get_errors_as_json(start_site: StartSite) -> None:
    person = start_site().stranger()
    answer = person.get("/cord", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()) == (
        401,
        {"error": "Your session has ended. Sign in again, then repeat."},
    )


def test_another_host_s_name_is_refused_where_the_site_knows_its_own(start_site: StartSite) -> None:
    site = start_site(web_public_url="http://labels.example.org")
    person = site.stranger()
    local = site.url  # the public one
    assert local == "http://labels.example.org"
    port = site.service.ready_facts["web_port"]
    assert person.get(f"http://127.0.0.1:{port}/sign-in").status_code == 421
    named = person.get(f"http://127.0.0.1:{port}/sign-in", headers={"Host": "labels.example.org"})
    assert named.status_code == 200
