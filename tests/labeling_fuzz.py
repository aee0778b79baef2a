"""Makes up requests to the labeling service: forms and addresses of every page, messages of every RPC.

Everything is drawn from one source of randomness, which Hypothesis steers. Half of what is made up is nearly
right, with ids that exist and only a little changed, so that it comes past the first checks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from random import Random
from urllib.parse import quote, urlencode

import httpx
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from services.labeling.access import ROLES_BY_METHOD
from services.labeling.accounts import Role
from services.labeling.web.app import PAGE_TABLES
from services.labeling.web.pages import Page
from tests.html_pages import HtmlForm, HtmlPage
from tests.labeling_fuzz_material import JSON_LINES, NUMBERS, TEXTS, ExistingIds
from tests.labeling_fuzz_messages import MessageMaker
from tests.labeling_rpcs import METHODS, Outcome, bearer, path_of
from tests.labeling_world import NAMES, OTHER_LABELER, PROJECTS, World
from tests.site import Person
from tests.tokens import ROLES, TOKENS

PAGES = [page for table in PAGE_TABLES for page in table.pages]
FORM = "application/x-www-form-urlencoded"
REFRESH_EVERY = 40  # requests after which the ids that exist are looked up again
FOLLOW_TIMEOUT_S = 0.2

METHOD_NAMES = ("GET", "GET", "GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "FOO")


class Fuzzer:
    """Sends made-up requests and remembers how they ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_http = 0
        self.num_rpcs = 0
        self.statuses: Counter[tuple[str, int]] = Counter()  # by page
        self.codes: Counter[tuple[str, str]] = Counter()  # by method
        self._people: dict[str, Person] = {name: world.people[role] for role, name in NAMES.items()}
        self._people[OTHER_LABELER] = world.other
        self._roles = {name: role for role, name in NAMES.items()} | {OTHER_LABELER: Role.LABELER}
        self._csrf: dict[str, str] = {}
        self._field_names = {"csrf", "nonce", "item", "x"}
        self._ids = ExistingIds(world)
        self._messages = MessageMaker(world, self._ids)
        self._looked_up_at = -REFRESH_EVERY

    # HTTP

    def send_http(self, random: Random) -> None:
        """One request, or two where a form is fetched first."""
        self._refresh()
        name = random.choice([*self._people, *self._people, *self._people, "stranger"])
        person = self._people.get(name) or self.world.site.stranger(verify=False)
        if random.randrange(2) and name in self._people:
            self._send_form(random, name, person)
        else:
            self._send_any(random, name, person)

    def _send_form(self, random: Random, name: str, person: Person) -> None:
        role = self._roles[name]
        page = random.choice(
            [page for page in PAGES if page.method == "GET" and role in _audience(page)] or PAGES
        )
        path = self._path(random, page, name)
        answer = self._send(random, name, person, page, "GET", path)
        forms = [form for form in HtmlPage(answer.text).forms if form.controls]
        if not forms:
            return
        # Every page has those of the header.
        own = [form for form in forms if form.action not in ("/cord/pull", "/sign-out")]
        form = random.choice(own if own and random.randrange(10) else forms)
        self._field_names.update(control.name for control in form.controls)
        fields = self._filled(random, form)
        action = form.action or path
        target = self._page_of(action, form.method.upper())
        if form.method == "post":
            self._send(random, name, person, target, "POST", action, fields=fields)
        else:
            self._send(random, name, person, target, "GET", f"{action}?{urlencode(fields)}")

    def _filled(self, random: Random, form: HtmlForm) -> dict[str, str]:
        fields = form.filled()
        for control in form.controls:
            if control.kind in ("radio", "select") and random.randrange(2):
                options = control.options or [c.value for c in form.controls if c.name == control.name]
                fields[control.name] = random.choice(list(options))
            elif control.kind == "checkbox" and random.randrange(3) == 0:
                fields[control.name] = control.value
            elif control.is_typed and not control.value and random.randrange(3):
                fields[control.name] = self._value(random, control.name)
        for _ in range(random.choice((0, 0, 1, 2, 3))):
            changed = random.choice(list(fields))
            if changed != "csrf" or random.randrange(10) == 0:
                fields[changed] = self._value(random, changed)
        return fields

    def _send_any(self, random: Random, name: str, person: Person) -> None:
        role = self._roles.get(name)
        allowed = [page for page in PAGES if role in _audience(page)]
        page = random.choice(allowed if allowed and random.randrange(5) else PAGES)
        method = page.method if random.randrange(10) else random.choice(METHOD_NAMES)
        path = self._path(random, page, name)
        if random.randrange(4) == 0:
            query = {random.choice(sorted(self._field_names)): self._value(random, "x") for _ in range(2)}
            path += "?" + urlencode(
                {**query, random.choice(("page", "batch", "before")): self._value(random, "page")}
            )
        fields = {
            field: self._value(random, field)
            for field in random.sample(sorted(self._field_names), min(8, len(self._field_names)))
            if field != "csrf"
        }
        self._send(random, name, person, page, method, path, fields=fields if method != "GET" else None)

    def _send(
        self,
        random: Random,
        name: str,
        person: Person,
        page: Page | None,
        method: str,
        path: str,
        *,
        fields: dict[str, str] | None = None,
    ) -> httpx.Response:
        headers = {"Content-Type": FORM} if fields is not None else {}
        if fields is not None and "csrf" not in fields and random.randrange(10):
            fields["csrf"] = self._token(name, person)
        body = urlencode(fields or {}).encode() if fields is not None else None
        if body is not None and random.randrange(20) == 0:
            body = random.choice((body[: len(body) // 2], body + b"%", body + b"&=%ff", b"\xff" + body))
        for header, value in (
            ("Accept", "application/json"), ("X-Andon-Swap", "1"), ("Sec-Fetch-Site", "same-origin"),
        ):  # fmt: skip
            if random.randrange(8) == 0:
                headers[header] = value
        answer = person.request(method, path, content=body, headers=headers)
        self.num_http += 1
        self.statuses[page.path if page is not None else "other", answer.status_code] += 1
        assert answer.status_code < 500, (name, method, path, fields, body, answer.text[-2000:])
        self._restore(name, person, answer)
        return answer

    def _token(self, name: str, person: Person) -> str:
        if name not in self._people:
            return person.csrf_of("/sign-in")
        if name not in self._csrf:
            if person.get("/cord").status_code != 200:  # an RPC may have closed the account
                self._renew(name, person)
            self._csrf[name] = person.csrf_of("/cord")
        return self._csrf[name]

    def _restore(self, name: str, person: Person, answer: httpx.Response) -> None:
        """Bring somebody back whose session, role or account the last request has ended."""
        location = answer.headers.get("location", "")
        if name not in self._people or not (
            answer.status_code in (401, 403)
            or location.startswith("/sign-in")
            or "set-cookie" in answer.headers
        ):
            return
        self._renew(name, person)

    def _renew(self, name: str, person: Person) -> None:
        # The admin first: whoever is to be less than that may be the last one by now.
        for each in (NAMES[Role.ADMIN], name):
            self.world.site.accounts.update_user(
                each, role=self._roles[each], is_closed=False, actor="fuzzer"
            )
        person.cookies.clear()
        person.cookies.set("andon", self.world.site.sessions.begin(name, ended_token=None))
        self._csrf.pop(name, None)

    def _path(self, random: Random, page: Page, name: str) -> str:
        """An address of the page; its parts mostly belong together."""
        project = random.choice(PROJECTS if random.randrange(4) else self._ids.known["project"])

        def part(found: re.Match[str]) -> str:
            kind = found[1]
            if random.randrange(12) == 0:
                return quote(random.choice(TEXTS[2:]), safe="") or "x"
            if kind == "project":
                return project
            if kind == "item":
                kind = "task" if page.path.startswith("/projects/") else "lease"
            own = {"batch": [f"{project}.1"], "task": self._ids.tasks.get(project)}
            own["lease"] = self._ids.leases_in.get((name, project))
            choices = (own.get(kind) if random.randrange(5) else None) or self._ids.known.get(kind) or ["1"]
            return quote(random.choice(choices), safe="")

        return re.sub(r"\{(\w+)(?::\w+)?\}", part, page.path)

    def _value(self, random: Random, name: str) -> str:
        kinds = {"item": "lease", "user": "user", "labeler_id": "user", "labeler": "user", "name": "user"}
        known = self._ids.known.get(kinds.get(name, name))
        draw = random.randrange(10)
        if name in ("tasks", "rows") and draw < 8:
            lines = JSON_LINES[:4] if random.randrange(2) else JSON_LINES
            return "\n".join(random.choice(lines) for _ in range(random.randrange(1, 4)))
        if known and draw < 6:
            return random.choice(known)
        if draw < 7:
            return random.choice(NUMBERS)
        if draw < 8:
            return random.choice(random.choice(list(self._ids.known.values())) or ["x"])
        if draw < 9:
            return "".join(
                chr(random.choice((random.randrange(32, 127), random.randrange(160, 0xD800))))
                for _ in range(6)
            )
        return random.choice(TEXTS)

    def _page_of(self, action: str, method: str) -> Page | None:
        path = action.partition("?")[0]
        for page in PAGES:
            if page.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", page.path), path):
                return page
        return None

    # RPCs

    def send_rpc(self, random: Random) -> None:
        """One call."""
        self._refresh()
        method = random.choice(list(METHODS.values()))
        allowed = [name for name in TOKENS if ROLES[name] in ROLES_BY_METHOD[path_of(method)]]
        by = random.choice(allowed if random.randrange(6) else [*TOKENS, "nobody"])
        metadata = bearer(TOKENS[by]) if by != "nobody" else ()
        requests: list[Message | bytes] = [
            self._messages.message(random, method, by)
            for _ in range(random.choice((1, 1, 2, 0)) if method.client_streaming else 1)
        ]
        if random.randrange(25) == 0 and requests:
            first = requests[0]
            raw = first.SerializeToString() if isinstance(first, Message) else first
            requests[0] = random.choice((raw[: len(raw) // 2], raw + b"\xff", b"\x00" + raw, raw * 2))
        follows = any(getattr(request, "follow", False) for request in requests) or not isinstance(
            requests[0] if requests else b"", Message
        )
        outcome = self.world.rpcs.call(
            method,
            *requests,
            metadata=metadata,
            max_answers=random.choice((1, 3, 1000)) if method.name != "WatchCord" else 1,
            timeout_s=FOLLOW_TIMEOUT_S if follows and method.server_streaming else 30.0,
        )
        self.num_rpcs += 1
        self.codes[path_of(method), outcome.code] += 1
        self._check(method, by, requests, outcome, may_take_too_long=follows and method.server_streaming)

    def _check(
        self,
        method: MethodDescriptor,
        by: str,
        requests: list[Message | bytes],
        outcome: Outcome,
        *,
        may_take_too_long: bool,
    ) -> None:
        allowed = {
            "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED",
            "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED",
        }  # fmt: skip
        if may_take_too_long:
            allowed |= {"DEADLINE_EXCEEDED"}
        assert outcome.code in allowed, (method.full_name, by, requests, outcome)
        if outcome.code not in ("OK", "DEADLINE_EXCEEDED"):
            assert outcome.reason, (method.full_name, by, requests, outcome)

    def _refresh(self) -> None:
        if self.num_http + self.num_rpcs - self._looked_up_at >= REFRESH_EVERY:
            self._looked_up_at = self.num_http + self.num_rpcs
            self._ids.look_up()

    def summary(self) -> str:
        """How many requests ended how."""
        by_status: Counter[int] = Counter()
        for (_page, status), number in self.statuses.items():
            by_status[status] += number
        by_code: Counter[str] = Counter()
        for (_method, code), number in self.codes.items():
            by_code[code] += number
        return json.dumps(
            {
                "http": self.num_http,
                "rpcs": self.num_rpcs,
                "statuses": dict(sorted(by_status.items())),
                "codes": dict(sorted(by_code.items())),
                "pages": len({page for page, _status in self.statuses}),
            }
        )


def _audience(page: Page) -> frozenset[Role]:
    return page.roles if isinstance(page.roles, frozenset) else frozenset(Role)
