"""A running labeling site as tests use it: people with sessions, forms with their CSRF token."""

from __future__ import annotations

import html
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import httpx

from andon.rpc.server import RunningServer
from services.labeling.account_store import AccountStore
from services.labeling.accounts import Role
from services.labeling.database import Database
from services.labeling.service import LabelingService, now_us
from services.labeling.session_store import SessionStore, SessionTimes
from services.labeling.token_store import TokenStore

TIMEOUT_S = 30.0
HOUR_US = 3_600_000_000


class Person(httpx.Client):
    """A browser without scripts. ``submit`` takes the CSRF token from the page where the form stands."""

    def csrf_of(self, page: str) -> str:
        return form_token(self.get(page).text)

    def submit(
        self, path: str, fields: Mapping[str, Any] | None = None, *, page: str = "/cord", **options: Any
    ) -> httpx.Response:
        """POST a form; ``page`` is fetched first for its token."""
        return self.post(path, data={"csrf": self.csrf_of(page), **(fields or {})}, **options)


def form_token(text: str) -> str:
    """The CSRF token in a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None, text
    return html.unescape(found[1])


class SiteUnderTest:
    """A served site and a second way into its database."""

    def __init__(self, service: LabelingService, running: RunningServer, database_url: str) -> None:
        self.service = service
        self.running = running
        self.url = service.site_url
        self.database = Database(database_url, new_seed=lambda: "unused")
        self.database.open()
        self.accounts = AccountStore(self.database, clock=now_us)
        self.tokens = TokenStore(self.database, clock=now_us)
        self.sessions = SessionStore(
            self.database, clock=now_us, times=SessionTimes(absolute_us=HOUR_US, idle_us=HOUR_US)
        )
        self._people = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._people.close()
        self.database.close()

    def add_account(self, name: str, role: Role, *, password_hash: str = "no password fits this") -> None:
        """Open an account, as an invitation would."""
        link = self.accounts.invite(role=role, user_name=name, created_by="test")
        self.accounts.accept_invitation(link.secret, name=name, password_hash=password_hash)

    def stranger(self, *, verify: ssl.SSLContext | bool = True) -> Person:
        """Somebody without a session."""
        return self._people.enter_context(
            Person(base_url=self.url, trust_env=False, timeout=TIMEOUT_S, verify=verify)
        )

    def person(self, name: str, role: Role) -> Person:
        """Somebody who is signed in; the account is made where there is none."""
        if self.accounts.find_user(name) is None:
            self.add_account(name, role)
        person = self.stranger()
        person.cookies.set("andon", self.sessions.begin(name, ended_token=None))
        return person


StartSite = Callable[..., SiteUnderTest]  # the fixture ``start_site``
