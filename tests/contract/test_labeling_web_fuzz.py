"""Strange requests to every page, as every role: whatever comes, the site answers and is not at fault."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import grpc
import httpx
import pytest

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Page, Public
from tests.site import Person, SiteUnderTest, form_token
from tests.tokens import TOKENS, with_token

StartSite = Callable[..., SiteUnderTest]

TEXTS = (
    "",
    "1",
    "0",
    "-1",
    "9" * 30,
    "1.5",
    "nan",
    "true",
    "on",
    "labeler",
    "admin",
    "root",
    "lara",
    "p",
    "b",
    "a b",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "' OR 1=1 --",
    "{{ 7 * 7 }}",
    "%s%n",
    "\x00",
    "\x7f\u202e",
    "\ufffe",
    "é" * 300,
    "x" * 20_000,
    "A",
    "A>B",
    "[1, 2]",
    '{"a": {"b": null}}',
    "2026-01-01",
    "https://evil.example/",
    "//evil.example",
    "\r\nSet-Cookie: x=1",
    "\ud7ff😀",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
FORM = "application/x-www-form-urlencoded"
MEDIA_TYPES = (FORM, "multipart/form-data; boundary=x", "application/json", "text/plain", "")


class Fuzzer:
    """Makes requests from the pages' own words and from strange ones."""

    def __init__(self, site: SiteUnderTest, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self.pages: list[Page] = [page for table in PAGE_TABLES for page in table.pages]
        self.people: dict[Role | None, Person] = {None: site.stranger()}
        for role in sorted(ROLES_OF_PEOPLE):
            self.people[role] = site.person(f"user-{role}", role)
        self.tokens = {
            role: form_token(person.get("/sign-in" if role is None else "/cord").text)
            for role, person in self.people.items()
        }
        self.fields = {"csrf", "nonce", "reason", "next"}
        self.values = list(TEXTS)
        for person in self.people.values():
            for page in self.pages:
                if page.method == "GET" and "{" not in page.path:
                    self.learn(person.get(page.path).text)

    def learn(self, text: str) -> None:
        """Take up the names and values of a page's forms, and the parts of its links."""
        self.fields.update(re.findall(r'name="([^"]{1,50})"', text))
        found = re.findall(r'value="([^"]{1,80})"', text) + re.findall(r'href="/[^"]*?/([^"/?]{1,80})"', text)
        self.values = [*TEXTS, *dict.fromkeys([*self.values[len(TEXTS) :], *found])][:400]

    def request(self) -> tuple[str, httpx.Response]:
        chance = self.random
        page = chance.choice(self.pages)
        roles = list(self.people) if isinstance(page.roles, Public) else sorted(page.roles)
        role = chance.choice(roles if chance.random() < 0.8 else list(self.people))
        person = self.people[role]
        method = page.method if chance.random() < 0.9 else chance.choice(METHODS)
        path = re.sub(
            r"\{[^}]*\}",
            lambda _match: (
                quote(chance.choice(("p", "b", "1", "2", "3", *self.values))[:300], safe="") or "1"
                if chance.random() < 0.5
                else chance.choice(("p", "b", "1", "2", "3"))
            ),
            page.path,
        )
        if chance.random() < 0.4:
            names = chance.sample(["after", "page", "next", "done", "batch", "state", "code"], 2)
            path += "?" + urlencode({name: chance.choice(self.values)[:2000] for name in names})
        headers = {"Content-Type": FORM if chance.random() < 0.9 else chance.choice(MEDIA_TYPES)}
        if chance.random() < 0.1:
            headers["Accept"] = "application/json"
        content = self.body(role) if method in ("POST", "PUT") else b""
        answer = person.request(method, path, content=content, headers=headers)
        if chance.random() < 0.05:
            self.learn(answer.text)
        return f"{role} {method} {path[:200]} {content[:300]!r}", answer

    def body(self, role: Role | None) -> bytes:
        chance = self.random
        if chance.random() < 0.05:
            return chance.randbytes(chance.randrange(200))
        names = chance.sample(sorted(self.fields), chance.randrange(min(12, len(self.fields))))
        fields = [
            (name, chance.choice(self.values)) for name in names for _ in range(chance.choice((1, 1, 1, 2)))
        ]
        fields = [(name, value) for name, value in fields if name != "csrf"]
        if chance.random() < 0.95:
            fields.append(("csrf", self.tokens[role]))
        return urlencode(fields, errors="replace").encode()


def add_work(site: SiteUnderTest) -> None:
    """A project with a batch of tasks of every size."""
    with grpc.insecure_channel(site.running.target) as channel:
        stub = labeling_grpc.LabelingServiceStub(with_token(channel, TOKENS["admin"]))
        stub.CreateProject(pb.CreateProjectRequest(project="p"), timeout=60)
        tasks = [
            pb.Task(
                document=f"document {number}",
                candidates=[pb.Candidate(text=f"text {letter}") for letter in "abcdefghi"[: 2 + number % 8]],
                overlap_count=3,
            )
            for number in range(40)
        ]
        stub.SubmitTasks(
            pb.SubmitTasksRequest(request_id="1", project="p", batch="b", tasks=tasks), timeout=60
        )


def fuzz(site: SiteUnderTest, *, num_requests: int, seed: int) -> Counter[int]:
    add_work(site)
    fuzzer = Fuzzer(site, seed)
    statuses: Counter[int] = Counter()
    for number in range(num_requests):
        sent, answer = fuzzer.request()
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (number, seed, sent, answer.text[:500])
        location = answer.headers.get("location", "/")
        assert location.startswith("/"), (number, seed, sent, location)
        assert not location.startswith("//"), (number, seed, sent, location)
        assert "<script>alert" not in answer.text, (number, seed, sent)
        assert "set-cookie" not in answer.headers or "x=1" not in answer.headers["set-cookie"], sent
        if number % 200 == 0:  # whoever was signed out or closed by a strange request comes back
            for role in sorted(ROLES_OF_PEOPLE):
                name = f"user-{role}"
                site.accounts.update_user(name, role=role, is_closed=False, actor="test")
                person = fuzzer.people[role] = site.person(name, role)
                fuzzer.tokens[role] = form_token(person.get("/cord").text)
    return statuses


def test_strange_requests(start_site: StartSite) -> None:
    statuses = fuzz(start_site(), num_requests=400, seed=1)
    assert statuses[200] > 20
    assert statuses[303] > 20
    assert statuses[403] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_strange_requests(start_site: StartSite, tmp_path: Path) -> None:
    statuses = fuzz(start_site(), num_requests=10_000, seed=2)
    assert statuses.total() == 10_000
