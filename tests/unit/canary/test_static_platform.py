"""The platform of processes: its record, its lock, and replicas that do as they are told, or do not."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from andon.api.common.v1 import model_pb2
from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.envoy import ROUTES_FILE, read_canary_percent
from andon.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from andon.rpc.config import ServerConfig
from services.canary.decisions import Decision, Kind
from services.canary.errors import StableUnknownError
from services.canary.gates.gate import GateRule
from services.canary.platform import RecordedDecision, Track
from services.canary.rollout import Rollout, RolloutSpec
from services.canary.static_platform import StaticPlatform, StaticReplicas
from tests.servers import Serve, serve, server_loop

__all__ = ["serve", "server_loop"]

GATE = GateRule(name="score", boundary=-0.25, lowest=-4.0, highest=4.0)
ROLLOUT = Rollout.begin(
    RolloutSpec(candidate="policy/2", gates=(GATE,)), rollout_id="r1", stable="policy/1", now_s=1000.0
)


class NamedModel(policy_service_pb2_grpc.PolicyServiceServicer):
    """A policy service without a model: it remembers which version it was told to load."""

    name = "named"

    def __init__(self, version: int | None) -> None:
        self.version = version
        self.refuses = False
        self.loads: list[str] = []

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)
        return ["andon.api.policy.v1.PolicyService"]

    async def start(self) -> None:
        return None

    async def drain(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def LoadModel(self, request, context):
        self.loads.append(request.model)
        if self.refuses:
            raise NotFoundError("no such file", reason="MODEL_NOT_FOUND")
        self.version = int(request.model.partition("/")[2])
        return policy_service_pb2.LoadModelResponse()

    async def GetModelInfo(self, request, context):
        if self.version is None:
            raise FailedPreconditionError("none", reason="MODEL_NOT_LOADED")
        model = model_pb2.ModelVersion(name="policy", version=self.version)
        return policy_service_pb2.GetModelInfoResponse(info=model_pb2.ModelInfo(model=model))


class Machine:
    """Two replicas of stable, one of the canary, and a store with three versions."""

    def __init__(self, folder: Path, serve: Serve) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "store")
        for digit in "abc":
            self.store.publish(
                "policy",
                lambda place, digit=digit: (place / WEIGHTS_NAME).write_text(
                    json.dumps({"weights_sha256": digit * 64})
                ),
                manifest=ManifestDraft(kind="causal_lm"),
            )
        self.models = [NamedModel(1), NamedModel(1), NamedModel(None)]
        config = ServerConfig(port=0, metrics_port=0)
        targets = [serve(model, config, CollectorRegistry()).target for model in self.models]
        self.replicas = StaticReplicas.of(
            stable_targets=targets[:2],
            canary_targets=targets[2:],
            stable_metrics_urls=[],
            canary_metrics_urls=["http://127.0.0.1:1/metrics"],
        )
        (folder / "envoy").mkdir()
        self.opened: list[StaticPlatform] = []

    def platform(self) -> StaticPlatform:
        opened = StaticPlatform(
            self.folder / "record",
            replicas=self.replicas,
            routes_folder=self.folder / "envoy",
            store=self.store,
            load_timeout_s=20.0,
        )
        self.opened.append(opened)
        return opened


@pytest.fixture
def machine(tmp_path: Path, serve: Serve) -> Iterator[Machine]:
    made = Machine(tmp_path, serve)
    made.platform().is_leader()
    yield made
    for platform in made.opened:
        platform.close()


@pytest.fixture
def platform(machine: Machine) -> StaticPlatform:
    return machine.opened[0]


def test_a_version_is_loaded_once_and_stays_wanted_after_a_crash(
    machine: Machine, platform: StaticPlatform
) -> None:
    assert platform.replicas(Track.CANARY) == []
    assert not platform.readiness(Track.CANARY).is_complete
    platform.deploy("policy/2")
    platform.deploy("policy/2")
    assert machine.models[2].loads == ["policy/2"]
    assert platform.readiness(Track.CANARY).is_complete
    platform.close()
    again = machine.platform()
    assert again.readiness(Track.CANARY).is_complete
    machine.models[2].version = 3
    readiness = again.readiness(Track.CANARY)
    assert not readiness.is_complete
    assert "serves policy/3, not policy/2" in readiness.problem
    again.remove()
    assert again.replicas(Track.CANARY) == []


def test_a_version_that_cannot_be_loaded_shows_in_the_readiness(
    machine: Machine, platform: StaticPlatform
) -> None:
    machine.models[2].refuses = True
    platform.deploy("policy/2")
    readiness = platform.readiness(Track.CANARY)
    assert (readiness.wanted, readiness.ready) == (1, 0)
    assert "no such file" in readiness.problem


def test_stable_moves_and_the_alias_follows_when_all_serve_it(
    machine: Machine, platform: StaticPlatform
) -> None:
    assert platform.stable_version() == "policy/1"
    machine.models[1].refuses = True
    platform.set_stable("policy/2")
    assert "policy@stable" not in machine.store.aliases()
    with pytest.raises(StableUnknownError, match="policy/1, policy/2"):
        platform.stable_version()
    machine.models[1].refuses = False
    platform.set_stable("policy/2")
    assert str(machine.store.aliases()["policy@stable"]) == "policy/2"
    assert platform.stable_version() == "policy/2"
    assert machine.models[0].loads == ["policy/2"]


def test_weights_of_a_spoiled_table_are_written_anew(machine: Machine, platform: StaticPlatform) -> None:
    routes = machine.folder / "envoy"
    assert platform.routed() == 0
    platform.route(25)
    assert read_canary_percent(routes) == platform.routed() == 25
    before = (routes / ROUTES_FILE).stat().st_ino
    platform.route(25)
    assert (routes / ROUTES_FILE).stat().st_ino == before  # Envoy has nothing to read again
    (routes / ROUTES_FILE).write_text("{}")
    assert platform.routed() == 0
    platform.route(0)
    assert read_canary_percent(routes) == 0


def test_the_record_is_kept_and_nobody_overwrites_what_he_has_not_read(
    machine: Machine, platform: StaticPlatform
) -> None:
    assert platform.load() is None
    assert platform.save(ROLLOUT, revision=0) == 1
    with pytest.raises(FailedPreconditionError) as caught:
        platform.save(ROLLOUT, revision=0)
    assert caught.value.reason == "ROLLOUT_CONFLICT"
    decision = RecordedDecision(
        rollout_id="r1",
        time_s=1001.0,
        phase="verifying",
        step=0,
        decision=Decision(kind=Kind.ADVANCE, reason="it does", numbers={"score": {"mean": 0.5}}),
    )
    platform.record(decision)
    platform.record(decision)
    platform.close()
    again = machine.platform()
    stored = again.load()
    assert stored is not None
    assert (stored.rollout, stored.revision) == (ROLLOUT, 1)
    assert again.decisions() == [decision]
    (machine.folder / "record" / "rollout.json").write_text('{"format": 2}')
    with pytest.raises(DataLossError) as damaged:
        again.load()
    assert damaged.value.reason == "ROLLOUT_RECORD_DAMAGED"


def test_two_controllers_never_act_on_one_folder(machine: Machine, platform: StaticPlatform) -> None:
    other = machine.platform()
    assert platform.is_leader()
    assert not other.is_leader()
    for act in (
        lambda: other.save(ROLLOUT, revision=0),
        lambda: other.deploy("policy/2"),
        lambda: other.route(5),
    ):
        with pytest.raises(UnavailableError) as caught:
            act()
        assert caught.value.reason == "NOT_LEADER"
    platform.close()
    assert other.is_leader()
