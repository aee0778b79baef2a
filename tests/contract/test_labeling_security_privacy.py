"""What a labeler must not learn: other people's work, and where texts come from.

Everything that is not for them is planted as a word or a number that stands nowhere else; then every page and
RPC that a labeler may open is searched for it.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Page, Public
from tests.html_pages import HtmlPage
from tests.labeling_world import BLIND, NAMES, OTHER_LABELER, PAIRS, PROJECTS, SCHOOL, World, serve_world

FIRST_TASK_ID = 777_000_000
FIRST_COMPARISON_ID = 888_000_000
NOWHERE = "0123456789abcdef" * 2
LARA = NAMES[Role.LABELER]
# What a labeler is shown of what others wrote.
FOR_LABELERS = ("document", "candidate", "title", "instructions", "explanation")
PURPOSES = ("calibration", "gold", "drift", "repeat", "supervised")
LABELERS_PAGES = [
    page
    for table in PAGE_TABLES
    for page in table.pages
    if not isinstance(page.roles, Public) and Role.LABELER in page.roles
]


def unique(field: str) -> str:
    return f"zq{field.replace(' ', '')}{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("privacy")
    with serve_world(server_loop, f"sqlite:///{folder}/labeling.sqlite3", folder) as world:
        counters = schema.counters
        with world.site.database.engine.begin() as connection:
            for name, first in (("task", FIRST_TASK_ID), ("comparison", FIRST_COMPARISON_ID)):
                connection.execute(sa.update(counters).where(counters.c.name == name).values(last=first))
        world.populate(unique)
        yield world


def texts_of(world: World, name: str) -> set[str]:
    """What one labeler has written."""
    comparisons, demonstrations, messages = schema.comparisons, schema.demonstrations, schema.messages
    found = {row.note for row in world.rows(sa.select(comparisons).where(comparisons.c.labeler_id == name))}
    for row in world.rows(sa.select(comparisons.c.ratings).where(comparisons.c.labeler_id == name)):
        found |= {rating["naive_reading"] for rating in row.ratings or () if rating.get("naive_reading")}
    for row in world.rows(sa.select(demonstrations).where(demonstrations.c.labeler_id == name)):
        found |= {row.text, row.note}
    found |= {row.text for row in world.rows(sa.select(messages).where(messages.c.author == name))}
    return {text for text in found if text}


def secrets_of(world: World) -> dict[str, set[str]]:
    """What must not reach a labeler, by what it is."""
    tasks, candidates = schema.tasks, schema.candidates
    return {
        "another labeler's words": texts_of(world, OTHER_LABELER),
        "another labeler's name": {OTHER_LABELER},
        "another labeler's leases": set(world.leases_of(OTHER_LABELER)),
        "imported answers": {
            row.note
            for row in world.rows(
                sa.select(schema.comparisons).where(schema.comparisons.c.origin == "import")
            )
        },
        "numbers of tasks": {str(row.id) for row in world.rows(sa.select(tasks.c.id))},
        "numbers of answers": {str(row.id) for row in world.rows(sa.select(schema.comparisons.c.id))},
        "ids of documents": {row.document_id for row in world.rows(sa.select(tasks.c.document_id))},
        "sources": {row.source for row in world.rows(sa.select(candidates.c.source)) if row.source},
        "models": {row.policy_family for row in world.rows(sa.select(candidates)) if row.policy_family},
        "versions of models": {"424242", "ab" * 32},
        "batches": {f"{project}.1" for project in PROJECTS} | {"imported.1"},
    }


def labelers_pages(world: World) -> Iterator[httpx.Response]:
    """Every page that a labeler can come to, by the tables of pages, their own items and links."""
    lara = world.people[Role.LABELER]
    waiting = [world.address(page, LARA) for page in LABELERS_PAGES if page.method == "GET"]
    for project in PROJECTS:
        waiting += [f"/work/{project}", f"/work/{project}/history", f"/work/{project}/instructions"]
        for lease in world.leases_of(LARA, project=project):
            waiting += [f"/work/{project}/item/{lease}", f"/work/{project}/feedback/{lease}"]
            waiting += [f"/inbox/{lease}"]
    seen = set(waiting)
    while waiting:
        answer = lara.get(waiting.pop(0), follow_redirects=True)
        yield answer
        for link in HtmlPage(answer.text).links:
            path = link.partition("#")[0]
            if path.startswith("/") and path not in seen and len(seen) < 300:
                seen.add(path)
                waiting.append(path)


def test_no_page_of_a_labeler_tells_what_is_not_for_them(world: World) -> None:
    secrets = secrets_of(world)
    own = texts_of(world, LARA)
    assert all(secrets.values())
    assert len(own) >= 8
    num_pages, shown = 0, set()
    for answer in labelers_pages(world):
        assert answer.status_code in (200, 404), answer.url
        num_pages += 1
        shown |= {text for text in own if text in answer.text}
        haystack = f"{answer.url}\n{answer.headers}\n{answer.text}"
        for words, found in secrets.items():
            leaked = [secret for secret in found if secret in haystack]
            assert leaked == [], (answer.url, words)
        if SCHOOL not in str(answer.url):
            told = [word for word in (*PURPOSES, "screening") if word in answer.text.lower()]
            assert told == [], answer.url
    assert num_pages >= 30
    assert shown  # the search finds what is there


def test_pages_hold_no_number_of_a_candidate(world: World) -> None:
    """Candidates are letters; their places in the task, and so their sources, cannot be told."""
    lara = world.people[Role.LABELER]
    for project in PROJECTS:
        for lease in world.leases_of(LARA, project=project):
            page = HtmlPage(lara.get(f"/work/{project}/item/{lease}", follow_redirects=True).text)
            for _tag, attributes in page.elements:
                for name, value in attributes.items():
                    assert not re.search(r"candidate[-_]?id|task[-_]?id|position", f"{name}={value}"), value


def test_screening_is_not_told_right_or_wrong(world: World) -> None:
    """Right answers of gold and screening items stay secret, also after they were answered."""
    tasks, leases = schema.tasks, schema.leases
    query = sa.select(leases.c.id, tasks.c.explanation, tasks.c.purpose).join(
        tasks, tasks.c.id == leases.c.task_id
    )
    lara = world.people[Role.LABELER]
    checked = set()
    for row in world.rows(query.where(leases.c.labeler_id == LARA, tasks.c.expected.is_not(None))):
        checked.add(row.purpose)
        answers = [
            lara.get(f"/work/{project}/{page}/{row.id}", follow_redirects=True)
            for project in (PAIRS, SCHOOL)
            for page in ("feedback", "item")
        ]
        is_told = any(row.explanation in answer.text for answer in answers)
        assert is_told == (row.purpose == "training"), row.purpose
    assert checked == {"training", "screening", "gold"}


def test_a_document_is_not_shown_before_its_naive_reading(world: World) -> None:
    request = world.tasks(unique, 1)
    request.batch, request.project = f"{BLIND}.1", BLIND
    world.must("SubmitTasks", request, by="rita")
    (document,) = [task.document for task in request.tasks]
    person = world.site.person("nina", Role.LABELER)
    for _ in range(2):  # there may be an older item first
        form = world.next_form(person, BLIND)
        assert form is not None
        if form.action.endswith("/instructions"):
            person.post(form.action, data=form.filled())
            form = world.next_form(person, BLIND)
        assert form is not None
        lease = form.filled()["item"]
        for path in (f"/work/{BLIND}", f"/work/{BLIND}/item/{lease}", f"/inbox/{lease}"):
            assert document not in person.get(path, follow_redirects=True).text
        answer = person.post(f"/work/{BLIND}/answer", data={**form.filled(), "preference": "1"})
        assert answer.status_code == 400
        assert document not in answer.text


# Other people's things


def plain(answer: httpx.Response) -> tuple[int, str]:
    """Status and page without what changes with every page or repeats the question."""
    text = re.sub(r'(name="(csrf|nonce)" value=)"[^"]*"', r"\1", answer.text)
    return answer.status_code, re.sub(r"[0-9a-f]{32}", "", text)


def pages_with_items() -> list[Page]:
    return [
        page
        for page in LABELERS_PAGES
        if "{item}" in page.path or (page.method == "POST" and page.path.startswith("/work/{project}/"))
    ]


def test_another_labeler_s_items_are_not_there(world: World) -> None:
    lara = world.people[Role.LABELER]
    csrf = lara.csrf_of("/cord")
    assert len(pages_with_items()) >= 8
    before = world.fingerprint()
    for page in pages_with_items():
        if page.path.endswith(("/instructions", "/retry")):
            continue
        for project in PROJECTS:
            found: set[tuple[int, str]] = set()
            for lease in (*world.leases_of(OTHER_LABELER, project=project), NOWHERE, "x", "x" * 500):
                path = page.path.replace("{project}", project).replace("{item}", lease)
                if page.method == "GET":
                    found.add(plain(lara.get(path)))
                    continue
                fields = {"csrf": csrf, "item": lease[:64], "nonce": uuid.uuid4().hex, "preference": "1"}
                fields |= {"reason": "subject", "text": "mine now", "revision": "99", "rank_A": "1"}
                found.add(plain(lara.post(path, data=fields)))
            assert len(found) == 1, (page.path, found)
            assert {status for status, _text in found} == {404}, page.path
    assert world.fingerprint() == before


def test_an_item_of_one_project_is_not_there_in_another(world: World) -> None:
    lara = world.people[Role.LABELER]
    (lease, *_more) = world.leases_of(LARA, project=PAIRS, only_answered=True)
    assert lara.get(f"/work/{PAIRS}/item/{lease}").status_code == 200
    for project in (BLIND, SCHOOL, "default", "nothing"):
        assert lara.get(f"/work/{project}/item/{lease}").status_code == 404
        assert lara.submit(f"/work/{project}/item/{lease}", {"preference": "1"}).status_code == 404


def test_researchers_do_not_work_in_a_labeler_s_name_on_the_site(world: World) -> None:
    rita = world.people[Role.RESEARCHER]
    for lease in world.leases_of(LARA, project=PAIRS):
        assert rita.get(f"/work/{PAIRS}/item/{lease}").status_code == 404
        fields = {"item": lease, "preference": "1"}
        assert rita.submit(f"/work/{PAIRS}/answer", fields).status_code == 404


def test_another_labeler_s_leases_over_grpc(world: World) -> None:
    before = world.fingerprint()
    for lease in world.leases_of(OTHER_LABELER):
        answer = pb.Answer(lease_id=lease, choice=pb.Choice(best_index=0))
        for name, request in (
            ("SubmitAnswers", pb.SubmitAnswersRequest(request_id="theft", answers=[answer])),
            (
                "SkipTasks",
                pb.SkipTasksRequest(
                    request_id="theft", skips=[pb.SkippedTask(lease_id=lease, reason="mine now")]
                ),
            ),
        ):
            outcome = world.call(name, request, by="lara")
            assert (outcome.code, outcome.reason) == ("PERMISSION_DENIED", "LEASE_OF_ANOTHER_LABELER")
    assert world.fingerprint() == before


def test_a_leased_task_is_blind_over_grpc(world: World) -> None:
    world.must("SubmitTasks", world.tasks(unique, 3), by="rita")
    outcome = world.call("LeaseTasks", pb.LeaseTasksRequest(max_tasks=10), by="lara")
    (answer,) = outcome.answers
    assert len(answer.tasks) >= 3  # type: ignore[attr-defined]
    told = str(answer)
    for words, found in secrets_of(world).items():
        assert [secret for secret in found if secret in told] == [], words
