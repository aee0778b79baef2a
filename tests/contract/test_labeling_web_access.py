"""The labeling site's door over real HTTP: sign-in, sessions, guessing."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher

from services.labeling.accounts import Role
from tests.passwords import add_with_password, sign_in
from tests.site import StartSite

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


def test_signing_in_never_leads_elsewhere(start_site: StartSite) -> None:
    site = start_site()
    add_with_password(site, "ann")
    ann = site.person("ann", Role.LABELER)
    for target in ("https://evil.example/", "//evil.example", "/\\evil", "javascript:alert(1)", "/a\nb", ""):
        assert ann.get("/sign-in", params={"next": target}).headers["location"] == "/", target
        assert sign_in(site.stranger(), "ann", next=target).headers["location"] == "/", target
