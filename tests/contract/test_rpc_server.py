"""A server as its callers see it: errors, deadlines, bad and oversized messages, health, metrics, drain."""

import asyncio
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from andon.api.labeling.v1 import cord_service_pb2, cord_service_pb2_grpc
from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.errors import InvalidArgumentError
from andon.rpc.config import ServerConfig
from andon.rpc.errors import error_from_rpc
from andon.rpc.server import RunningServer, ServerStartError
from tests.rpc_errors import reason_of
from tests.scripted_service import CORD, POLICY, ScriptedService

TIMEOUT_S = 60


def config(**values: object) -> ServerConfig:
    return ServerConfig(**{"port": 0, "metrics_port": 0, "drain_grace_s": 5.0, **values})


def sample(channel: grpc.Channel, request_id: str = "", timeout: float | None = TIMEOUT_S):
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    return stub.Sample(policy_service_pb2.SampleRequest(request_id=request_id), timeout=timeout)


def test_an_error_of_ours_arrives_with_code_reason_domain_and_metadata(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, "bad")
    info = reason_of(raised.value)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "no prompts"
    assert (info.reason, info.domain, dict(info.metadata)) == ("EMPTY_REQUEST", "andon", {"field": "prompts"})
    restored = error_from_rpc(raised.value)
    assert type(restored) is InvalidArgumentError
    assert (restored.reason, restored.metadata) == ("EMPTY_REQUEST", {"field": "prompts"})


def test_a_long_error_still_arrives_with_its_reason(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, "long error")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(raised.value).reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("request_id", ["defect", "own timeout"])
def test_a_defect_is_internal_tells_nothing_and_the_service_goes_on(serve, connect, request_id):
    channel = connect(serve(ScriptedService(), config()))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, request_id)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert reason_of(raised.value).reason == "UNEXPECTED"
    assert "secret" not in raised.value.details()
    assert sample(channel).seed == 7


def test_a_status_set_by_hand_passes_through(server_loop, serve, connect):
    registry = CollectorRegistry()
    running = serve(ScriptedService(), config(), registry)
    channel = connect(running)
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, "abort")
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.ABORTED, "by hand")
    asyncio.run_coroutine_threadsafe(running.stop(grace_s=1.0), server_loop).result(TIMEOUT_S)
    assert handled(registry, "Sample", "ABORTED") == 1


def handled(registry: CollectorRegistry, method: str, code: str) -> float | None:
    labels = {"grpc_service": POLICY, "grpc_method": method, "grpc_code": code}
    return registry.get_sample_value("andon_rpc_handled_total", labels)


NO_MESSAGE = b"\xff\xff\xff\xff"


def test_bytes_that_are_no_message_are_refused_on_every_kind_of_method(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    calls = {
        "unary": lambda: channel.unary_unary(f"/{POLICY}/Sample")(NO_MESSAGE, timeout=TIMEOUT_S),
        "client stream": lambda: channel.stream_unary(f"/{POLICY}/UpdateWeights")(
            iter([NO_MESSAGE]), timeout=TIMEOUT_S
        ),
        "server stream": lambda: list(
            channel.unary_stream(f"/{CORD}/WatchCord")(NO_MESSAGE, timeout=TIMEOUT_S)
        ),
    }
    for kind, call in calls.items():
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, kind
        assert reason_of(raised.value).reason == "MALFORMED_MESSAGE", kind
    assert sample(channel).seed == 7


def test_streams_of_requests_are_parsed_and_may_fail_with_reasons(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    assert (
        stub.UpdateWeights(iter([policy_service_pb2.UpdateWeightsRequest()]), timeout=TIMEOUT_S) is not None
    )
    with pytest.raises(grpc.RpcError) as raised:
        stub.UpdateWeights(iter([]), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert reason_of(raised.value).reason == "WEIGHTS_TRUNCATED"


def test_a_message_over_the_limit_is_resource_exhausted_and_the_service_goes_on(serve, connect):
    channel = connect(serve(ScriptedService(), config(max_message_bytes=2048)))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, "x" * 4096)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sample(channel).seed == 7


def test_an_unknown_method_is_unimplemented(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{POLICY}/NoSuchMethod")(b"", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_without_a_deadline_gets_the_default_one(serve, connect):
    service = ScriptedService()
    channel = connect(serve(service, config(default_deadline_s=0.05)))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel, "wait", timeout=None)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(raised.value).reason == "DEFAULT_DEADLINE"
    assert service.cancelled.wait(TIMEOUT_S)


def test_a_stream_of_answers_has_its_own_default_deadline(serve, connect):
    channel = connect(
        serve(ScriptedService(), config(default_deadline_s=600, default_stream_deadline_s=0.05))
    )
    with pytest.raises(grpc.RpcError) as raised:
        list(cord_service_pb2_grpc.CordServiceStub(channel).WatchCord(cord_service_pb2.WatchCordRequest()))
    assert reason_of(raised.value).reason == "DEFAULT_DEADLINE"


def test_the_callers_deadline_stops_the_work_and_is_counted(serve, connect):
    service, registry = ScriptedService(), CollectorRegistry()
    running = serve(service, config(), registry)
    with pytest.raises(grpc.RpcError) as raised:
        sample(connect(running), "wait", timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.cancelled.wait(TIMEOUT_S)


def test_a_cancelled_call_stops_the_work(serve, connect):
    service = ScriptedService()
    channel = connect(serve(service, config()))
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    call = stub.Sample.future(policy_service_pb2.SampleRequest(request_id="wait"), timeout=TIMEOUT_S)
    assert service.entered.wait(TIMEOUT_S)
    call.cancel()
    assert service.cancelled.wait(TIMEOUT_S)


def health_of(channel: grpc.Channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S).status


def test_health_is_told_for_the_server_and_for_each_service(serve, connect):
    channel = connect(serve(ScriptedService(), config()))
    assert {health_of(channel, name) for name in ("", POLICY, CORD)} == {
        health_pb2.HealthCheckResponse.SERVING
    }
    with pytest.raises(grpc.RpcError) as raised:
        health_of(channel, "andon.api.none.v1.NoService")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("enabled", [True, False])
def test_reflection_can_be_switched_off(serve, connect, enabled):
    channel = connect(serve(ScriptedService(), config(reflection=enabled)))
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answers = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S
    )
    if enabled:
        names = {service.name for service in next(answers).list_services_response.service}
        assert {POLICY, CORD, "grpc.health.v1.Health"} <= names
    else:
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_calls_before_the_service_has_started_are_told_to_come_back(server_loop, connect):
    service = ScriptedService()
    service.may_start.clear()
    running = RunningServer(service, config(), CollectorRegistry())
    starting = asyncio.run_coroutine_threadsafe(running.__aenter__(), server_loop)
    assert service.starting.wait(TIMEOUT_S)
    channel = connect(running)
    try:
        with pytest.raises(grpc.RpcError) as raised:
            policy_service_pb2_grpc.PolicyServiceStub(channel).Sample(
                policy_service_pb2.SampleRequest(), timeout=TIMEOUT_S, wait_for_ready=True
            )
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(raised.value).reason == "STARTING"
        assert health_of(channel, POLICY) == health_pb2.HealthCheckResponse.NOT_SERVING
        service.may_start.set()
        starting.result(TIMEOUT_S)
        assert sample(channel).seed == 7
    finally:
        service.may_start.set()
        starting.result(TIMEOUT_S)
        asyncio.run_coroutine_threadsafe(running.stop(grace_s=1.0), server_loop).result(TIMEOUT_S)


def test_metrics_are_served_on_their_own_port_from_zero(serve, connect):
    running = serve(ScriptedService(), config())
    sample(connect(running))
    page = urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=TIMEOUT_S)
    lines = page.read().decode().splitlines()
    ok = f'andon_rpc_handled_total{{grpc_code="OK",grpc_method="Sample",grpc_service="{POLICY}"}} 1.0'
    none_failed = (
        f'andon_rpc_handled_total{{grpc_code="INTERNAL",grpc_method="Sample",grpc_service="{POLICY}"}} 0.0'
    )
    assert ok in lines
    assert none_failed in lines
    assert not any("Health" in line for line in lines)


def test_a_drain_lets_running_calls_answer_and_watchers_go_then_closes(server_loop, serve, connect):
    service = ScriptedService()
    running = serve(service, config(drain_probe_period_s=0.0))
    channel, watching = connect(running), connect(running)
    statuses = health_pb2_grpc.HealthStub(watching).Watch(
        health_pb2.HealthCheckRequest(service=POLICY), timeout=TIMEOUT_S
    )
    assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    call = stub.Sample.future(policy_service_pb2.SampleRequest(request_id="wait"), timeout=TIMEOUT_S)
    assert service.entered.wait(TIMEOUT_S)
    cord = cord_service_pb2_grpc.CordServiceStub(watching).WatchCord(
        cord_service_pb2.WatchCordRequest(), timeout=TIMEOUT_S
    )
    next(cord)

    asyncio.run_coroutine_threadsafe(running.stop(grace_s=10.0), server_loop).result(TIMEOUT_S)

    assert call.result(TIMEOUT_S).seed == 7
    with pytest.raises(grpc.RpcError) as raised:
        next(cord)
    assert reason_of(raised.value).reason == "CORD_GONE"
    assert service.steps == ["start", "drain", "answer", "close"]
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_that_outlasts_the_grace_period_is_cancelled(server_loop, serve, connect):
    class Stubborn(ScriptedService):
        async def drain(self) -> None:
            self.steps.append("drain")

    service = Stubborn()
    running = serve(service, config())
    stub = policy_service_pb2_grpc.PolicyServiceStub(connect(running))
    call = stub.Sample.future(policy_service_pb2.SampleRequest(request_id="wait"), timeout=TIMEOUT_S)
    assert service.entered.wait(TIMEOUT_S)
    asyncio.run_coroutine_threadsafe(running.stop(grace_s=0.05), server_loop).result(TIMEOUT_S)
    assert service.cancelled.wait(TIMEOUT_S)
    assert call.exception(TIMEOUT_S).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert service.steps == ["start", "drain", "close"]


@pytest.mark.parametrize("taken", ["port", "metrics_port"])
def test_a_taken_port_fails_the_start_and_frees_what_was_up(serve, taken):
    first = serve(ScriptedService(), config())
    with pytest.raises(ServerStartError, match=str(getattr(first, taken))):
        serve(ScriptedService(), config(**{taken: getattr(first, taken)}))
