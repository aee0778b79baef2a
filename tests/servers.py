"""Servers on loopback, as fixtures that a folder's conftest imports.

All servers of a test process live on one event loop in one thread, as grpc.aio likes it; the tests
themselves are plain functions with blocking clients.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from andon.rpc.config import ServerConfig
from andon.rpc.server import RunningServer
from andon.rpc.service import Service
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from tests.site import SiteUnderTest, StartSite
from tests.tokens import TOKENS, with_token, write_tokens

START_TIMEOUT_S = 60

Serve = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def server_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of all servers, in its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="servers", daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def serve(server_loop: asyncio.AbstractEventLoop) -> Iterator[Serve]:
    """``serve(service, config)`` starts a server, ready to be called, and drains it after the test."""
    with ExitStack() as servers:

        def start(
            service: Service, config: ServerConfig, registry: CollectorRegistry | None = None
        ) -> RunningServer:
            running = RunningServer(service, config, registry or CollectorRegistry())
            asyncio.run_coroutine_threadsafe(running.__aenter__(), server_loop).result(START_TIMEOUT_S)

            def stop() -> None:
                asyncio.run_coroutine_threadsafe(running.stop(grace_s=5.0), server_loop).result(
                    START_TIMEOUT_S
                )

            servers.callback(stop)
            return running

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., grpc.Channel]]:
    """``connect(running, "lara")`` opens a channel that carries a name's token and closes it after the test.

    Without a name it is the admin's, with None there is none; services that ask nobody do not mind either.
    """
    with ExitStack() as channels:

        def open_it(running: RunningServer, name: str | None = "admin") -> grpc.Channel:
            channel = channels.enter_context(grpc.insecure_channel(running.target))
            return channel if name is None else with_token(channel, TOKENS[name])

        yield open_it


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """What ``connect`` knows, for ``LabelingConfig.tokens_file``."""
    return write_tokens(tmp_path)


@pytest.fixture
def start_labeling(serve: Serve, tmp_path: Path, tokens_file: Path) -> Callable[..., RunningServer]:
    """``start_labeling(export_poll_s=1, ...)`` serves the labeling service, on the test's SQLite database."""

    def start(**fields: Any) -> RunningServer:
        config = LabelingConfig(
            port=0,
            metrics_port=0,
            web_port=0,
            tokens_file=tokens_file,
            database=f"sqlite:///{tmp_path}/labeling.sqlite3",
            **fields,
        )
        registry = CollectorRegistry()
        return serve(LabelingService(config, registry), config, registry)

    return start


@pytest.fixture
def labeling(start_labeling: Callable[..., RunningServer]) -> RunningServer:
    """The labeling service as it is where nothing is configured."""
    return start_labeling()


@pytest.fixture
def start_site(serve: Serve, database_url: str, tokens_file: Path) -> Iterator[StartSite]:
    """``start_site(session_hours=1, ...)`` serves the labeling site, once on each engine per test."""
    with ExitStack() as sites:

        def start(**fields: Any) -> SiteUnderTest:
            config = LabelingConfig(
                port=0,
                metrics_port=0,
                web_port=0,
                database=database_url,
                tokens_file=tokens_file,
                **fields,
            )
            registry = CollectorRegistry()
            service = LabelingService(config, registry)
            return sites.enter_context(SiteUnderTest(service, serve(service, config, registry), database_url))

        yield start
