"""Traffic between stable and canary through a real Envoy: shares, the header, changes, and deaths."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from prometheus_client import CollectorRegistry

from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.client.health import Health, check_health
from andon.client.policy import PolicyClient, SamplingParameters
from andon.envoy import write_routes
from andon.errors import PermissionDeniedError, UnavailableError
from andon.modeling.versions import ModelVersion
from andon.rpc.config import ServerConfig
from andon.rpc.server import RunningServer
from tests.envoy import RunningEnvoy, StartEnvoy, free_port, start_envoy

__all__ = ["start_envoy"]

TIMEOUT_S = 60
STABLE, CANARY = 1, 2  # the seeds by which answers tell who gave them
SERVICE = "andon.api.policy.v1.PolicyService"
ONE_TOKEN = SamplingParameters(max_new_tokens=1)


class NamingService(policy_service_pb2_grpc.PolicyServiceServicer):
    """Answers with its own number; "wait" waits until it is cancelled or told."""

    name = "naming"

    def __init__(self, number: int) -> None:
        self.number = number
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)
        return [SERVICE]

    async def start(self) -> None:
        return None

    async def drain(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def Sample(self, request, context):
        if request.request_id == "wait":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return policy_service_pb2.SampleResponse(
            seed=self.number,
            tokenizer_fingerprint=request.parameters.stop[0] if request.parameters.stop else "",
        )


class Tracks:
    """Both servers; each can be ended and begun again on its port."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[int, RunningServer] = {}
        self.services: dict[int, NamingService] = {}
        self.ports = {STABLE: free_port(), CANARY: free_port()}
        for number in self.ports:
            self.begin(number)

    def begin(self, number: int) -> None:
        self.services[number] = NamingService(number)
        config = ServerConfig(port=self.ports[number], metrics_port=0, log_level="ERROR")
        running = RunningServer(self.services[number], config, CollectorRegistry())
        asyncio.run_coroutine_threadsafe(running.__aenter__(), self._loop).result(TIMEOUT_S)
        self._running[number] = running

    def end(self, number: int, *, grace_s: float) -> None:
        running = self._running.pop(number, None)
        if running is not None:
            asyncio.run_coroutine_threadsafe(running.stop(grace_s=grace_s), self._loop).result(TIMEOUT_S)


@pytest.fixture
def tracks(server_loop: asyncio.AbstractEventLoop) -> Iterator[Tracks]:
    made = Tracks(server_loop)
    yield made
    for number in made.ports:
        made.end(number, grace_s=0.0)


@pytest.fixture
def envoy(tracks: Tracks, start_envoy: StartEnvoy) -> Callable[[int], RunningEnvoy]:
    return lambda percent: start_envoy(tracks.ports[STABLE], tracks.ports[CANARY], percent)


class Caller:
    """Calls without any retry of its own, so that a test sees each failure."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(
            target,
            options=[("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)],
        )
        self.stub = policy_service_pb2_grpc.PolicyServiceStub(self.channel)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.channel.close()

    def call(self, *, track: str | None = None, request_id: str = "", timeout_s: float = TIMEOUT_S) -> int:
        request = policy_service_pb2.SampleRequest(request_id=request_id)
        metadata = None if track is None else [("x-andon-track", track)]
        return self.stub.Sample(request, timeout=timeout_s, metadata=metadata).seed

    def canary_share(self, calls: int) -> float:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: self.call(), range(calls)))
        assert set(answers) <= {STABLE, CANARY}
        return answers.count(CANARY) / calls


def within_chance(share: float, expected: float, calls: int) -> bool:
    """Five standard errors of a binomial share: wrong once in two million times."""
    return abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / calls)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_weights_are_honoured(envoy, percent):
    calls = 2000
    with Caller(envoy(percent).target) as caller:
        share = caller.canary_share(calls)
    assert within_chance(share, percent / 100, calls), share


def test_the_header_asks_for_the_canary_and_any_other_value_for_nothing(envoy):
    running = envoy(0)
    with Caller(running.target) as caller:
        assert {caller.call(track="canary") for _ in range(50)} == {CANARY}
        assert {caller.call(track="stable") for _ in range(50)} == {STABLE}
        assert {caller.call(track="Canary") for _ in range(50)} == {STABLE}
    with PolicyClient(running.target, track="canary") as client:
        assert client.sample(["a"], ONE_TOKEN).seed == CANARY
    with PolicyClient(running.target) as client:
        assert client.sample(["a"], ONE_TOKEN).seed == STABLE


class Load:
    """Calls in several threads until told to stop; every failure is kept."""

    def __init__(self, target: str) -> None:
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._caller = Caller(target)
        self._threads = [threading.Thread(target=self._run) for _ in range(6)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self._caller.channel.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.answers.append(self._caller.call())
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")

    def more(self, calls: int) -> list[int]:
        """The next so many answers."""
        begin = len(self.answers)
        wait_until(lambda: len(self.answers) >= begin + calls or bool(self.failures))
        assert set(self.failures) == set()
        return self.answers[begin:]


def test_weights_change_under_load_and_no_call_fails(envoy):
    running = envoy(0)
    with Load(running.target) as load:
        assert set(load.more(200)) == {STABLE}
        for percent in (5, 25, 50, 100):
            write_routes(running.folder, percent)
            wait_until(lambda: CANARY in load.more(100))
        wait_until(lambda: set(load.more(300)) == {CANARY})
        write_routes(running.folder, 0)
        wait_until(lambda: set(load.more(300)) == {STABLE})
    assert load.failures == []


@pytest.mark.parametrize("grace_s", [0.0, 2.0])
def test_the_share_of_a_canary_that_ends_goes_to_stable_and_back_without_a_failed_call(
    envoy, tracks, grace_s
):
    running = envoy(50)
    with Load(running.target) as load:
        assert set(load.more(300)) == {STABLE, CANARY}
        tracks.end(CANARY, grace_s=grace_s)
        assert set(load.more(1000)[50:]) == {STABLE}
        tracks.begin(CANARY)
        wait_until(lambda: CANARY in load.more(100))
    assert load.failures == []


def test_who_asks_for_a_dead_canary_is_told_and_stable_serves_on(envoy, tracks):
    running = envoy(0)
    tracks.end(CANARY, grace_s=0.0)
    with Caller(running.target) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.call(track="canary")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caller.call() == STABLE


def test_the_share_of_a_dead_stable_never_goes_to_the_canary(envoy, tracks):
    running = envoy(0)
    tracks.end(STABLE, grace_s=0.0)
    with Caller(running.target) as caller:
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as raised:
                caller.call()
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caller.call(track="canary") == CANARY


def test_health_is_that_of_stable_unless_the_canarys_is_asked_for(envoy, tracks):
    target = envoy(50).target
    assert check_health(target, timeout_s=TIMEOUT_S, track="canary") is Health.SERVING
    tracks.end(CANARY, grace_s=0.0)
    assert check_health(target, timeout_s=TIMEOUT_S, track="canary") is Health.UNREACHABLE
    assert check_health(target, timeout_s=TIMEOUT_S) is Health.SERVING
    tracks.end(STABLE, grace_s=0.0)
    tracks.begin(CANARY)
    wait_until(lambda: check_health(target, timeout_s=TIMEOUT_S, track="canary") is Health.SERVING)
    assert check_health(target, timeout_s=TIMEOUT_S) is Health.UNREACHABLE


def test_nobody_changes_models_or_weights_through_the_split(envoy):
    with PolicyClient(envoy(50).target) as client:
        with pytest.raises(PermissionDeniedError):
            client.load_model("policy@latest")
        with pytest.raises((PermissionDeniedError, UnavailableError)) as raised:
            client.update_weights(NoWeights(), iter([]), timeout_s=TIMEOUT_S)
        assert isinstance(raised.value, PermissionDeniedError)


class NoWeights:
    """A header as ``update_weights`` takes it."""

    def __init__(self) -> None:
        self.model = ModelVersion(family="policy", version=1)
        self.tensors = ()
        self.size_bytes = 0
        self.checksum = ""
        self.base = None
        self.memory = None


def test_the_callers_deadline_reaches_the_server(envoy, tracks):
    with Caller(envoy(0).target) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.call(request_id="wait", timeout_s=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert tracks.services[STABLE].cancelled.wait(TIMEOUT_S)


def test_large_messages_pass_in_both_directions(envoy):
    text = "x" * (20 * 1024 * 1024)
    request = policy_service_pb2.SampleRequest(parameters=policy_service_pb2.SamplingParameters(stop=[text]))
    with Caller(envoy(0).target) as caller:
        assert caller.stub.Sample(request, timeout=TIMEOUT_S).tokenizer_fingerprint == text
