"""A real Chromium and a real site on SQLite. The other engine is tested where no browser is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser

from services.labeling.accounts import Role
from tests.browser.chromium import DESKTOP, Visitor, find_chromium, let_in, open_chromium
from tests.servers import serve, server_loop, start_site, tokens_file
from tests.site import SiteUnderTest

__all__ = ["serve", "server_loop", "start_site", "tokens_file"]

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

Visit = Callable[..., Visitor]


def is_missing(problem: str) -> NoReturn:
    """Where everything has to be there, a missing part is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/labeling.sqlite3"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        is_missing("Chromium is not installed (Debian: apt-get install chromium)")
    with open_chromium(path) as browser:
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe, which finds faults of accessibility."""
    if not AXE.is_file():
        is_missing(f"no axe; run `make {AXE.relative_to(AXE.parents[2])}`")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def site(start_site: Callable[..., SiteUnderTest]) -> SiteUnderTest:
    return start_site()


@pytest.fixture
def visit(browser: Browser, site: SiteUnderTest) -> Iterator[Visit]:
    """``visit("ann")`` gives somebody with a session, ``visit(None)`` a stranger; at a desktop unless told.

    A script's error or a refusal by the content security policy fails the test.
    """
    with ExitStack() as windows:
        visitors: list[Visitor] = []

        def open_window(name: str | None, role: Role = Role.LABELER, **options: Any) -> Visitor:
            context = browser.new_context(**{**DESKTOP, **options})
            windows.callback(context.close)
            if name is not None:
                let_in(context, site.person(name, role))
            visitors.append(Visitor(context, site))
            return visitors[-1]

        yield open_window
        faults = [fault for visitor in visitors for fault in visitor.faults]
        assert not faults, faults
