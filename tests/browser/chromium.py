"""A real Chromium for the site's tests, and people who sit before it.

A :class:`Visitor` is one person at one browser window: their session, the keys that they pressed, and what
went wrong in the page while they worked. Also used by ``scripts/labeling_screenshots.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.site import Person, SiteUnderTest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP: Mapping[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: Mapping[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
WAIT_MS = 15_000

expect.set_options(timeout=WAIT_MS)


def find_chromium() -> str | None:
    """Where this machine has it."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def open_chromium(path: str) -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Somebody before a browser."""

    def __init__(self, context: BrowserContext, site: SiteUnderTest) -> None:
        self.context = context
        self.site = site
        self.num_keys = 0
        self.faults: list[str] = []
        context.set_default_timeout(WAIT_MS)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(f"{error}\n{error.stack}"))
        self.page.on("console", self._hear)

    def open(self, path: str) -> Page:
        """Go to a page of the site."""
        self.page.goto(self.site.url + path)
        return self.page

    def press(self, *keys: str) -> None:
        """Press keys one after the other, on whatever has the focus."""
        for key in keys:
            self.num_keys += 1
            self.page.keyboard.press(key)

    def pause(self) -> None:
        """Wait until the key that was pressed last may be pressed again: sooner it counts as a slip."""
        since_ms = self.page.evaluate("performance.now()")
        self.page.wait_for_function("(since) => performance.now() > since + 350", arg=since_ms)

    def on_screen(self) -> list[str]:
        """The candidates' texts from A on."""
        return self.page.locator("[data-text]").all_inner_texts()

    def overflow(self) -> list[str]:
        """What is wider than the window, as a description of each; empty when nothing is."""
        found: list[str] = self.page.evaluate(OVERFLOW)
        return found

    def _hear(self, message: ConsoleMessage) -> None:
        # A status such as 400 or a lost network is part of the tests and no fault of the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)


def let_in(context: BrowserContext, person: Person) -> None:
    """Give a window the session that a person has."""
    context.add_cookies(
        [
            {"name": cookie.name, "value": cookie.value or "", "url": str(person.base_url)}
            for cookie in person.cookies.jar
        ]
    )


OVERFLOW = """() => {
  const room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= room && document.body.scrollWidth <= room) return [];
  const wide = [...document.querySelectorAll("body *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return one.checkVisibility() && box.width > 0 && box.right > room + 0.5 && !one.closest(".scroll");
  });
  return [`${document.documentElement.scrollWidth} > ${room}`,
    ...wide.slice(0, 5).map((one) => `<${one.tagName.toLowerCase()} class="${one.className}">`)];
}"""
