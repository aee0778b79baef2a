"""Hostile text in every field that takes text: kept to the last character, shown as text, and nothing else.

The fields are found in the descriptors of the RPCs and in the forms of the pages, on both engines.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Public
from tests.html_pages import HtmlForm, HtmlPage
from tests.labeling_rpcs import METHODS
from tests.labeling_world import NAMES, PAIRS, SCHOOL, World, serve_world
from tests.site import Person

MARK = "zq7x"
# Each would leave an element, attribute, header, value or error behind where it is not taken as text.
PAYLOADS = (
    f"'\"><{MARK}-tag {MARK}=1>",
    f"<script>{MARK}()</script>",
    f"</textarea></title></style></script><img {MARK} src=x onerror={MARK}()>",
    f"\" {MARK}=1 onmouseover={MARK}() x='",
    f"<!--{MARK}",
    f"javascript:{MARK}()",
    f"'; DROP TABLE tasks; -- {MARK}",
    f"%' OR '1'='1 {MARK}",
    "{{ 7 * 7 }} {% raw %} ${7*7} #{7*7} <%= 7*7 %> {{ config }}",
    "&lt;b&gt; &amp;amp; &#60;",
    f"a\nSet-Cookie: {MARK}=1\n\n<html>",
    f"%0d%0aSet-Cookie:%20{MARK}=1 %00 %u0000 \\u0000 \\x00",
    "\u202e\u2066 abc \u2069\u202c \u200b\u200f \ufeff \ufffe \U0010ffff \u0001\x1b[31m",
    "e\u0301 é ﬁ ſ İ ß 𝔘 👩‍👩‍👧",
    "=1+1|cmd '/C calc'!A0",
)
HOSTILE = " ".join(PAYLOADS)
# Where no page shows a text in full, there is a reason.
NOT_SHOWN = {
    "document id": "carried through to the export",
    "imported document id": "carried through to the export",
}

# What a request's texts are. A new one has to be added here, and so is thought of.
NAMES_OF_THINGS = {
    "batch", "project", "labeler_id", "lease_id", "page_token", "user", "name", "weights_sha256"
}  # fmt: skip
FREE_TEXTS = {
    "request_id", "actor", "reason", "title", "instructions", "document", "document_id", "text", "source",
    "explanation", "note", "naive_reading",
}  # fmt: skip


def hostile(field: str) -> str:
    return f"{HOSTILE} [{field}]"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def world(
    request: pytest.FixtureRequest,
    server_loop: asyncio.AbstractEventLoop,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("texts")
    url = f"sqlite:///{folder}/labeling.sqlite3"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_server").new_database()
    with serve_world(server_loop, url, folder) as world:
        world.populate(hostile)
        yield world


# What is looked at


def check_headers(answer: httpx.Response) -> None:
    for name, value in answer.headers.items():
        assert MARK not in name.lower()
        # A redirect may name what was asked for, quoted.
        assert MARK not in value or (name == "location" and "\n" not in value), (name, value)
    assert MARK not in answer.headers.get("set-cookie", "")


def check_page(answer: httpx.Response) -> HtmlPage:
    """No element, attribute or header of the answer comes from a payload."""
    check_headers(answer)
    page = HtmlPage(answer.text)
    assert page.comments == [], answer.url
    for tag, attributes in page.elements:
        assert MARK not in tag, (answer.url, tag)
        for name, value in attributes.items():
            assert MARK not in name, (answer.url, tag, name)
            assert not name.startswith("on"), (answer.url, tag, name)
            if name in ("href", "src", "action", "formaction", "xlink:href"):
                assert not urlsplit(value).scheme or (tag, value) == ("link", "data:,"), (answer.url, value)
                assert not value.startswith(("//", "/\\")), (answer.url, value)
    assert not any(tag in ("iframe", "object", "embed", "base", "img") for tag, _attributes in page.elements)
    return page


def crawl(person: Person, starts: Iterable[str], *, max_links: int = 60) -> Iterator[HtmlPage]:
    """These pages, and those that their links lead to."""
    waiting, seen = list(starts), set(starts)
    max_pages = len(seen) + max_links
    while waiting:
        answer = person.get(waiting.pop(0), follow_redirects=True)
        assert answer.status_code in (200, 404, 409), (answer.url, answer.status_code)
        page = check_page(answer)
        yield page
        for link in page.links:
            path = link.partition("#")[0]
            if path.startswith("/") and path not in seen and len(seen) < max_pages:
                seen.add(path)
                waiting.append(path)


def starts_of(world: World, role: Role) -> list[str]:
    return [
        world.address(page, NAMES[role])
        for table in PAGE_TABLES
        for page in table.pages
        if page.method == "GET" and not isinstance(page.roles, Public) and role in page.roles
    ]


def strings_in(value: Any) -> Iterator[str]:  # Any: whatever a column holds
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def kept_texts(world: World) -> dict[str, set[str]]:
    """All marked strings in the database, by table and column."""
    found: dict[str, set[str]] = {}
    for table in schema.metadata.sorted_tables:
        for row in world.rows(sa.select(table)):
            for column, value in zip(table.c, row, strict=True):
                texts = {text for text in strings_in(value) if MARK in text}
                if texts:
                    found.setdefault(f"{table.name}.{column.name}", set()).update(texts)
    return found


def fields_of(message: Descriptor, seen: set[str]) -> Iterator[str]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield field.name
        elif field.message_type is not None:
            yield from fields_of(field.message_type, seen)


# Tests


def test_every_text_of_every_request_is_known_here() -> None:
    found = {name for method in METHODS.values() for name in fields_of(method.input_type, set())}
    assert found == NAMES_OF_THINGS | FREE_TEXTS


def test_texts_are_kept_to_the_last_character(world: World) -> None:
    kept = kept_texts(world)
    expected = {
        "projects.settings": {hostile("title")[:200]},
        "instructions.text": {hostile("instructions")},
        "tasks.document_id": {hostile("document id"), hostile("imported document id")},
        "tasks.explanation": {hostile("explanation")},
        "candidates.text": {hostile("candidate"), hostile("imported candidate")},
        "candidates.source": {hostile("source")[:64]},
        "candidates.policy_family": {hostile("model name")},
        "skips.reason": {f"Something else: {hostile('skip reason')}"},
        "messages.text": {hostile("message")},
        "cord_events.reason": {hostile("cord reason")},
    }
    for column, texts in expected.items():
        assert kept[column] == texts, column
    assert {text.rpartition(" ")[0] for text in kept["tasks.document"] if "imported" not in text} == {
        hostile("document")
    }
    assert hostile("imported document") in kept["tasks.document"]
    assert kept["comparisons.note"] == {
        hostile("imported note"),
        *(hostile(f"note of {project}") for project in ("pairs", "blind", "school")),
        hostile("corrected note"),
    }
    assert kept["demonstrations.text"] == {hostile("text of pairs")}
    assert kept["comparisons.ratings"] == {hostile(f"reading_{letter} of blind") for letter in "AB"}
    assert kept["drafts.content"] >= {hostile("draft note")}
    # Nothing else holds them: no name, no request that is remembered.
    assert set(kept) <= {
        *expected, "tasks.document", "comparisons.note", "demonstrations.text", "demonstrations.note",
        "comparisons.ratings", "drafts.content", "audit_events.detail",
    }  # fmt: skip


def opened_items(world: World) -> list[str]:
    """The pages of all items, with their answers opened."""
    rita = world.people[Role.RESEARCHER]
    query = (
        sa.select(schema.projects.c.name, schema.tasks.c.id)
        .join(schema.batches, schema.batches.c.id == schema.tasks.c.batch_id)
        .join(schema.projects, schema.projects.c.id == schema.batches.c.project_id)
    )
    paths = [f"/projects/{row.name}/items/{row.id}" for row in world.rows(query)]
    csrf = rita.csrf_of("/cord")
    for path in paths:
        assert rita.post(f"{path}/reveal", data={"csrf": csrf}).status_code == 303
    return paths


def test_every_page_shows_them_as_text(world: World) -> None:
    wanted = {text for texts in kept_texts(world).values() for text in texts}
    shown: set[str] = set()
    items = opened_items(world)
    for role, person in world.people.items():
        starts = starts_of(world, role)
        if role is Role.RESEARCHER:
            starts += items
        if role is Role.LABELER:
            starts += [f"/work/{SCHOOL}/feedback/{lease}" for lease in world.leases_of(NAMES[role])]
        num_pages = 0
        for page in crawl(person, starts):
            num_pages += 1
            strings = "\0".join(page.strings())
            shown |= {text for text in wanted - shown if text in strings}
        assert num_pages >= len(starts)
    missing = {text.rpartition("[")[2].partition("]")[0] for text in wanted - shown if text.endswith("]")}
    assert missing - NOT_SHOWN.keys() == set()


def test_texts_come_out_of_exports_unchanged(world: World) -> None:
    (export,) = [method for method in METHODS.values() if method.name == "ExportComparisons"]
    outcome = world.call(
        "ExportComparisons",
        pb.ExportComparisonsRequest(project=PAIRS, with_superseded=True),
        max_answers=1000,
    )
    assert outcome.code == "OK", export.name
    comparisons: list[Any] = [answer.comparison for answer in outcome.answers]  # type: ignore[attr-defined]
    assert {one.note for one in comparisons} >= {hostile("note of pairs"), hostile("corrected note")}
    assert all(one.document.startswith(HOSTILE) for one in comparisons)
    rita = world.people[Role.RESEARCHER]
    path = f"/projects/{PAIRS}/export"
    forms = [form for form in HtmlPage(rita.get(path).text).forms if form.action.startswith(f"{path}/")]
    assert forms
    for form in forms:
        changes = {"packing": "rows"} if "packing" in form.filled() else {}
        answer = rita.post(form.action, data=form.filled(changes))
        assert answer.status_code == 200, answer.text
        check_headers(answer)
        assert answer.headers["content-disposition"].startswith("attachment; ")
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        rows = [json.loads(line) for line in answer.text.splitlines() if line]
        assert rows
        assert all(any(HOSTILE in text for text in strings_in(row)) for row in rows)


def forms_of(world: World) -> Iterator[tuple[Person, str, HtmlForm]]:
    """All forms with something to type, each once for each role."""
    for role, person in world.people.items():
        seen = set()
        for path in starts_of(world, role):
            for form in HtmlPage(person.get(path, follow_redirects=True).text).forms:
                kind = (re.sub(r"[0-9a-f]{32}|\d+", "1", form.action), tuple(form.typed_names))
                if form.typed_names and kind not in seen:
                    seen.add(kind)
                    yield person, path, form


def test_every_field_of_every_form_takes_them_or_says_why_not(world: World) -> None:
    num_sent = 0
    for person, path, form in list(forms_of(world)):
        action = form.action or path
        for name in form.typed_names:
            if action == "/account/password":
                continue  # no page ever shows a password
            fields = form.filled({name: hostile(name)})
            send = person.post if form.method == "post" else person.get
            options: dict[str, Any] = {"data" if form.method == "post" else "params": fields}
            answer = send(action, **options)
            num_sent += 1
            assert answer.status_code in (200, 303, 400, 404, 409), (action, name, answer.status_code)
            if "html" in answer.headers.get("content-type", ""):
                check_page(answer)
            else:
                check_headers(answer)
    assert num_sent >= 30
    for role, person in world.people.items():
        assert list(crawl(person, starts_of(world, role), max_links=0))


def test_addresses_take_them_too(world: World) -> None:
    root, stranger = world.people[Role.ADMIN], world.site.stranger()
    names = ("next", "done", "page", "batch", "labeler", "name", "flag", "after", "before", "added", "zq7x")
    pages = [
        world.address(page, NAMES[Role.ADMIN])
        for table in PAGE_TABLES
        for page in table.pages
        if page.method == "GET" and not isinstance(page.roles, Public) and Role.ADMIN in page.roles
    ]
    for path in pages:
        short = dict.fromkeys(names, PAYLOADS[0])  # not refused for its length
        for query in (short, dict.fromkeys(names, HOSTILE)):
            answer = root.get(path, params=query)
            assert answer.status_code in (200, 303, 400, 404), path
            check_page(answer)
    for payload in PAYLOADS:
        quoted = quote(payload, safe="")
        for path in ("/work/", "/projects/", f"/work/{PAIRS}/item/", f"/projects/{PAIRS}/items/", "/"):
            answer = root.get(path + quoted)
            assert answer.status_code == 404, (path, payload)
            check_page(answer)
        check_page(stranger.get("/sign-in", params={"next": f"/{payload}"}))
    for payload in (PAYLOADS[0], PAYLOADS[3]):
        fields = {"csrf": stranger.csrf_of("/sign-in"), "name": payload, "password": payload}
        answer = stranger.post("/sign-in", data=fields)
        assert answer.status_code == 401
        check_page(answer)


def test_the_cord_s_reason_is_text_on_every_page(world: World) -> None:
    outcome = world.pull(HOSTILE)
    assert outcome.code == "OK"
    for person in world.people.values():
        assert HOSTILE in check_page(person.get("/cord")).text
        check_page(person.get("/account"))
