"""The figures of people's labeling as Prometheus sees them: made in the background, silent while unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from andon.client.labeling import BatchSettings, LabelingClient
from andon.client.labeling_values import AnswerDraft, TaskDraft
from andon.corpus.records import CandidateRecord
from tests.cord import metric, wait_until
from tests.site import SiteUnderTest, StartSite
from tests.tokens import TOKENS

AGREEMENT = "andon_labeling_agreement_ratio"
KNOWN = "andon_labeling_known_item_agreement_ratio"
WAITING = "andon_labeling_waiting_tasks"
ACTIVE = "andon_labeling_active_labelers"


def series(site: SiteUnderTest) -> dict[str, float]:
    """Every series of the figures, as a scrape finds them."""
    text = httpx.get(f"http://127.0.0.1:{site.running.metrics_port}/metrics", trust_env=False).text
    for name in (AGREEMENT, KNOWN, WAITING, ACTIVE):
        assert f"# TYPE {name} gauge" in text  # the family is there whether or not anything is known
    lines = [line for line in text.splitlines() if line.startswith((AGREEMENT, KNOWN, WAITING, ACTIVE))]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def submit(client: LabelingClient, number: int, *, word: str = "document", **fields: Any) -> None:
    tasks = [
        TaskDraft(
            document=f"{word} {each}",
            candidates=(CandidateRecord(text="a"), CandidateRecord(text="b")),
            **fields,
        )
        for each in range(number)
    ]
    client.submit_tasks(tasks, batch="b", batch_settings=BatchSettings(gold_share=0.5))


def answer_all(client: LabelingClient, labeler: str, best: Callable[[str, int], str]) -> None:
    """Answer everything there is; ``best`` says which text wins in the document of a word and a number."""
    while leased := client.lease_tasks(labeler, max_tasks=10):
        answers = []
        for task in leased:
            word, number = task.document.split()
            index = task.candidates.index(best(word, int(number)))
            answers.append(AnswerDraft(lease_id=task.lease_id, best_index=index))
        client.submit_answers(labeler, answers)


@pytest.fixture
def client(site: SiteUnderTest) -> Iterator[LabelingClient]:
    with LabelingClient(site.running.target, token=TOKENS["service"]) as client:
        yield client


@pytest.fixture
def site(start_site: StartSite) -> SiteUnderTest:
    return start_site(figures_interval_s=0.05, figures_recent_known=40)


def test_agreement_shows_once_there_is_enough_to_say(site: SiteUnderTest, client: LabelingClient) -> None:
    wait_until(lambda: series(site) == {WAITING: 0, ACTIVE: 0})
    submit(client, 40, overlap=2)
    wait_until(lambda: series(site) == {WAITING: 40, ACTIVE: 0})
    answer_all(client, "ann", lambda _word, _number: "a")
    wait_until(lambda: series(site) == {WAITING: 40, ACTIVE: 1})
    # Bob says otherwise of every fourth document: of 40 pairs 30 are the same.
    answer_all(client, "bob", lambda _word, number: "b" if number % 4 == 0 else "a")
    wait_until(lambda: series(site) == {WAITING: 0, ACTIVE: 2, AGREEMENT: 0.75})


def test_known_items_show_when_people_begin_to_err(site: SiteUnderTest, client: LabelingClient) -> None:
    submit(client, 90, overlap=1)
    submit(client, 80, word="gold", purpose="gold", expected=((0,), (1,)))
    num_gold = 0

    def best(word: str, _number: int) -> str:
        """Forty times right, then wrong every second time."""
        nonlocal num_gold
        num_gold += word == "gold"
        return "b" if word == "gold" and num_gold > 40 and num_gold % 2 == 0 else "a"

    answer_all(client, "ann", best)
    assert num_gold == 80
    expected = {f'{KNOWN}{{window="recent"}}': 0.5, f'{KNOWN}{{window="baseline"}}': 1.0}
    wait_until(lambda: series(site) == {WAITING: 0, ACTIVE: 1, **expected})


def test_what_cannot_be_read_is_unknown_and_not_what_it_was(
    site: SiteUnderTest, client: LabelingClient
) -> None:
    submit(client, 3)
    wait_until(lambda: series(site) == {WAITING: 3, ACTIVE: 0})

    def rename(before: str, after: str) -> None:
        with site.database.engine.connect().execution_options(andon_writes=True) as connection:
            connection.execute(sa.text(f"ALTER TABLE {before} RENAME TO {after}"))
            connection.commit()

    rename("demonstrations", "away")
    wait_until(lambda: series(site) == {})
    rename("away", "demonstrations")
    wait_until(lambda: series(site) == {WAITING: 3, ACTIVE: 0})


def test_a_scrape_computes_nothing(start_site: StartSite) -> None:
    site = start_site(figures_interval_s=3600, cord_poll_s=3600)
    with LabelingClient(site.running.target, token=TOKENS["service"]) as client:
        wait_until(lambda: series(site) == {WAITING: 0, ACTIVE: 0})
        submit(client, 3)
        read = metric(site, "andon_labeling_database_seconds_count", access="read")
        for _ in range(3):
            assert series(site) == {WAITING: 0, ACTIVE: 0}  # as it was when the service started
        assert metric(site, "andon_labeling_database_seconds_count", access="read") == read
