"""``andon label invite``, ``users``, ``user``, ``token`` and ``andon cord`` against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from andon.cli.endpoints import write_endpoints
from andon.cli.tokens import make_tokens
from services.labeling.accounts import Role
from tests.site import SiteUnderTest
from tests.tokens import TOKENS

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One engine: the commands do not know which it is."""
    return f"sqlite:///{tmp_path}/labeling.sqlite3"


@pytest.fixture
def site(start_site: Callable[..., SiteUnderTest]) -> SiteUnderTest:
    return start_site()


@pytest.fixture
def run(site: SiteUnderTest, tmp_path: Path) -> Run:
    """``run("label", "users", token=...)`` runs a command in a home that knows the service."""
    home = tmp_path / "home"
    home.mkdir()
    write_endpoints(home, {"labeling": site.running.target})
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANDON_", "COLUMNS"))
    }

    def run_it(*arguments: str, token: str | None = TOKENS["admin"]) -> Ended:
        return subprocess.run(
            [sys.executable, "-m", "andon.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={
                **environment,
                "ANDON_HOME": str(home),
                "COLUMNS": "200",
                **({} if token is None else {"ANDON_TOKEN": token}),
            },
        )

    return run_it


def test_an_invitation_is_printed_by_itself(site: SiteUnderTest, run: Run) -> None:
    ended = run("label", "invite", "--role", "researcher", "--user", "rosa", "--days", "2")
    assert ended.returncode == 0, ended.stderr
    url = ended.stdout.strip()
    page = site.stranger().get(url)
    assert page.status_code == 200
    assert "rosa" in page.text
    assert "researcher" in page.text
    as_json = json.loads(run("label", "invite", "--json").stdout)
    assert as_json["url"].startswith(f"{site.url}/invitation/")


def test_users_are_listed_and_changed(site: SiteUnderTest, run: Run) -> None:
    site.add_account("root", Role.ADMIN)
    site.add_account("lara", Role.LABELER)
    listed = json.loads(run("label", "users", "--json").stdout)
    assert [(user["user"], user["role"]) for user in listed] == [("lara", "labeler"), ("root", "admin")]
    assert "lara" in run("label", "users").stdout
    assert json.loads(run("label", "user", "lara", "--close", "--json").stdout)["closed"] is True
    assert (
        run("label", "user", "lara", "--role", "researcher", "--open").stdout == "lara is researcher, open\n"
    )
    refused = run("label", "user", "root", "--close")
    assert refused.returncode == 1
    assert "LAST_ADMIN" in refused.stderr
    assert run("label", "user", "lara").returncode == 2


def test_a_token_works_until_it_is_revoked(run: Run) -> None:
    made = run("label", "token", "bea", "--role", "labeler")
    token = made.stdout.strip()
    assert len(token) == 43
    pulled = json.loads(run("cord", "pull", "it rambles", "--json", token=token).stdout)
    assert pulled["actor"] == "bea"
    assert "ROLE_NOT_ALLOWED" in run("label", "users", token=token).stderr
    assert run("label", "token", "bea", "--revoke").stdout.startswith("1 ended")
    assert "TOKEN_NOT_FOUND" in run("label", "token", "bea", "--revoke").stderr
    for wrong in ((), ("--revoke", "--role", "admin")):
        assert run("label", "token", "bea", *wrong).returncode == 2


def test_without_a_token_the_command_says_what_to_do(run: Run, tmp_path: Path) -> None:
    ended = run("label", "users", token=None)
    assert ended.returncode == 1
    assert "MISSING_TOKEN" in ended.stderr
    assert "ANDON_TOKEN" in ended.stderr
    make_tokens(tmp_path / "home")  # of another service's home: not known here
    assert "INVALID_TOKEN" in run("label", "users", token=None).stderr
