"""Simulated labelers who answer through the labeling site's pages, as browsers without scripts do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from html.parser import HTMLParser

import httpx

from andon.cli.simulated_labelers import AnswerMode, LabelingTally, Opinions
from andon.client.access import AccessClient

PASSWORD = "four unrelated words"
PROJECT = "default"


class ItemPage(HTMLParser):
    """What stands on an item's page: the post, the texts by letter, the form's hidden fields."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self.document = ""
        self.texts: list[str] = []
        self._into: str | None = None
        self._is_in_form = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        if tag == "form":
            self._is_in_form = named.get("id") == "answer-form"
            if self._is_in_form:
                self.action = named["action"]
        elif tag == "input" and named.get("type") == "hidden" and self._is_in_form:
            self.fields[named["name"]] = named.get("value", "")
        elif tag == "div" and "data-post" in named:
            self._into = "document"
        elif tag == "div" and "data-text" in named:
            self._into = "text"
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._into = None
        elif tag == "form":
            self._is_in_form = False

    def handle_data(self, data: str) -> None:
        if self._into == "document":
            self.document += data
        elif self._into == "text":
            self.texts[-1] += data


def open_account(site: str, labeling_target: str, *, name: str, token: str) -> httpx.Client:
    """A signed-in browser of a new labeler, who came by an invitation."""
    with AccessClient(labeling_target, token=token) as access:
        invitation = access.invite("labeler", user=name)
    browser = httpx.Client(base_url=site, trust_env=False, follow_redirects=True, timeout=60)
    page = browser.get(invitation.url)
    parser = HTMLParser()
    fields: dict[str, str] = {}

    def note(tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "input" and named.get("type") == "hidden":
            fields[str(named["name"])] = str(named.get("value") or "")

    parser.handle_starttag = note  # type: ignore[method-assign]
    parser.feed(page.text)
    done = browser.post(invitation.url, data={**fields, "password": PASSWORD, "password_again": PASSWORD})
    done.raise_for_status()
    return browser


def label_through_pages(
    site: str,
    target: str,
    opinions: Opinions,
    *,
    token: str,
    labelers: int,
    on_answers: Callable[[int], None] | None = None,
    names: str = "page-labeler",
) -> LabelingTally:
    """Has so many people answer everything in the default project that is theirs to answer."""

    def work(number: int) -> int:
        answered = 0
        with closing(open_account(site, target, name=f"{names}-{number}", token=token)) as browser:
            page = browser.get(f"/work/{PROJECT}")
            while True:
                page.raise_for_status()
                item = ItemPage(page.text)
                if not item.action:
                    return answered
                page = browser.post(item.action, data={**item.fields, **_decision(item, opinions, number)})
                answered += 1
                if on_answers is not None:
                    on_answers(1)

    with ThreadPoolExecutor(labelers) as people:
        counts = list(people.map(work, range(1, labelers + 1)))
    return LabelingTally(
        answers_by_labeler={f"{names}-{number}": count for number, count in enumerate(counts, 1)}
    )


def _decision(item: ItemPage, opinions: Opinions, number: int) -> dict[str, str]:
    """The fields of the form that the labeler fills in."""
    answer = opinions.answer(number, item.document, item.texts)
    if len(item.texts) > 2:
        return {
            f"rank_{'ABCDEFGHI'[place]}": str(rank)
            for rank, tier in enumerate(answer.tiers, 1)
            for place in tier
        }
    if len(answer.tiers) == 1:
        return {"preference": "5"}
    strength = 1 + (answer.confidence - 1) // 3  # 1 .. 3
    return {"preference": str(5 - strength if answer.tiers[0] == (0,) else 5 + strength)}


AnswerWithPages = Callable[..., LabelingTally]


def in_place_of_grpc(site: Callable[[], str]) -> AnswerWithPages:
    """A stand-in for ``label_batch`` that goes through the pages."""

    def label_batch(
        target: str,
        batch: str,
        opinions: Opinions,
        *,
        token: str,
        labelers: int,
        mode: AnswerMode = "ranking",
        on_answers: Callable[[int], None] | None = None,
    ) -> LabelingTally:
        assert mode == "ranking"
        return label_through_pages(
            site(),
            target,
            opinions,
            token=token,
            labelers=labelers,
            on_answers=on_answers,
            names=f"of-{batch[-6:]}",
        )

    return label_batch
