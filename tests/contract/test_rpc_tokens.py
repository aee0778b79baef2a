"""Who may call which method of policy, reward, reference, trainer and canary, and how often."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from andon.client.policy import PolicyClient, SamplingParameters
from andon.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from andon.rpc.config import ServerConfig
from andon.rpc.server import RunningServer, ServerStartError
from services.canary.config import CanaryConfig
from services.canary.service import CanaryService
from services.labeling.config import LabelingConfig
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from services.trainer.config import TrainerConfig
from services.trainer.service import TrainerService
from tests.scripted_service import POLICY, ScriptedService
from tests.servers import Serve

TIMEOUT_S = 60
ROLES = ("trainer", "service", "client", "researcher")
ONE_TOKEN = SamplingParameters(max_new_tokens=1)

# What the documentation promises, written down a second time.
ALLOWED: Mapping[str, set[str]] = {
    "policy.v1.PolicyService/Sample": {"trainer", "service", "client", "researcher"},
    "policy.v1.PolicyService/UpdateWeights": {"trainer"},
    "policy.v1.PolicyService/LoadModel": {"trainer", "researcher"},
    "policy.v1.PolicyService/GetModelInfo": {"trainer", "service", "client", "researcher"},
    "reward.v1.RewardService/Score": {"trainer", "service", "client", "researcher"},
    "reward.v1.RewardService/LoadModel": {"trainer", "researcher"},
    "reward.v1.RewardService/GetModelInfo": {"trainer", "service", "client", "researcher"},
    "reference.v1.ReferenceService/LogProbs": {"trainer", "service", "researcher"},
    "reference.v1.ReferenceService/LoadModel": {"trainer", "researcher"},
    "reference.v1.ReferenceService/GetModelInfo": {"trainer", "service", "client", "researcher"},
    "trainer.v1.TrainerService/StartRun": {"researcher"},
    "trainer.v1.TrainerService/PauseRun": {"researcher"},
    "trainer.v1.TrainerService/ResumeRun": {"researcher"},
    "trainer.v1.TrainerService/StopRun": {"researcher"},
    "trainer.v1.TrainerService/GetRun": {"researcher", "service"},
    "trainer.v1.TrainerService/ListRuns": {"researcher", "service"},
    "trainer.v1.TrainerService/WatchRun": {"researcher", "service"},
    "canary.v1.CanaryService/StartRollout": {"researcher"},
    "canary.v1.CanaryService/PromoteRollout": {"researcher"},
    "canary.v1.CanaryService/AbortRollout": {"researcher"},
    "canary.v1.CanaryService/GetRollout": {"researcher", "service"},
    "canary.v1.CanaryService/WatchRollout": {"researcher", "service"},
    "canary.v1.CanaryService/ListDecisions": {"researcher", "service"},
}
STREAMS_REQUESTS = {"UpdateWeights"}


def token_of(name: str) -> str:
    return f"the secret token of {name}"


def write_tokens(path: Path, roles: Mapping[str, str]) -> Path:
    """Names and their roles."""
    entries = [
        {"name": name, "role": role, "sha256": hashlib.sha256(token_of(name).encode()).hexdigest()}
        for name, role in roles.items()
    ]
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.json", {role: role for role in ROLES})


@pytest.fixture(autouse=True)
def _no_token_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDON_TOKEN", raising=False)
    monkeypatch.delenv("ANDON_TOKEN_FILE", raising=False)


def config(**fields: object) -> ServerConfig:
    return ServerConfig(port=0, metrics_port=0, drain_grace_s=5.0, **fields)


def start(serve: Serve, name: str, folder: Path, tokens: Path) -> RunningServer:
    common = {"port": 0, "metrics_port": 0, "tokens": tokens, "store": folder / "store"}
    match name:
        case "policy":
            settings = PolicyConfig(**common)
            return serve(PolicyService(settings, registry := CollectorRegistry()), settings, registry)
        case "reward":
            settings = RewardConfig(**common)
            return serve(RewardService(settings, registry := CollectorRegistry()), settings, registry)
        case "reference":
            settings = ReferenceConfig(**common)
            return serve(ReferenceService(settings, registry := CollectorRegistry()), settings, registry)
        case "canary":
            folders = {"routes_folder": folder / "envoy", "record_folder": folder / "rollouts"}
            settings = CanaryConfig(**common, **folders, watch_cord=False, labeling_target=None)
            return serve(CanaryService(settings, registry := CollectorRegistry()), settings, registry)
        case _:
            settings = TrainerConfig(**common, runs=folder / "runs", watch_cord=False)
            return serve(TrainerService(settings, registry := CollectorRegistry()), settings, registry)


def code_of(channel: grpc.Channel, method: str, metadata: list[tuple[str, str]]) -> grpc.StatusCode:
    """The code that an empty request is answered with."""
    path = f"/andon.api.{method}"
    try:
        if method.rpartition("/")[2] in STREAMS_REQUESTS:
            channel.stream_unary(path)(iter([b""]), timeout=TIMEOUT_S, metadata=metadata)
        elif method.endswith(("WatchRun", "WatchRollout")):
            list(channel.unary_stream(path)(b"", timeout=TIMEOUT_S, metadata=metadata))
        else:
            channel.unary_unary(path)(b"", timeout=TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("service", ["policy", "reward", "reference", "trainer", "canary"])
def test_each_method_is_open_to_its_roles_and_to_nobody_else(serve, tmp_path, tokens, service):
    running = start(serve, service, tmp_path, tokens)
    methods = {method: roles for method, roles in ALLOWED.items() if method.startswith(service)}
    with grpc.insecure_channel(running.target) as channel:
        for method, allowed in methods.items():
            assert code_of(channel, method, []) is grpc.StatusCode.UNAUTHENTICATED, method
            unknown = [("authorization", "Bearer made up")]
            assert code_of(channel, method, unknown) is grpc.StatusCode.UNAUTHENTICATED, method
            for role in ROLES:
                code = code_of(channel, method, [("authorization", f"Bearer {token_of(role)}")])
                refused = code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
                assert refused is (role not in allowed), (method, role, code)


def test_the_table_above_names_every_method():
    pool = descriptor_pool.Default()
    services = {method.partition("/")[0] for method in ALLOWED}
    known = {
        f"{service}/{method.name}"
        for service in services
        for method in pool.FindServiceByName(f"andon.api.{service}").methods
    }
    assert known == set(ALLOWED)


@pytest.fixture
def client_of(serve: Serve) -> Iterator[Callable[..., PolicyClient]]:
    clients: list[PolicyClient] = []

    def open_it(running: RunningServer) -> PolicyClient:
        clients.append(PolicyClient(running.target))
        return clients[-1]

    yield open_it
    for client in clients:
        client.close()


def test_a_client_sends_what_its_file_holds_now(serve, tokens, tmp_path, monkeypatch, client_of):
    running = serve(ScriptedService(), config(tokens=tokens))
    own = tmp_path / "token"
    own.write_text(token_of("client") + "\n")
    monkeypatch.setenv("ANDON_TOKEN_FILE", str(own))
    client = client_of(running)
    assert client.sample(["a"], ONE_TOKEN).seed == 7
    with pytest.raises(PermissionDeniedError) as denied:
        client.load_model("policy@latest")
    assert denied.value.metadata == {"role": "client", "method": "LoadModel"}
    # The tokens of a service and of a client are exchanged while both run.
    write_tokens(tokens, {"new client": "client"})
    with pytest.raises(UnauthenticatedError) as refused:
        client.sample(["a"], ONE_TOKEN)
    assert refused.value.reason == "INVALID_TOKEN"
    own.write_text(token_of("new client"))
    assert client.sample(["a"], ONE_TOKEN).seed == 7
    own.unlink()
    with pytest.raises(InvalidArgumentError, match=r"ANDON_TOKEN_FILE.*cannot be read"):
        client.sample(["a"], ONE_TOKEN)


def test_a_token_in_the_environment_goes_with_every_call(serve, tokens, monkeypatch, client_of):
    running = serve(ScriptedService(), config(tokens=tokens))
    with pytest.raises(UnauthenticatedError) as refused:
        client_of(running).sample(["a"], ONE_TOKEN)
    assert refused.value.reason == "MISSING_TOKEN"
    monkeypatch.setenv("ANDON_TOKEN", token_of("client"))
    assert client_of(running).sample(["a"], ONE_TOKEN).seed == 7


def test_two_tokens_in_the_environment_are_one_too_many(monkeypatch, tmp_path):
    monkeypatch.setenv("ANDON_TOKEN", "a")
    monkeypatch.setenv("ANDON_TOKEN_FILE", str(tmp_path))
    with pytest.raises(InvalidArgumentError, match="both set"):
        PolicyClient("127.0.0.1:1")


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "gr\u00fc\u00dfe"])
def test_a_file_without_a_token_is_refused_without_quoting_it(monkeypatch, tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    monkeypatch.setenv("ANDON_TOKEN_FILE", str(path))
    with pytest.raises(InvalidArgumentError) as raised:
        PolicyClient("127.0.0.1:1")
    assert raised.value.reason == "TOKEN_FILE"
    assert "lines" not in raised.value.message


def test_tokens_are_in_no_log_and_no_metric(serve, tokens, monkeypatch, client_of, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ANDON_TOKEN", token_of("client"))
    registry = CollectorRegistry()
    running = serve(ScriptedService(), config(tokens=tokens, log_level="DEBUG"), registry)
    client = client_of(running)
    client.sample(["a"], ONE_TOKEN)
    with pytest.raises(PermissionDeniedError):
        client.load_model("policy@latest")
    write_tokens(tokens, {"nobody": "client"})
    with pytest.raises(UnauthenticatedError) as refused:
        client.sample(["a"], ONE_TOKEN)
    told = caplog.text + "".join(capfd.readouterr()) + str(refused.value) + repr(refused.value.metadata)
    told += "".join(str(metric) for metric in registry.collect())
    assert "rpc_ended" in told
    for secret in (token_of("client"), hashlib.sha256(token_of("client").encode()).hexdigest()):
        assert secret not in told


class Unguarded(ScriptedService):
    roles_by_method = property()  # reading it fails, so that the service has none


def test_a_service_without_roles_takes_no_tokens_file(server_loop, tokens):
    running = RunningServer(Unguarded(), config(tokens=tokens), CollectorRegistry())
    starting = asyncio.run_coroutine_threadsafe(running.__aenter__(), server_loop)
    with pytest.raises(ServerStartError, match="has no roles"):
        starting.result(TIMEOUT_S)


def test_labeling_has_tokens_of_its_own(tokens):
    with pytest.raises(ValueError, match="takes tokens_file"):
        LabelingConfig(tokens=tokens)


def test_who_calls_too_often_is_told_when_to_come_back(serve, tokens, monkeypatch, client_of):
    registry = CollectorRegistry()
    settings = config(tokens=tokens, calls_per_second=0.01, calls_burst=3)
    running = serve(ScriptedService(), settings, registry)
    monkeypatch.setenv("ANDON_TOKEN", token_of("client"))
    # Two clients, one caller.
    clients = [client_of(running), client_of(running)]
    for number in range(3):
        clients[number % 2].sample(["a"], ONE_TOKEN)
    with pytest.raises(ResourceExhaustedError) as refused:
        clients[0].sample(["a"], ONE_TOKEN)
    assert refused.value.reason == "RATE_LIMITED"
    assert 90 < float(refused.value.metadata["retry_after_s"]) <= 100
    labels = {"grpc_service": POLICY, "grpc_method": "Sample"}
    assert registry.get_sample_value("andon_rpc_rate_limited_total", labels) == 1
    # Others have calls of their own.
    monkeypatch.setenv("ANDON_TOKEN", token_of("researcher"))
    client_of(running).sample(["a"], ONE_TOKEN)


def test_without_tokens_an_address_is_a_caller(serve, client_of):
    running = serve(ScriptedService(), config(calls_per_second=0.01, calls_burst=1))
    client_of(running).sample(["a"], ONE_TOKEN)
    with grpc.insecure_channel(running.target) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{POLICY}/Sample")(b"", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(raised.value).details[1].Unpack(retry)
    assert 90 < retry.retry_delay.ToTimedelta().total_seconds() <= 100
