"""Makes the screenshots of the labeling site in ``docs/images``: ``python -m scripts.labeling_screenshots``.

It serves a site of its own on a new SQLite file, fills it with invented posts and people, and looks at the
pages with a real Chromium, at a desktop and on a phone.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from scripts.labeling_example_site import LABELER, PROJECT, RESEARCHER, ExampleSite
from services.labeling.accounts import Role
from tests.browser.chromium import DESKTOP, PHONE, Visitor, find_chromium, let_in, open_chromium
from tests.labeling_world import serve_world
from tests.site import SiteUnderTest

FOLDER = Path(__file__).parents[1] / "docs" / "images"
MAX_FILE_BYTES = 250_000
DEVICES = {"desktop": {**DESKTOP, "device_scale_factor": 2}, "phone": PHONE}
TOP = "scrollTo(0, 0)"


class Camera:
    """Takes the pictures."""

    def __init__(self, browser: Browser, site: SiteUnderTest) -> None:
        self._browser = browser
        self._site = site

    @contextmanager
    def person(self, name: str, role: Role, device: str) -> Iterator[Visitor]:
        """Somebody who is signed in."""
        context = self._browser.new_context(**DEVICES[device])
        let_in(context, self._site.person(name, role))
        yield Visitor(context, self._site)
        context.close()

    def take(self, page: Page, name: str, *, until: str = "", since: str = "") -> None:
        """Write docs/images/labeling-NAME.png: the window, or the page between two elements."""
        picture = page.screenshot(full_page=bool(until), animations="disabled")
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        if until:
            scale = page.evaluate("devicePixelRatio")
            top = _edge(page, since, "y") - 6 if since else 0.0
            bottom = min(_edge(page, until, "bottom") + 24, image.height / scale)
            image = image.crop((0, round(top * scale), image.width, round(bottom * scale)))
        path = FOLDER / f"labeling-{name}.png"
        for colors in (256, 128, 64, 32):
            image.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
            if path.stat().st_size <= MAX_FILE_BYTES:
                break
        else:
            raise ValueError(f"{path} is too large: {path.stat().st_size:,} bytes")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {image.width} x {image.height}")


def _edge(page: Page, selector: str, side: str) -> float:
    script = "(one, side) => one.getBoundingClientRect()[side] + scrollY"
    return float(page.locator(selector).last.evaluate(script, side))


def take_labelers_pages(camera: Camera, example: ExampleSite) -> None:
    """What a labeler sees."""
    for device in DEVICES:
        with camera.person(LABELER, Role.LABELER, device) as person:
            page = person.open("/work/pair")
            person.press("8")
            page.evaluate(TOP)
            camera.take(page, f"pair-{device}")
            if device == "phone":
                page.locator(".item-tabs a").last.evaluate("(one) => one.click()")
                page.wait_for_function("scrollY > 300")
                camera.take(page, "pair-answer-phone")
            page.evaluate(TOP)
            page.locator("details.cord > summary").click()
            page.locator("#cord-reason").fill("Since this morning the summaries repeat their first sentence.")
            camera.take(page, f"cord-{device}")
            take_ranking(camera, person, device)
            page = person.open("/work/write")
            page.get_by_label("Write the best").fill(
                "A pupil of 67 never practises but lives for his Tuesdays; a gifted girl wants his hour."
            )
            camera.take(page, f"writing-{device}")
            page = person.open("/work/axes")
            camera.take(page, f"ratings-{device}")
    with camera.person(LABELER, Role.LABELER, "desktop") as person:
        page = person.open("/work/school")
        person.press("2" if "fired" in person.on_screen()[0] else "8", "Enter")
        page.get_by_text("Not right.").wait_for()
        camera.take(page, "feedback-desktop")
    with camera.person(LABELER, Role.LABELER, "phone") as person:
        camera.take(person.open(f"/work/school/feedback/{example.training_lease()}"), "feedback-phone")


def take_ranking(camera: Camera, person: Visitor, device: str) -> None:
    """Half a ranking, with a tie."""
    page = person.open("/work/rank")
    undo = page.locator("[data-untake]")
    while undo.is_enabled():
        undo.click()
    for selector in ("[data-take=C]", "[data-take=A]", "[data-tie]", "[data-take=D]"):
        page.locator(f".order-box {selector}").click()
    page.evaluate(TOP)
    if device == "phone":
        page.locator(".item-tabs a").last.evaluate("(one) => one.click()")
        page.wait_for_function("scrollY > 300")
    camera.take(page, f"ranking-{device}")


def take_researchers_pages(camera: Camera, example: ExampleSite) -> None:
    """What a researcher sees."""
    base = f"/projects/{PROJECT}"
    with camera.person(RESEARCHER, Role.RESEARCHER, "desktop") as person:
        camera.take(person.open(base), "project-desktop", until=".research table")
        camera.take(
            person.open(f"{base}/batches/{PROJECT}.2"), "batch-desktop", until=".research details.card"
        )
        page = person.open(f"{base}/quality")
        camera.take(page, "quality-desktop", until=".figures-tiles")
        camera.take(page, "quality-people-desktop", since=".charts", until="table.people")
        camera.take(person.open(f"{base}/disagreements"), "disagreements-desktop")
        task_id = example.divided_item()
        page = person.open(f"{base}/items/{task_id}")
        reveal = page.get_by_role("button", name="Show the answers without judging")
        if reveal.is_visible():
            reveal.click()
        name = page.locator("article.person h3").first.inner_text().strip()
        example.talk(task_id, name)
        page.reload()
        camera.take(page, "disagreement-desktop", until="article.person")
    with camera.person(RESEARCHER, Role.RESEARCHER, "phone") as person:
        camera.take(person.open(f"{base}/quality"), "quality-phone")


def main() -> None:
    """Take all of them."""
    path = find_chromium()
    if path is None:
        raise SystemExit("Chromium is not installed")
    FOLDER.mkdir(parents=True, exist_ok=True)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name, open_chromium(path) as browser:
        folder = Path(name)
        database = f"sqlite:///{folder}/site.sqlite3"
        with serve_world(loop, database, folder, seed="screenshots") as world:
            example = ExampleSite(world.site, time.time_ns() // 1000)
            example.make_project()
            example.work(0.75)
            example.make_small_projects()
            camera = Camera(browser, world.site)
            take_labelers_pages(camera, example)
            take_researchers_pages(camera, example)
    loop.call_soon_threadsafe(loop.stop)


if __name__ == "__main__":
    main()
