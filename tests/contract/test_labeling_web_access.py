"""The doors of the labeling site over real HTTP: sign-in, forms, roles, invitations, accounts, tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from argon2 import PasswordHasher

from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import PageTable, Public
from tests.site import Person, SiteUnderTest, form_token

StartSite = Callable[..., SiteUnderTest]
PASSWORD = "three unrelated words"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def add_with_password(site: SiteUnderTest, name: str, role: Role = Role.LABELER) -> None:
    site.add_account(name, role, password_hash=CHEAP.hash(PASSWORD))


def sign_in(person: Person, name: str, password: str = PASSWORD, **fields: str) -> httpx.Response:
    return person.submit("/sign-in", {"name": name, "password": password, **fields}, page="/sign-in")


def link_path(text: str) -> str:
    found = re.search(r"/invitation/[A-Za-z0-9_-]{43}", text)
    assert found is not None
    return found[0]


# Sign-in and sessions


def test_a_right_password_opens_the_site_and_a_wrong_one_does_not(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    person = site.stranger()
    refused = sign_in(person, "ann", "another password")
    assert (refused.status_code, "andon" in person.cookies) == (401, False)
    assert "The name or the password is wrong." in refused.text
    assert person.get("/cord").status_code == 303

    accepted = sign_in(person, "ann", next="/cord?done=pulled")
    assert (accepted.status_code, accepted.headers["location"]) == (303, "/cord?done=pulled")
    cookie = accepted.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert person.get("/cord").status_code == 200


def test_an_unknown_name_is_told_the_same_as_a_wrong_password(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    one, other = site.stranger(), site.stranger()
    wrong, unknown = sign_in(one, "ann", "another password"), sign_in(other, "bob", "another password")
    without_name = [
        re.sub(r'value="[^"]*"', "", answer.text.replace("ann", "").replace("bob", ""))
        for answer in (wrong, unknown)
    ]
    assert without_name[0] == without_name[1]
    assert wrong.status_code == unknown.status_code == 401


def test_a_hash_of_older_parameters_is_renewed_at_the_next_sign_in(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    assert sign_in(site.stranger(), "ann").status_code == 303
    kept = site.accounts.find_credentials("ann")
    assert kept is not None
    assert kept.password_hash is not None
    assert not PasswordHasher().check_needs_rehash(kept.password_hash)
    assert sign_in(site.stranger(), "ann").status_code == 303


def test_every_sign_in_makes_a_new_session_and_ends_the_one_before(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    person = site.stranger()
    person.cookies.set("andon", "A" * 43)  # what an attacker may have planted
    sign_in(person, "ann")
    first = [cookie.value for cookie in person.cookies.jar if cookie.name == "andon"]
    assert "A" * 43 not in [value for value in first if site.sessions.find(str(value)) is not None]
    live = next(str(value) for value in first if site.sessions.find(str(value)) is not None)

    again = site.stranger()
    again.cookies.set("andon", live)
    again.submit("/sign-out")
    assert site.sessions.find(live) is None


def test_signing_out_ends_the_session_on_the_server(start_site: StartSite) -> None:
    site = start_site()
    ann = site.person("ann", Role.LABELER)
    token = ann.cookies["andon"]
    answer = ann.submit("/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    thief = site.stranger()
    thief.cookies.set("andon", token)
    assert thief.get("/cord").status_code == 303


def test_sessions_end_by_age_and_by_idleness(start_site: StartSite) -> None:
    site = start_site(session_hours=1e-9, session_idle_hours=1e-9)  # 4 microseconds: no request is as fast
    add_with_password(site, "ann")
    person = site.stranger()
    assert sign_in(person, "ann").status_code == 303
    kept = site.stranger()
    kept.cookies.set("andon", site.sessions.begin("ann", ended_token=None))
    assert kept.get("/cord").status_code == 303


def test_a_new_role_and_a_closed_account_act_on_the_next_request(start_site: StartSite) -> None:
    site = start_site()
    site.add_account("root", Role.ADMIN)
    ann = site.person("ann", Role.LABELER)
    assert ann.get("/people").status_code == 403
    site.accounts.update_user("ann", role=Role.RESEARCHER, is_closed=None, actor="root")
    assert ann.get("/people").status_code == 200
    site.accounts.update_user("ann", role=None, is_closed=True, actor="root")
    assert ann.get("/people").status_code == 303
    site.accounts.update_user("ann", role=None, is_closed=False, actor="root")
    assert ann.get("/people").status_code == 303  # the session is gone for good


def test_no_secret_stands_in_the_database(start_site: StartSite) -> None:
    site = start_site()
    ann = site.person("ann", Role.ADMIN)
    link = site.accounts.invite(role=Role.LABELER, user_name="", created_by="ann").secret
    token = site.tokens.make(name="bot", role=Role.SERVICE, created_by="ann").secret
    with site.database.engine.connect() as connection:
        for table in ("sessions", "invitations", "api_tokens"):
            rows = str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())
            assert rows != "[]"
            for secret in (ann.cookies["andon"], link, token):
                assert secret not in rows


# Guessing


def test_guessing_is_slowed_down_by_pair_and_by_address(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    add_with_password(site, "bob")
    person = site.stranger()
    statuses = [sign_in(person, "ann", "wrong password").status_code for _ in range(10)]
    assert statuses == [401] * 10
    limited = sign_in(person, "ann")  # even the right one now
    assert limited.status_code == 429
    assert 0 < int(limited.headers["retry-after"]) <= 15 * 60
    assert sign_in(person, "bob").status_code == 303  # another account is not held up by that


def test_many_guesses_at_once_do_not_pass_the_limit(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    people = [site.stranger() for _ in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda person: sign_in(person, "ann", "wrong password"), people))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [401] * 10 + [429] * 14


def test_wrong_invitations_are_slowed_down(start_site: StartSite) -> None:
    site = start_site()
    person = site.stranger()
    statuses = [person.get(f"/invitation/wrong-{number}").status_code for number in range(31)]
    assert statuses == [404] * 30 + [429]
    link = site.accounts.invite(role=Role.LABELER, user_name="", created_by="root").secret
    assert person.get(f"/invitation/{link}").status_code == 200


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


def test_signing_in_never_leads_elsewhere(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    ann = site.person("ann", Role.LABELER)
    for target in ("https://evil.example/", "//evil.example", "/\\evil", "javascript:alert(1)", "/a\nb", ""):
        assert ann.get("/sign-in", params={"next": target}).headers["location"] == "/", target
        assert sign_in(site.stranger(), "ann", next=target).headers["location"] == "/", target


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


# Invitations, accounts, tokens


def test_an_invitation_opens_one_account(start_site: StartSite) -> None:
    site = start_site()
    root = site.person("root", Role.ADMIN)
    made = root.submit("/people/invite", {"role": "labeler", "name": "", "days": "3"}, page="/people")
    path = link_path(made.text)
    assert link_path(made.text) not in root.get("/people").text  # it is shown once

    person = site.stranger()
    fields = {"name": "lara", "password": PASSWORD, "password_again": PASSWORD}
    opened = person.submit(path, fields, page=path)
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert person.get("/cord").status_code == 200
    user = site.accounts.find_user("lara")
    assert user is not None
    assert user.role is Role.LABELER
    assert site.stranger().get(path).status_code == 404
    assert sign_in(site.stranger(), "lara").status_code == 303
    assert "invitation.accept" in root.get("/people").text


def test_what_is_wrong_with_a_new_account_stands_beside_the_field(start_site: StartSite) -> None:
    site = start_site()
    site.add_account("root", Role.ADMIN)
    path = f"/invitation/{site.accounts.invite(role=Role.LABELER, user_name='', created_by='root').secret}"
    person = site.stranger()
    good = {"name": "lara", "password": PASSWORD, "password_again": PASSWORD}

    def twice(password: str) -> dict[str, str]:
        return {"password": password, "password_again": password}

    for fields, problem in (
        ({"name": "not a name"}, "1 to 200 letters"),
        ({"name": ""}, "1 to 200 letters"),
        (twice("short"), "At least 10 characters"),
        (twice("x" * 201), "At most 200 characters"),
        ({"name": "lara.larasdottir", **twice("Lara.Larasdottir")}, "Must not be your name"),
        (twice("abababababababab"), "Must not repeat"),
        ({"password_again": "another password"}, "Is not the same password"),
        ({"name": "root"}, "choose another"),
    ):
        answer = person.submit(path, {**good, **fields}, page=path)
        assert answer.status_code in (400, 409)
        errors = re.findall(r'class="field-error"[^>]*>([^<]*)<', answer.text)
        assert len(errors) == 1
        assert problem in errors[0]
        assert PASSWORD not in answer.text
    assert person.submit(path, good, page=path).status_code == 303  # the link is still good


def test_of_many_who_use_a_link_at_once_one_gets_in(start_site: StartSite) -> None:
    site = start_site()
    path = f"/invitation/{site.accounts.invite(role=Role.LABELER, user_name='', created_by='root').secret}"
    people = [site.stranger() for _ in range(8)]
    tokens = [form_token(person.get(path).text) for person in people]

    def accept(number: int) -> int:
        fields = {"name": f"lara{number}", "password": PASSWORD, "password_again": PASSWORD}
        return people[number].post(path, data={"csrf": tokens[number], **fields}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(accept, range(8)))
    assert statuses == [303] + [404] * 7
    assert len(site.accounts.list_users(limit=10)) == 1


def test_two_links_for_one_name_open_one_account(start_site: StartSite) -> None:
    site = start_site()
    named = site.accounts.invite(role=Role.ADMIN, user_name="lara", created_by="root").secret
    open_one = site.accounts.invite(role=Role.LABELER, user_name="", created_by="root").secret
    fields = {"name": "lara", "password": PASSWORD, "password_again": PASSWORD}
    first = site.stranger()
    assert first.submit(f"/invitation/{open_one}", fields, page=f"/invitation/{open_one}").status_code == 303
    # The other link must not become a way into the account that somebody else has opened meanwhile.
    assert site.stranger().get(f"/invitation/{named}").status_code == 404
    user = site.accounts.find_user("lara")
    assert user is not None
    assert user.role is Role.LABELER


def test_researchers_invite_labelers_only(start_site: StartSite) -> None:
    site = start_site()
    rita = site.person("rita", Role.RESEARCHER)
    made = rita.submit("/people/invite", {"role": "labeler"}, page="/people")
    assert made.status_code == 200
    link_path(made.text)
    for role in ("researcher", "admin"):
        assert rita.submit("/people/invite", {"role": role}, page="/people").status_code == 403
    assert rita.submit("/people/invite", {"role": "service"}, page="/people").status_code == 400
    site.accounts.invite(role=Role.ADMIN, user_name="", created_by="root")
    admins = next(entry for entry in site.accounts.open_invitations() if entry.role is Role.ADMIN)
    refused = rita.submit("/people/withdraw", {"invitation": admins.token_sha256}, page="/people")
    assert refused.status_code == 403
    assert 'name="role" aria-label' not in rita.get("/people").text


def test_a_withdrawn_invitation_is_no_longer_good(start_site: StartSite) -> None:
    site = start_site()
    root = site.person("root", Role.ADMIN)
    path = link_path(root.submit("/people/invite", {"role": "researcher"}, page="/people").text)
    (entry,) = site.accounts.open_invitations()
    assert (
        root.submit("/people/withdraw", {"invitation": entry.token_sha256}, page="/people").status_code == 303
    )
    assert site.stranger().get(path).status_code == 404
    assert (
        root.submit("/people/withdraw", {"invitation": entry.token_sha256}, page="/people").status_code == 303
    )


def test_the_last_admin_stays(start_site: StartSite) -> None:
    site = start_site()
    root = site.person("root", Role.ADMIN)
    for fields in ({"role": "labeler", "state": ""}, {"role": "", "state": "closed"}):
        answer = root.submit("/people/change", {"user": "root", **fields}, page="/people")
        assert answer.status_code == 409
        assert "This is the last admin" in answer.text
    site.add_account("ada", Role.ADMIN)
    fields = {"user": "root", "role": "labeler", "state": ""}
    assert root.submit("/people/change", fields, page="/people").status_code == 303
    assert root.get("/people").status_code == 403


def test_two_admins_who_close_each_other_at_once_leave_one(start_site: StartSite) -> None:
    site = start_site()
    for _ in range(3):
        people = [site.person(name, Role.ADMIN) for name in ("ada", "bob")]
        tokens = [person.csrf_of("/people") for person in people]

        def close(number: int, people: list[Person] = people, tokens: list[str] = tokens) -> None:
            fields = {"user": ("bob", "ada")[number], "role": "", "state": "closed", "csrf": tokens[number]}
            people[number].post("/people/change", data=fields)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(close, range(2)))
        left = [user.name for user in site.accounts.list_users(limit=10) if not user.is_closed]
        assert len(left) == 1
        other = "bob" if left == ["ada"] else "ada"
        site.accounts.update_user(other, role=None, is_closed=False, actor=left[0])


def test_a_password_link_changes_the_password_and_ends_sessions(start_site: StartSite) -> None:
    site = start_site()
    root = site.person("root", Role.ADMIN)
    add_with_password(site, "lara")
    lara = site.person("lara", Role.LABELER)
    path = link_path(root.submit("/people/password-link", {"user": "lara"}, page="/people").text)
    fields = {"password": "a new long password", "password_again": "a new long password"}
    person = site.stranger()
    assert "Choose a new password" in person.get(path).text
    assert person.submit(path, fields, page=path).status_code == 303
    assert lara.get("/cord").status_code == 303
    assert sign_in(site.stranger(), "lara").status_code == 401
    assert sign_in(site.stranger(), "lara", "a new long password").status_code == 303
    assert site.stranger().get(path).status_code == 404
    unknown = root.submit("/people/password-link", {"user": "nobody"}, page="/people")
    assert unknown.status_code == 404


def test_people_change_their_own_password(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "lara")
    lara, elsewhere = site.person("lara", Role.LABELER), site.person("lara", Role.LABELER)
    new = {"password": "a new long password", "password_again": "a new long password"}
    wrong = lara.submit("/account/password", {"old": "not it at all", **new}, page="/account")
    assert wrong.status_code == 400
    right = lara.submit("/account/password", {"old": PASSWORD, **new}, page="/account")
    assert right.headers["location"] == "/account?done=password"
    assert elsewhere.get("/account").status_code == 303
    assert sign_in(site.stranger(), "lara", "a new long password").status_code == 303


def test_tokens_are_shown_once_and_end_when_told(start_site: StartSite) -> None:
    site = start_site()
    root = site.person("root", Role.ADMIN)
    fields = {"name": "bot", "role": "service", "days": "30"}
    made = root.submit("/tokens/make", fields, page="/tokens")
    found = re.search(r'id="token" value="([A-Za-z0-9_-]{43})"', made.text)
    assert found is not None
    listed = root.get("/tokens").text
    assert "bot" in listed
    assert found[1] not in listed
    assert root.submit("/tokens/revoke", {"name": "bot"}, page="/tokens").status_code == 303
    assert root.submit("/tokens/revoke", {"name": "bot"}, page="/tokens").status_code == 404
    for wrong in ({"name": "a b"}, {"days": "0"}, {"days": "4000"}, {"role": "boss"}):
        assert root.submit("/tokens/make", {**fields, **wrong}, page="/tokens").status_code == 400


# The cord


def test_the_cord_on_the_site(start_site: StartSite) -> None:
    site = start_site()
    lara, rita = site.person("lara", Role.LABELER), site.person("rita", Role.RESEARCHER)
    assert "Nobody has touched it yet." in lara.get("/cord").text
    assert lara.submit("/cord/pull", {"reason": "  "}).status_code == 400
    done = lara.submit("/cord/pull", {"reason": "<script>alert(1)</script>"}, follow_redirects=True)
    assert "Training stops within one optimizer step. This is event 1." in done.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done.text
    assert "<script>alert" not in done.text
    assert "Release the cord" not in done.text
    assert lara.submit("/cord/release", {"reason": "fine"}).status_code == 403
    assert "The cord is pulled" in rita.get("/account").text
    released = rita.submit("/cord/release", {"reason": "mended"}, follow_redirects=True)
    assert "Training goes on. This is event 2." in released.text
    assert rita.submit("/cord/release", {"reason": "again"}).status_code == 409


def test_a_double_click_pulls_once(start_site: StartSite) -> None:
    site = start_site()
    lara = site.person("lara", Role.LABELER)
    fields = {"csrf": lara.csrf_of("/cord"), "reason": "it rambles", "nonce": "n1"}
    for _ in range(2):
        assert lara.post("/cord/pull", data=fields).status_code == 303
    assert lara.get("/cord").text.count("<strong>Pulled</strong>") == 1
