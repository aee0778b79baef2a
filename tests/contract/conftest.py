"""Servers on loopback for the contract tests; the fixtures are those of :mod:`tests.servers`."""

from tests.servers import (
    START_TIMEOUT_S,
    Serve,
    connect,
    labeling,
    serve,
    server_loop,
    start_labeling,
    start_site,
    tokens_file,
)

__all__ = [
    "START_TIMEOUT_S",
    "Serve",
    "connect",
    "labeling",
    "serve",
    "server_loop",
    "start_labeling",
    "start_site",
    "tokens_file",
]
