"""A demo on services that run already: where they are, when they serve, what cannot be asked of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from andon.cli.demo_services import RunningServices
from andon.cli.endpoints import SERVICES
from andon.cli.main import app
from andon.cli.recipes import packaged_recipe
from andon.errors import UnavailableError


class NoticesQuestions(health.HealthServicer):
    """Says NOT_SERVING until it was asked once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def Check(self, request, context):
        answer = super().Check(request, context)
        self.asked.set()
        return answer


@pytest.fixture
def starting() -> Iterator[tuple[NoticesQuestions, str]]:
    """One process that is all five services and does not serve yet."""
    servicer = NoticesQuestions()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def home_of(tmp_path: Path, target: str) -> Path:
    (tmp_path / "endpoints.json").write_text(json.dumps(dict.fromkeys(SERVICES, target)))
    return tmp_path


def test_it_begins_when_all_serve(starting: tuple[NoticesQuestions, str], tmp_path: Path) -> None:
    servicer, target = starting
    services = RunningServices(home_of(tmp_path, target), patience_s=60)
    begun = threading.Thread(target=services.start)
    begun.start()
    assert servicer.asked.wait(30)
    assert begun.is_alive()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    begun.join(60)
    assert not begun.is_alive()


def test_patience_ends(starting: tuple[NoticesQuestions, str], tmp_path: Path) -> None:
    services = RunningServices(home_of(tmp_path, starting[1]), patience_s=0)
    with pytest.raises(UnavailableError, match=r"the labeling service at .* is not serving"):
        services.start()


def test_variables_say_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_of(tmp_path, "127.0.0.1:1")
    monkeypatch.setenv("ANDON_POLICY_TARGET", "dns:///andon-sampler:50051")
    monkeypatch.setenv("ANDON_LABELING_TARGET", "dns:///andon-labeling:50054")
    services = RunningServices(home, patience_s=0)
    assert services.targets["policy"] == "dns:///andon-sampler:50051"
    assert services.targets["reward"] == "127.0.0.1:1"
    # A home's token never leaves this machine: in a cluster the environment names one.
    assert services.labeling_token is None


def test_flags_of_services_cannot_be_set_on_running_ones(tmp_path: Path) -> None:
    recipe = packaged_recipe("small").model_copy(update={"services": {"policy": {"threads": "2"}}})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    done = CliRunner().invoke(
        app, ["demo", "--running", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 2
    assert "flags of services (policy)" in done.output
    assert not (tmp_path / "out").exists()
