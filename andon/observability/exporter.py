"""Decides where the metrics of a process can be scraped: an HTTP port of its own.

``andon.rpc.server`` starts one exporter per process, before the gRPC port opens, and stops it last, so that a
scrape also sees the drain. The registry is passed in; nothing here touches the global one.
"""

from __future__ import annotations

import platform
import socket
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge, GCCollector, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from andon import __version__

# How often the exporter looks whether it should end. The library's own server looks every half second,
# which a stop of the whole process would wait for.
STOP_CHECK_INTERVAL_S = 0.05


class _QuietRequestHandler(WSGIRequestHandler):
    """Writes no line for a scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Leave scrapes out of the log."""


class _IPv6Server(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class MetricsServer:
    """The running exporter. ``close`` frees its port."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self._thread = Thread(
            target=server.serve_forever, args=(STOP_CHECK_INTERVAL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use, also when port 0 was asked for."""
        return self._server.server_port

    def close(self) -> None:
        """Stop answering scrapes and wait for the thread to end."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Serve ``registry`` at ``http://host:port/metrics``; port 0 takes a free one.

    Raises OSError when the port is taken or the address is not this machine's.
    """
    server_class = _IPv6Server if ":" in host else ThreadingWSGIServer
    return MetricsServer(
        make_server(host, port, make_wsgi_app(registry), server_class, handler_class=_QuietRequestHandler)
    )


def register_process_metrics(registry: CollectorRegistry, *, service: str) -> None:
    """Add what every process tells: which build it runs, its memory, CPU time, open files and garbage
    collection.
    """
    build_info = Gauge(
        "andon_build_info",
        "Always 1; the labels say which build of which service runs in this process.",
        ["service_name", "version", "python_version"],
        registry=registry,
    )
    build_info.labels(service, __version__, platform.python_version()).set(1)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
