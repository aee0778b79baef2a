"""A real S3 server for tests, and a proxy before it that fails as networks and servers do."""

from __future__ import annotations

import http.client
import itertools
import subprocess
import threading
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

PYTHON = Path(__file__).parents[1] / ".s3-server" / "bin" / "python"

# One request at a time: moto looks at a condition and writes in two steps, which S3 does in one.
_SERVE = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.port, flush=True)
# It ends with the tests, also when these are killed.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
"""
_BUCKETS = itertools.count(1)


def find_problem() -> str | None:
    """Why there can be no server; None where there can."""
    return None if PYTHON.is_file() else "there is no S3 server (make s3-server)"


class S3Server:
    """Serves on a free loopback port inside ``with``."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [str(PYTHON), "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def new_bucket(self) -> str:
        """An empty one."""
        name = f"models-{next(_BUCKETS)}"
        self.request("PUT", f"/{name}").close()
        return name

    def request(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """A request as the bucket's owner. The server looks at signatures only when it is told to."""
        headers = {"Authorization": "AWS owner:unsigned", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.endpoint}{path}", data=body, method=method, headers=headers)
        answer: http.client.HTTPResponse = urllib.request.urlopen(request)
        return answer

    def keys(self, bucket: str) -> list[str]:
        """What lies in the bucket."""
        with self.request("GET", f"/{bucket}?list-type=2") as answer:
            tree = ElementTree.fromstring(answer.read())
        return sorted(element.text or "" for element in tree.iter() if element.tag.endswith("}Key"))

    @contextmanager
    def only_known_credentials(self) -> Iterator[None]:
        """Requests need a signature of somebody whom the server knows, and it knows nobody."""
        self.request("POST", "/moto-api/reset-auth", b"0").close()
        try:
            yield
        finally:
            self.request("POST", "/moto-api/reset-auth", b"inf").close()

    def environment(self) -> dict[str, str]:
        """What a process needs to speak with this server."""
        return environment(self.endpoint)


def environment(endpoint: str) -> dict[str, str]:
    """Variables for a process that shall speak with the server there."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-log-may-show",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass(frozen=True, slots=True)
class Request:
    """What came to the proxy; ``index`` counts all requests from 0."""

    index: int
    method: str
    path: str
    conditional: bool


@dataclass(slots=True)
class Fault:
    """What the proxy does with a request.

    ``status``: answers by itself with this. ``drop``: closes the connection after the server's answer came.
    ``unconditional``: takes the conditions off. ``damage``: changes the first byte of the answer's body.
    """

    status: int | None = None
    code: str = "InternalError"
    drop: bool = False
    unconditional: bool = False
    damage: bool = False
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


Plan = Callable[[Request], Fault | None]


class FaultyProxy:
    """Passes requests on to a server, one at a time, except where ``plan`` has other plans."""

    def __init__(self, server: S3Server) -> None:
        self._target = server.port
        self.plan: Plan = lambda request: None
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # a client that was killed
                    self.close_connection = True

            def _serve(self) -> None:
                proxy._serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - http.server's names

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
        conditions = [name for name in headers if name.lower() in ("if-match", "if-none-match")]
        with self._lock:
            request = Request(len(self.requests), handler.command, handler.path, bool(conditions))
            self.requests.append(request)
            fault = self.plan(request) or Fault()
            if fault.before is not None:
                fault.before()
            if fault.status is not None:
                text = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>".encode()
                self._answer(handler, fault.status, {"Content-Type": "application/xml"}, text)
                return
            if fault.unconditional:
                headers = {name: value for name, value in headers.items() if name not in conditions}
            connection = http.client.HTTPConnection("127.0.0.1", self._target)
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if fault.after is not None:
                fault.after()
        if fault.drop:
            handler.close_connection = True
            return
        if fault.damage and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in ("transfer-encoding", "connection", "date", "server")
            and (name.lower() != "content-length" or handler.command == "HEAD")
        }
        self._answer(handler, answer.status, kept, content)

    def _answer(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(content)))
        elif "Content-Length" not in headers:
            handler.send_header("Content-Length", "0")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)
