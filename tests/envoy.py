"""A real Envoy on loopback, as a fixture that a test module imports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from andon.client.health import Health, check_health
from andon.envoy import Address, EnvoyPorts, envoy_command, write_bootstrap, write_routes
from tests.ports import free_port

HOST = "127.0.0.1"
START_TIMEOUT_S = 60

StartEnvoy = Callable[..., "RunningEnvoy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEnvoy:
    """A proxy in front of two policy servers."""

    folder: Path  # of its configuration and routes
    port: int
    admin_port: int

    @property
    def target(self) -> str:
        """What a client connects to."""
        return f"{HOST}:{self.port}"


@pytest.fixture
def start_envoy(tmp_path: Path) -> Iterator[StartEnvoy]:
    """``start_envoy(stable_port, canary_port, canary_percent)``; ended after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(stable: int, canary: int, canary_percent: int) -> RunningEnvoy:
        folder = tmp_path / "envoy"
        folder.mkdir(exist_ok=True)
        running = RunningEnvoy(folder=folder, port=free_port(), admin_port=free_port())
        write_routes(folder, canary_percent)
        bootstrap = write_bootstrap(
            folder,
            EnvoyPorts(
                listener=Address(host=HOST, port=running.port),
                admin=Address(host=HOST, port=running.admin_port),
                stable=Address(host=HOST, port=stable),
                canary=Address(host=HOST, port=canary),
            ),
        )
        binary = Path(sys.executable).with_name("envoy")
        log = (folder / "log").open("wb")
        with log:
            process = subprocess.Popen(
                envoy_command(str(binary if binary.exists() else shutil.which("envoy")), bootstrap),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append(process)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while check_health(running.target, timeout_s=1.0) is not Health.SERVING:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline_s, (folder / "log").read_text()
            time.sleep(0.05)
        return running

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(START_TIMEOUT_S)
