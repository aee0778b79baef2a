"""Decides where the metrics of a process can be scraped: an HTTP port of its own.

``andon.rpc.server`` starts one exporter per process, before the gRPC port opens, and stops it last, so that a
scrape also sees the drain. The registry is passed in; nothing here touches the global one.
"""

from __future__ import annotations

import platform
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Gauge, GCCollector, ProcessCollector, start_http_server

from andon import __version__


class MetricsServer:
    """The running exporter. ``close`` frees its port."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

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
    """Serve ``registry`` at ``http://host:port/metrics``; port 0 takes a free one. Raises OSError when it
    is taken.
    """
    server, thread = start_http_server(port, addr=host, registry=registry)
    return MetricsServer(server, thread)


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
