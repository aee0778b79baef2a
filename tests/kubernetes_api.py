"""A fake Kubernetes API that speaks the real protocol: JSON over HTTP, watches as chunked streams.

It serves the kinds of :mod:`tests.kubernetes_objects` in one namespace, to callers with the right token and,
when rules of a Role are given, to them only what the rules allow. Faults are injected by request: other
writers, throttling, errors, slow and lost answers, lost and stalled watches. There is no admission and no
garbage collection; Deployments come to life with :mod:`tests.kubernetes_workloads`.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes_objects import KINDS, ApiError, Kind, Object, ObjectStore

TOKEN = "token-of-the-fake"
NAMESPACE = "andon"
BOOKMARK_S = 0.2

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)

FaultKind = Literal[
    "other_writer",  # somebody else changes the object just before
    "throttled",  # 429 with Retry-After
    "server_error",  # 500, nothing done
    "unavailable",  # 503, nothing done
    "slow",  # the answer is kept back for ``seconds``
    "reset_before",  # the connection breaks, nothing done
    "reset_after",  # done, but the connection breaks before the answer
    "expired",  # 410: the resourceVersion of a watch or list is too old
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that arrived."""

    number: int  # counted from 1
    verb: str  # get, list, watch, create, update, patch, delete
    plural: str
    name: str
    query: dict[str, str]
    body: Any
    caller: str  # its User-Agent

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete")

    def __str__(self) -> str:
        return f"{self.verb} {self.plural}/{self.name}".rstrip("/")


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong, for how many of the calls that match."""

    kind: FaultKind
    verb: str = ""  # "" for every one
    plural: str = ""
    name: str = ""
    caller: str = ""
    times: int = 1
    seconds: float = 0.0
    hits: list[Call] = field(default_factory=list)

    def takes(self, call: Call) -> bool:
        matches = all(
            wanted in ("", found)
            for wanted, found in (
                (self.verb, call.verb),
                (self.plural, call.plural),
                (self.name, call.name),
                (self.caller, call.caller),
            )
        )
        if not matches or len(self.hits) >= self.times:
            return False
        self.hits.append(call)
        return True


class FakeKubernetes:
    """Serves on a free loopback port inside ``with``."""

    def __init__(self, *, rules: Sequence[Object] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.objects = ObjectStore(NAMESPACE)
        self.rules = rules
        self.token = TOKEN
        self.calls: list[Call] = []
        self.answers: list[tuple[Call, int]] = []
        self.before: Callable[[Call], None] | None = None  # runs in the request's thread; may block
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._tls = tls
        self.stopping = threading.Event()
        self._cut_watches = 0
        self._stalled_until = 0
        self.open_watches = 0

    # --- running -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        scheme = "http" if self._tls is None else "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stopping.set()
        with self.objects.changed:
            self.objects.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.cut_all()
        self._server.server_close()

    def write_kubeconfig(self, path: Path, *, authority: Path | None = None) -> Path:
        """A kubeconfig for this server, with the right token."""
        cluster: Object = {"server": self.url}
        if authority is not None:
            cluster["certificate-authority"] = str(authority)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "canary", "user": {"token": self.token}}],
            "contexts": [
                {"name": "fake", "context": {"cluster": "fake", "user": "canary", "namespace": NAMESPACE}}
            ],
            "current-context": "fake",
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        return path

    # --- faults --------------------------------------------------------------------------------------------

    def inject(self, kind: FaultKind, **fields: Any) -> Fault:
        """From now on; the fault counts what it hit."""
        fault = Fault(kind=kind, **fields)
        with self._lock:
            self._faults.append(fault)
        return fault

    def lose_watches(self) -> None:
        """Break the connections of all watches that are open."""
        with self.objects.changed:
            self._cut_watches += 1
            self.objects.changed.notify_all()

    def stall_watches(self) -> None:
        """Let all open watches stay open and say nothing any more, as behind a dead load balancer."""
        with self.objects.changed:
            self._stalled_until = self._cut_watches + 1
            self.objects.changed.notify_all()

    def wait_for_watches(self, count: int, timeout_s: float = 30.0) -> None:
        """Until so many watches are open."""
        with self.objects.changed:
            if not self.objects.changed.wait_for(lambda: self.open_watches >= count, timeout_s):
                raise TimeoutError(f"{self.open_watches} watches are open, not {count}")

    # --- what a request does -------------------------------------------------------------------------------

    def arrived(
        self, verb: str, kind: Kind, name: str, query: dict[str, str], body: Any, caller: str
    ) -> Call:
        with self._lock:
            call = Call(
                number=len(self.calls) + 1,
                verb=verb,
                plural=kind.plural,
                name=name,
                query=query,
                body=body,
                caller=caller,
            )
            self.calls.append(call)
        return call

    def faults_of(self, call: Call) -> list[Fault]:
        with self._lock:
            return [fault for fault in self._faults if fault.takes(call)]

    def check_allowed(self, call: Call, kind: Kind) -> None:
        """Raise 403 unless a rule allows it; names cannot restrict what has none yet."""
        if self.rules is None:
            return
        for rule in self.rules:
            names = rule.get("resourceNames", [])
            named = not names or call.name in names
            if (
                kind.group in rule["apiGroups"]
                and kind.plural in rule["resources"]
                and call.verb in rule["verbs"]
                and named
            ):
                return
        raise ApiError(
            403,
            "Forbidden",
            f'{kind.plural} "{call.name}" is forbidden: the service account cannot {call.verb} resource '
            f'"{kind.plural}" in API group "{kind.group}" in the namespace "{NAMESPACE}"',
        )

    def perform(self, call: Call, kind: Kind, content_type: str) -> tuple[int, Object]:
        """The effect and the answer of anything but a watch."""
        objects = self.objects
        if call.verb == "get":
            return 200, objects.get(kind, call.name)
        if call.verb == "list":
            items, version = objects.list(kind, labels_of(call.query))
            return 200, {
                "kind": f"{kind.kind}List",
                "apiVersion": kind.api_version,
                "metadata": {"resourceVersion": str(version)},
                "items": items,
            }
        if call.verb == "create":
            return 201, objects.create(kind, call.body)
        if call.verb == "update":
            return 200, objects.replace(kind, call.name, call.body)
        if call.verb == "patch":
            strategic = content_type == "application/strategic-merge-patch+json"
            custom = "." in kind.group and not kind.group.endswith("k8s.io")
            custom = custom or kind.group == "gateway.networking.k8s.io"
            if (strategic and custom) or content_type not in (
                "application/strategic-merge-patch+json",
                "application/merge-patch+json",
            ):
                raise ApiError(415, "UnsupportedMediaType", f"{content_type} is not taken for {kind.plural}")
            return 200, objects.patch(kind, call.name, call.body, strategic=strategic)
        objects.delete(kind, call.name)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def watch_state(self) -> tuple[int, int]:
        return self._cut_watches, self._stalled_until


def labels_of(query: dict[str, str]) -> dict[str, str]:
    """A label selector of equalities."""
    pairs = [part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part]
    return {key.rstrip("="): value.lstrip("=") for key, value in pairs}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    api: FakeKubernetes
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: the test has the calls."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        try:
            self._answer(raw)
        except ApiError as error:
            self._send(error.code, error.status, error.headers)

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The base class looks for ``do_<METHOD>``; all are served alike."""
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _answer(self, raw: bytes) -> None:
        api = self.api
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token != api.token:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        match = _PATH.fullmatch(parts.path)
        if match is None:
            raise ApiError(403, "Forbidden", f"{self.command} {parts.path} is forbidden at the cluster scope")
        kind = _kind_of(match["group"] or "", match["version"], match["plural"])
        if match["namespace"] != NAMESPACE:
            raise ApiError(403, "Forbidden", f"the namespace {match['namespace']} is not yours")
        name = match["name"] or ""
        verb = self._verb(name, query)
        call = api.arrived(
            verb, kind, name, query, json.loads(raw) if raw else None, self.headers.get("User-Agent", "")
        )
        if api.before is not None:
            api.before(call)
        faults = {fault.kind: fault for fault in api.faults_of(call)}
        api.check_allowed(call, kind)
        if "reset_before" in faults:
            self._break()
            return
        if "throttled" in faults:
            wait_s = {"Retry-After": str(int(faults["throttled"].seconds))}
            raise ApiError(429, "TooManyRequests", "please try again later", headers=wait_s)
        if "server_error" in faults:
            raise ApiError(500, "InternalError", "etcdserver: leader changed")
        if "unavailable" in faults:
            raise ApiError(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if "expired" in faults:
            raise ApiError(410, "Expired", "The resourceVersion for the provided watch is too old.")
        if "other_writer" in faults and name:
            api.objects.touch(kind, name)
        if verb == "watch":
            self._watch(call, kind)
            return
        content_type = self.headers.get("Content-Type", "").partition(";")[0]
        try:
            code, answer = api.perform(call, kind, content_type)
        except ApiError as error:
            api.answers.append((call, error.code))
            raise
        api.answers.append((call, code))
        if "reset_after" in faults:
            self._break()
            return
        if "slow" in faults:
            api.stopping.wait(faults["slow"].seconds)
        self._send(code, answer)

    def _verb(self, name: str, query: dict[str, str]) -> str:
        if self.command == "GET":
            if query.get("watch") in ("true", "1", "True"):
                return "watch"
            return "get" if name else "list"
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[self.command]
        if (verb == "create") == bool(name):
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method here")
        return verb

    def _send(self, code: int, answer: Object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _break(self) -> None:
        """End the connection with a reset, which is what a crashed server's host sends."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.close_connection = True
        self.connection.close()

    def _watch(self, call: Call, kind: Kind) -> None:
        objects = self.api.objects
        since = int(call.query.get("resourceVersion") or 0)
        labels = labels_of(call.query)
        ends = time.monotonic() + float(call.query.get("timeoutSeconds") or 3600)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with objects.changed:
            number = self.api.watch_state()[0]
            self.api.open_watches += 1
            objects.changed.notify_all()
        try:
            if since < objects.oldest_version:
                gone = ApiError(410, "Expired", f"too old resource version: {since}")
                self._chunk({"type": "ERROR", "object": gone.status})
            else:
                self._stream(kind, labels, since=since, ends=ends, number=number)
        finally:
            with objects.changed:
                self.api.open_watches -= 1
                objects.changed.notify_all()

    def _stream(self, kind: Kind, labels: dict[str, str], *, since: int, ends: float, number: int) -> None:
        objects = self.api.objects
        while True:
            with objects.changed:
                fresh = [change for change in objects.history if change.version > since]
                if not fresh:
                    objects.changed.wait(min(BOOKMARK_S, max(ends - time.monotonic(), 0)))
                    fresh = [change for change in objects.history if change.version > since]
                cut, stalled_until = self.api.watch_state()
                version = objects.version
            if self.api.stopping.is_set() or cut > number:
                self._break()
                return
            if number < stalled_until:
                with objects.changed:
                    objects.changed.wait_for(
                        lambda: self.api.stopping.is_set() or self.api.watch_state()[0] > number, 3600
                    )
                continue
            for change in fresh:
                if change.kind == kind and _selected(change.object, labels):
                    self._chunk({"type": change.type, "object": change.object})
            since = version
            if not fresh:
                note = {
                    "kind": kind.kind,
                    "apiVersion": kind.api_version,
                    "metadata": {"resourceVersion": str(version)},
                }
                self._chunk({"type": "BOOKMARK", "object": note})
            if time.monotonic() >= ends:
                self.wfile.write(b"0\r\n\r\n")
                return

    def _chunk(self, event: Object) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()


def _selected(one: Object, labels: dict[str, str]) -> bool:
    own = one["metadata"].get("labels", {})
    return all(own.get(key) == value for key, value in labels.items())


def _kind_of(group: str, version: str, plural: str) -> Kind:
    for kind in KINDS:
        if (kind.group, kind.version, kind.plural) == (group, version, plural):
            return kind
    raise ApiError(404, "NotFound", "the server could not find the requested resource")
