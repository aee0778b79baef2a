"""Invitations, accounts and tokens on the labeling site over real HTTP."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from services.labeling.accounts import Role
from tests.passwords import PASSWORD, add_with_password, sign_in
from tests.site import Person, StartSite, form_token


def link_path(text: str) -> str:
    found = re.search(r"/invitation/[A-Za-z0-9_-]{43}", text)
    assert found is not None
    return found[0]


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
