"""What a page weighs, and how long the next item takes. The weight is bounded; the time is only reported."""

from __future__ import annotations

import gzip
import json
import os
import statistics
from pathlib import Path

import pytest
from playwright.sync_api import Response, expect

from tests.browser.conftest import Visit
from tests.browser.projects import item, make_project
from tests.site import SiteUnderTest

pytestmark = pytest.mark.browser

MAX_PAGE_BYTES = 60_000
NUM_TIMED = 30
# Milliseconds from the key that submits to the moment when the next item is painted.
UNTIL_PAINTED = """() => new Promise((done) => {
  const before = document.querySelector("#answer-form [name=item]").value;
  let start = 0;
  addEventListener("keydown", (event) => { start = event.timeStamp; }, {once: true, capture: true});
  new MutationObserver((_changes, observer) => {
    const now = document.querySelector("#answer-form [name=item]");
    if (!now || now.value === before) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame((painted) => done(painted - start)));
  }).observe(document.body, {childList: true, subtree: true});
})"""


def report(name: str, figures: dict[str, float]) -> None:
    """Print figures, and add them to the file that ANDON_BROWSER_FIGURES names."""
    print(f"{name}: {json.dumps(figures)}")  # noqa: T201  (that is the report)
    path = os.environ.get("ANDON_BROWSER_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **figures}) + "\n")


def test_a_cold_page_is_light(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "ranks", [item(1, 4, more=" And so on." * 15)], rating_axes=True, reading_aids=True)
    person = visit("ann")
    loaded: list[Response] = []
    person.page.on("response", lambda response: loaded.append(response))
    person.open("/work/ranks")
    expect(person.page.locator("#answer-form")).to_be_visible()
    loaded = [one for one in loaded if one.url.startswith("http")]
    assert len(loaded) == 3, [one.url for one in loaded]  # the page, one style sheet, one script
    assert {one.url.split("/")[2] for one in loaded} == {site.url.split("/")[2]}
    compressed = {one.url.rsplit(".", 1)[-1]: len(gzip.compress(one.body(), 6)) for one in loaded}
    transferred = sum(one.request.sizes()["responseBodySize"] for one in loaded)
    report("page_bytes", {"gzipped": sum(compressed.values()), "transferred": transferred})
    assert sum(compressed.values()) <= MAX_PAGE_BYTES
    assert transferred <= MAX_PAGE_BYTES, "the site sends it uncompressed"


def test_how_long_the_next_item_takes(site: SiteUnderTest, visit: Visit) -> None:
    make_project(site, "pairs", [item(number, more=" And so on." * 15) for number in range(NUM_TIMED + 1)])
    person = visit("ann")
    page = person.open("/work/pairs")
    times_ms = []
    for number in range(NUM_TIMED):
        expect(page.locator("[data-progress]")).to_contain_text(f"{number} answered by you")
        person.press(str(number % 9 + 1))
        page.evaluate(f"() => {{ window.painted = ({UNTIL_PAINTED})(); }}")
        person.press("Enter")
        times_ms.append(float(page.evaluate("window.painted")))
    times_ms.sort()
    report(
        "item_to_item_ms",
        {
            "median": round(statistics.median(times_ms), 1),
            "p90": round(times_ms[int(0.9 * len(times_ms))], 1),
            "max": round(times_ms[-1], 1),
            "n": len(times_ms),
        },
    )
