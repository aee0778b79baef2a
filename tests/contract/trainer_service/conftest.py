"""The trainer's process with a stage that only counts."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from andon.rpc.server import RunningServer
from tests.counting_trainer import Trainer


@pytest.fixture
def trainer(
    tmp_path: Path, serve: Callable[..., RunningServer], server_loop: asyncio.AbstractEventLoop
) -> Iterator[Trainer]:
    with ExitStack() as clients:
        yield Trainer(tmp_path, serve, server_loop, clients)
