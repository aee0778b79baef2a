"""Requests that are too large, too slow, malformed or of the wrong type are refused, and the next is served.

HTTP goes over plain sockets where a client library would not send what is to be tried.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlencode

import grpc
import httpx
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.internal.encoder import TagBytes, _VarintBytes  # type: ignore[attr-defined]

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from services.labeling.accounts import Role
from services.labeling.web import app
from services.labeling.web.app import PAGE_TABLES
from tests.html_pages import HtmlPage
from tests.labeling_rpcs import METHODS, bearer, request_class
from tests.labeling_world import PAIRS, World, serve_world
from tests.tokens import TOKENS

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MAX_BODY_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = 256 * 1024
TIMEOUT_S = 20.0
BODY_TIMEOUT_S = 0.5
DEFECTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE"}


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("bodies")
    with serve_world(
        server_loop,
        f"sqlite:///{folder}/labeling.sqlite3",
        folder,
        web_max_body_bytes=MAX_BODY_BYTES,
        max_message_bytes=MAX_MESSAGE_BYTES,
    ) as world:
        world.must("CreateProject", pb.CreateProjectRequest(project=PAIRS), by="rita")
        yield world


@pytest.fixture(autouse=True)
def serves_on(world: World) -> Iterator[None]:
    """After each test both doors are open, and nothing has gone wrong inside."""
    yield
    assert world.site.stranger().get("/healthz").text == "ok\n"
    assert world.call("ListProjects", pb.ListProjectsRequest()).code == "OK"
    log = world.log_path.read_text(encoding="utf-8")
    assert "unexpected_error" not in log


class RawHttp:
    """A socket to the site."""

    def __init__(self, world: World) -> None:
        url = httpx.URL(world.site.url)
        self.host = f"{url.host}:{url.port}"
        self._socket = socket.create_connection((url.host, url.port or 80), timeout=TIMEOUT_S)

    def __enter__(self) -> RawHttp:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._socket.sendall(part)

    def status(self) -> int:
        """The status of the answer; 0 when the site hung up without one."""
        received = b""
        while b"\r\n" not in received:
            try:
                part = self._socket.recv(65536)
            except ConnectionError:
                return 0
            if not part:
                return 0
            received += part
        return int(received.split(b" ", 2)[1])

    def is_closed(self) -> bool:
        """Whether the site hangs up, after what it still sends."""
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


def posting(world: World, raw: RawHttp, *headers: str, path: str = "/cord/pull") -> bytes:
    """The head of a form of somebody with a session."""
    person = world.people[Role.ADMIN]
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {raw.host}",
        f"Cookie: andon={person.cookies['andon']}",
        f"X-CSRF-Token: {person.csrf_of('/cord')}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")


# HTTP


def test_large_bodies_are_refused_by_their_length_and_by_their_size(world: World) -> None:
    some, much = b"x" * (2 * MAX_BODY_BYTES), b"x" * (100 * MAX_BODY_BYTES)
    with RawHttp(world) as raw:
        raw.send(posting(world, raw, f"Content-Type: {FORM}", f"Content-Length: {len(some)}"), some)
        assert raw.status() == 413
    for header in (f"Content-Length: {10**12}", "Transfer-Encoding: chunked"):
        with RawHttp(world) as raw:  # it hangs up long before the end
            head = posting(world, raw, f"Content-Type: {FORM}", header)
            body = much if "Length" in header else b"%x\r\n%s\r\n" % (len(much), much)
            try:
                raw.send(head, body)
            except OSError:
                continue
            assert raw.status() in (413, 0)
            assert raw.is_closed()
    exactly = b"reason=" + b"x" * (MAX_BODY_BYTES - 7)
    with RawHttp(world) as raw:
        raw.send(posting(world, raw, f"Content-Type: {FORM}", f"Content-Length: {len(exactly)}"), exactly)
        assert raw.status() == 400  # small enough for the site, too long for a reason


def test_malformed_http_is_refused(world: World) -> None:
    with RawHttp(world) as raw:
        host, good = raw.host, f"GET /sign-in HTTP/1.1\r\nHost: {raw.host}\r\n"
    requests = {
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32 + b"\r\n\r\n",
        "nonsense": b"HELO\r\n\r\n",
        "another version": b"GET / HTTP/9.9\r\n\r\n",
        "no host": b"GET /sign-in HTTP/1.1\r\n\r\n",
        "two hosts": f"GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n".encode(),
        "two lengths": f"{good}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx".encode(),
        "a negative length": f"{good}Content-Length: -1\r\n\r\n".encode(),
        "no length": f"{good}Content-Length: many\r\n\r\n".encode(),
        "another encoding": f"{good}Transfer-Encoding: gzip\r\n\r\n".encode(),
        "a bad chunk": f"{good}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n".encode(),
        "a space in a name": f"{good}X Y: 1\r\n\r\n".encode(),
        "a folded header": f"{good}X: 1\r\n\tCookie: andon=x\r\n\r\n".encode(),
        "a nul": f"{good}X: a\x00b\r\n\r\n".encode(),
        "a huge header": f"{good}X: {'x' * 200_000}\r\n\r\n".encode(),
        "many headers": (good + "".join(f"X-{n}: {n}\r\n" for n in range(20_000)) + "\r\n").encode(),
        "a huge address": f"GET /{'x' * 200_000} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
        "no end": b"x" * 200_000,
    }
    wrong = {}
    for words, request in requests.items():
        with RawHttp(world) as raw:
            try:
                raw.send(request)
            except ConnectionError:
                continue  # it has seen enough
            status = raw.status()
        if not (status == 0 or 300 <= status < 500):
            wrong[words] = status
    # A folded header is one header, and what it holds is no cookie.
    assert wrong in ({}, {"a folded header": 200})


def test_strange_addresses_and_headers_are_answered(world: World) -> None:
    targets = (
        "/%00", "/%ff%fe", "/%2e%2e/%2e%2e/etc/passwd", "/static/../app.py", "/static/%2e%2e/app.py",
        "/static/..%2fapp.py", "//cord", "/cord//", "/CORD", "/cord;x=1", "/cord?%ff=%ff", "/cord?a=%zz",
        "/cord?done=%00", f"/cord?{'a=1&' * 5000}", f"/work/{'x' * 4000}", "/work/%e2%80%ae", "/work/a%0ab",
        "/work/..", "/projects/%2f", f"/projects/{PAIRS}/items/{'9' * 500}", f"/projects/{PAIRS}/items/-1",
        f"/projects/{PAIRS}/items/1e3", f"/projects/{PAIRS}/items/\u0661".encode().decode("latin-1"),
        f"/projects/{PAIRS}/flags?before={'9' * 20}", f"/projects/{PAIRS}/flags?before=-1",
        f"/projects/{PAIRS}/batches/%00", "http://evil.example/cord", "*", "/people?after=%00",
    )  # fmt: skip
    headers = (
        "Cookie: andon", "Cookie: =", "Cookie: andon=\xff\xfe", f"Cookie: {'a=b; ' * 2000}", "Accept: \xff",
        "Accept: application/json", "X-CSRF-Token: \xff", "Origin: \xff", "Content-Type: \xff",
        "Accept-Encoding: \xff", "Range: bytes=0-1", "Expect: 100-continue", "Upgrade: websocket",
        "X-Andon-Swap: 1", "Sec-Fetch-Site: \xff", "If-None-Match: *", "Connection: upgrade, close",
    )  # fmt: skip
    cookie = f"Cookie: andon={world.people[Role.ADMIN].cookies['andon']}"
    wrong = []
    for method in ("GET", "POST", "HEAD", "OPTIONS", "CONNECT", "FOO"):
        for target in targets:
            with RawHttp(world) as raw:
                raw.send(
                    f"{method} {target} HTTP/1.1\r\nHost: {raw.host}\r\n{cookie}\r\n\r\n".encode("latin-1")
                )
                status = raw.status()
                if status >= 500 or (status == 0 and method != "CONNECT"):
                    wrong.append((method, target, status))
    for header in headers:
        with RawHttp(world) as raw:
            raw.send(f"GET /cord HTTP/1.1\r\nHost: {raw.host}\r\n{header}\r\n\r\n".encode("latin-1"))
            status = raw.status()
            if status >= 500 or status == 0:
                wrong.append(("GET", header, status))
    assert wrong == []


def test_malformed_forms_are_refused_on_every_page(world: World) -> None:
    person = world.people[Role.ADMIN]
    csrf = person.csrf_of("/cord")
    deep = "[" * 30_000
    bodies = (
        (b"csrf=%zz", FORM, {400}),
        (b"reason=%ff%fe", FORM, {400}),
        (b"\xff\xfe\xfd", FORM, {400}),
        (b"reason=a%00b", FORM, {400}),
        (b"reason=%ed%a0%80", FORM, {400}),  # half a character
        (b"a=1&" * 10_000, FORM, {400}),
        (b"&" * 60_000, FORM, {400}),
        (b"=" * 60_000, FORM, {200, 204, 303, 400, 404, 409, 403}),
        (urlencode({"tasks": deep, "rows": deep, "text": deep}).encode()[:60_000], FORM, None),
        (b"{}", "application/json", {415}),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--x", f"{MULTIPART};boundary=x", {415}),
        (b"--x\r\nbroken", MULTIPART, {415}),
        (b"reason=x", "text/plain", {415}),
        (b"reason=x", "", {415}),
        (b"reason=x", f"{FORM}, text/plain", {415}),
        (b"<a/>", "application/xml", {415}),
    )  # fmt: skip
    paths = {
        world.address(page, "root")
        for table in PAGE_TABLES
        for page in table.pages
        # Too many wrong links are another refusal.
        if page.method == "POST" and page.path not in ("/sign-out", "/invitation/{token}")
    }
    wrong = []
    for path in sorted(paths):
        # All of them where they differ in nothing, a few everywhere.
        for body, media_type, expected in bodies if path in ("/cord/pull", "/sign-in") else bodies[::4]:
            headers = {"Content-Type": media_type, "X-CSRF-Token": csrf}
            answer = person.post(path, content=body, headers=headers)
            allowed = expected or {200, 303, 400, 404, 405, 409}
            # Public pages know nobody's token, and the sign-in takes any form for a wrong password.
            if answer.status_code not in allowed | {401, 403, 429}:
                wrong.append((path, body[:20], media_type, answer.status_code))
    assert wrong == []


def test_fields_that_are_sent_twice_are_refused(world: World) -> None:
    person = world.people[Role.ADMIN]
    body = urlencode([("csrf", person.csrf_of("/cord")), ("reason", "a"), ("reason", "b")]).encode()
    answer = person.post("/cord/pull", content=body, headers={"Content-Type": FORM})
    assert answer.status_code == 400
    assert "Not pulled." in person.get("/cord").text


def test_deep_json_in_a_form_is_a_problem_of_its_line(world: World) -> None:
    rita = world.people[Role.RESEARCHER]
    base = f"/projects/{PAIRS}"
    path = f"{base}/new-batch"
    (form,) = [form for form in HtmlPage(rita.get(path).text).forms if "batch" in form.filled()]
    assert rita.post(path, data=form.filled({"batch": "deep"})).status_code == 303
    lines = (
        "[" * 30_000,
        '{"document":' * 5_000,
        json.dumps({"document": "d", "candidates": [["a"] * 5]}),
        '{"document": "d", "candidates": ["a", "b"], "overlap": ' + "9" * 5_000 + "}",
        '{"document": "d", "candidates": ["a", "b"], "overlap": 1e999}',
        '{"document": "d", "candidates": ["a", "b"], "overlap": NaN}',
        '{"document": "\\ud800", "candidates": ["a", "b"]}',
        '{"document": "a\\u0000", "candidates": ["a", "b"]}',
        '{"document": {"a": 1}, "candidates": "ab"}',
        '{"post": "p", "summaries": [{"text": 1}], "choice": true}',
        '{"chosen": [], "rejected": {}}',
        "null",
        '"x"',
    )
    for line in lines:
        for path, name in (
            (f"{base}/batches/deep/tasks", "tasks"),
            (f"{base}/onboarding/items", "tasks"),
            (f"{base}/import", "rows"),
        ):
            page = f"{base}/{'import' if name == 'rows' else 'onboarding'}"
            answer = rita.submit(path, {name: line, "batch": "deep", "purpose": "gold"}, page=page)
            assert answer.status_code == 400, (path, line[:60])


def test_slow_bodies_are_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_BODY_TIMEOUT_S", BODY_TIMEOUT_S)
    with ExitStack() as stack:
        slow = [stack.enter_context(RawHttp(world)) for _ in range(50)]
        start_s = time.monotonic()
        for raw in slow:
            raw.send(posting(world, raw, f"Content-Type: {FORM}", "Content-Length: 1000"), b"reason=")
        # Meanwhile others are served.
        assert world.people[Role.RESEARCHER].get("/cord").status_code == 200
        assert [raw.status() for raw in slow] == [408] * 50
        assert all(raw.is_closed() for raw in slow)
        assert time.monotonic() - start_s >= BODY_TIMEOUT_S


def test_a_browser_that_goes_away_leaves_nothing_behind(world: World) -> None:
    before = world.fingerprint()
    for _ in range(20):
        with RawHttp(world) as raw:
            raw.send(posting(world, raw, f"Content-Type: {FORM}", "Content-Length: 1000"), b"reason=x")
    assert world.fingerprint() == before


# gRPC


def one_of_each_kind() -> list[MethodDescriptor]:
    """A method that streams nothing, one that streams answers, one that streams requests."""
    kinds = {(method.client_streaming, method.server_streaming): method for method in METHODS.values()}
    assert len(kinds) == 3
    return list(kinds.values())


def test_messages_over_the_limit_are_refused(world: World) -> None:
    for method in one_of_each_kind():
        body = b"\xfa\x3f" + _VarintBytes(MAX_MESSAGE_BYTES) + b"x" * MAX_MESSAGE_BYTES  # an unknown field
        outcome = world.rpcs.call(method, body, metadata=bearer(TOKENS["admin"]))
        assert outcome.code == "RESOURCE_EXHAUSTED", method.name


def test_bytes_that_are_no_message_are_refused(world: World) -> None:
    for method in METHODS.values():
        for body in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x00", b"\x07" * 100):
            outcome = world.rpcs.call(method, body, metadata=bearer(TOKENS["admin"]))
            assert (outcome.code, outcome.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE"), method.name


def test_fields_of_the_wrong_type_and_strings_that_are_no_utf_8(world: World) -> None:
    num_tried = 0
    for method in METHODS.values():
        for field in method.input_type.fields:
            number = field.number
            bodies = [  # a number, eight bytes and a text in the field's place
                TagBytes(number, 0) + b"\x96\x01",
                TagBytes(number, 1) + b"\x00" * 8,
                TagBytes(number, 2) + b"\x03abc",
                TagBytes(number, 5) + b"\xff" * 4,
            ]
            if field.type == FieldDescriptor.TYPE_STRING:
                bodies.append(TagBytes(number, 2) + b"\x02\xff\xfe")
                bodies.append(TagBytes(number, 2) + b"\x03\xed\xa0\x80")
            for body in bodies:
                # A stream that follows would go on for ever.
                timeout_s = 0.5 if field.name == "follow" else TIMEOUT_S
                outcome = world.rpcs.call(method, body, metadata=bearer(TOKENS["admin"]), timeout_s=timeout_s)
                num_tried += 1
                assert outcome.code not in DEFECTS, (method.name, field.name, body, outcome)
                if body.endswith((b"\xff\xfe", b"\xed\xa0\x80")):
                    assert outcome.code == "INVALID_ARGUMENT", (method.name, field.name)
    assert num_tried > 150


def test_messages_nested_without_end_are_refused(world: World) -> None:
    for method in METHODS.values():
        group = b"\x0b" * 5_000 + b"\x0c" * 5_000  # a group in a group in a group ...
        outcome = world.rpcs.call(method, group, metadata=bearer(TOKENS["admin"]))
        assert outcome.code == "INVALID_ARGUMENT", method.name


def test_methods_and_services_that_do_not_exist(world: World) -> None:
    with grpc.insecure_channel(world.site.running.target) as channel:
        for path in (
            "/andon.api.labeling.v1.LabelingService/Nothing",
            "/andon.api.labeling.v1.Nothing/GetCord",
            "/andon.api.labeling.v1.LabelingService/",
            "/",
            "/x",
        ):
            for metadata in ((), bearer(TOKENS["admin"])):
                stub: Any = channel.unary_unary(path)
                with pytest.raises(grpc.RpcError) as caught:
                    stub(b"", timeout=TIMEOUT_S, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, path


def test_streams_that_are_cut_off_change_nothing_and_are_forgotten(world: World) -> None:
    (method,) = [method for method in METHODS.values() if method.name == "ImportComparisons"]
    before = world.fingerprint()
    good = pb.ImportComparisonsRequest(request_id="r", project=PAIRS, batch="deep")
    outcome = world.rpcs.call(method, good, b"\xff\xff\xff", metadata=bearer(TOKENS["admin"]))
    assert outcome.code == "INVALID_ARGUMENT"
    outcome = world.rpcs.call(method, metadata=bearer(TOKENS["admin"]))
    assert outcome.code == "INVALID_ARGUMENT"
    assert world.fingerprint() == before


def test_huge_metadata_is_refused(world: World) -> None:
    for method in one_of_each_kind():
        metadata = (*bearer(TOKENS["admin"]), ("x-request-id", "x" * 100_000))
        outcome = world.rpcs.call(method, request_class(method)(), metadata=metadata)
        assert outcome.code not in DEFECTS - {"UNAVAILABLE"}, (method.name, outcome)
