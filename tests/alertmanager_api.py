"""Alertmanager's API as far as it is asked for alerts, with whatever alerts a test wants."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest


class AlertmanagerApi(BaseHTTPRequestHandler):
    """Answers GET /api/v2/alerts with the class's alerts."""

    alerts: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[dict[str, list[str]]] = {}

    def do_GET(self) -> None:
        type(self).asked = parse_qs(urlsplit(self.path).query)
        body = json.dumps(type(self).alerts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        return None


@pytest.fixture
def alertmanager() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AlertmanagerApi)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    AlertmanagerApi.alerts = []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
