"""A server as a process: ready line, signals, exit codes. The service does nothing, so that no test waits for
torch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120

PROGRAM = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from andon.api.labeling.v1 import cord_service_pb2_grpc
from andon.errors import NotFoundError
from andon.rpc.config import Port, ServerConfig, load_config
from andon.rpc.server import run_service

class Config(ServerConfig):
    port: Port = 0
    metrics_port: Port = 0
    start: str = "at once"

class Idle(cord_service_pb2_grpc.CordServiceServicer):
    name = "idle"
    def register(self, server):
        cord_service_pb2_grpc.add_CordServiceServicer_to_server(self, server)
        return ["andon.api.labeling.v1.CordService"]
    async def start(self):
        if config.start == "fails":
            raise NotFoundError("there is no such model", reason="MODEL_NOT_FOUND")
        if config.start == "takes forever":
            print("starting", flush=True)
            await asyncio.Event().wait()
    async def drain(self): ...
    async def close(self):
        print("closed", flush=True)

config = load_config(Config, service="idle")
sys.exit(run_service(Idle(), config, CollectorRegistry()))
"""


@contextmanager
def process(*flags: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            yield server
        finally:
            server.kill()


def events(told: str) -> list[dict]:
    """Our log lines; the C++ part of gRPC writes some of its own."""
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_a_serving_process(number):
    with process("--drain-probe-period-s=0.01") as server:
        ready = json.loads(server.stdout.readline().removeprefix("ANDON_READY "))
        assert ready["service"] == "idle"
        with grpc.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
            statuses = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
            assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
            server.send_signal(number)
            assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        out, told = server.communicate(timeout=TIMEOUT_S)
    assert server.returncode == 0
    assert out == "closed\n"
    assert [event["event"] for event in events(told)] == ["configured", "serving", "draining", "stopped"]


def test_a_signal_during_the_start_ends_the_process_too():
    with process("--start=takes forever") as server:
        assert server.stdout.readline() == "starting\n"
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, out) == (0, "closed\n")


def test_a_service_that_cannot_start_ends_with_code_1_and_says_why():
    with process("--start=fails") as server:
        out, told = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, out) == (1, "closed\n")
    last = events(told)[-1]
    assert (last["event"], last["reason"]) == ("start_failed", "MODEL_NOT_FOUND")


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_taken_port_ends_with_code_1_and_says_which(flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(f"{flag}={port}") as server:
            out, told = server.communicate(timeout=TIMEOUT_S)
    assert server.returncode == 1
    assert "ANDON_READY" not in out
    assert str(port) in events(told)[-1]["error"]


def test_a_wrong_setting_ends_with_code_2_before_anything_starts():
    with process("--reflection=perhaps") as server:
        out, told = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, out) == (2, "")
    assert "reflection" in told


def test_passwords_stay_out_of_the_log():
    with process("--start=postgresql://andon:secret@db/andon") as server:
        server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=TIMEOUT_S)
    assert "secret" not in told
    assert events(told)[0]["config"]["start"] == "postgresql://andon:***@db/andon"
