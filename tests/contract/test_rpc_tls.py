"""Encrypted connections between real servers and the clients of this package, and files that change."""

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from andon.api.labeling.v1 import cord_service_pb2, cord_service_pb2_grpc
from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.client.channel import ChannelOptions, open_channel
from andon.client.health import Health, check_health
from andon.client.policy import PolicyClient, SamplingParameters
from andon.errors import InvalidArgumentError, UnavailableError
from andon.rpc.config import ServerConfig
from andon.rpc.server import RunningServer
from tests.certificates import Authority, CertificateFiles, write_files
from tests.scripted_service import CORD, POLICY, ScriptedService
from tests.servers import Serve

TIMEOUT_S = 60
ONCE = ChannelOptions(max_attempts=2, initial_backoff_s=0.01, max_backoff_s=0.01, reconnect_backoff_s=0.1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server_files(tmp_path: Path, authority: Authority) -> CertificateFiles:
    return write_files(tmp_path / "server", authority, authority.sign("server one"))


@pytest.fixture
def client_files(tmp_path: Path, authority: Authority) -> CertificateFiles:
    return write_files(tmp_path / "client", authority, authority.sign("client one"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, client_files: CertificateFiles) -> pytest.MonkeyPatch:
    """Clients that show a certificate."""
    monkeypatch.setenv("ANDON_TLS_CA", str(client_files.ca))
    monkeypatch.setenv("ANDON_TLS_CERTIFICATE", str(client_files.certificate))
    monkeypatch.setenv("ANDON_TLS_KEY", str(client_files.key))
    return monkeypatch


def config(files: CertificateFiles, **fields: object) -> ServerConfig:
    return ServerConfig(
        port=0,
        metrics_port=0,
        drain_grace_s=5.0,
        tls_certificate=files.certificate,
        tls_key=files.key,
        tls_client_ca=files.ca,
        **fields,
    )


@pytest.fixture
def running(serve: Serve, server_files: CertificateFiles) -> RunningServer:
    return serve(ScriptedService(), config(server_files))


@pytest.fixture
def open_client(environment: pytest.MonkeyPatch) -> Iterator[Callable[[str], grpc.Channel]]:
    channels: list[grpc.Channel] = []

    def open_it(target: str) -> grpc.Channel:
        channels.append(open_channel(target, service_name=POLICY, options=ONCE))
        return channels[-1]

    yield open_it
    for channel in channels:
        channel.close()


def sample(channel: grpc.Channel, request_id: str = "") -> int:
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    request = policy_service_pb2.SampleRequest(request_id=request_id)
    return stub.Sample(request, timeout=TIMEOUT_S).seed


def served_name(running: RunningServer, files: CertificateFiles) -> str:
    """The common name in the certificate that a new connection is shown, by the standard library's TLS."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", running.port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        return dict(pair for group in encrypted.getpeercert()["subject"] for pair in group)["commonName"]


def test_a_client_with_a_certificate_is_served(running, open_client):
    assert sample(open_client(running.target)) == 7
    assert check_health(running.target, timeout_s=TIMEOUT_S) is Health.SERVING


def test_nobody_else_is(running, environment, tmp_path, authority, client_files):
    def refused() -> None:
        with open_channel(running.target, service_name=POLICY, options=ONCE) as channel:
            with pytest.raises(grpc.RpcError) as raised:
                sample(channel)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

    with grpc.insecure_channel(running.target) as channel, pytest.raises(grpc.RpcError) as raised:
        sample(channel)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

    strangers = Authority("somebody else")
    client_files.write(strangers.sign("stranger"))
    refused()
    client_files.write(authority.sign("client"))
    client_files.ca.write_bytes(strangers.pem)  # and the client trusts no strange server
    refused()
    client_files.ca.write_bytes(authority.pem)
    environment.delenv("ANDON_TLS_CERTIFICATE")
    environment.delenv("ANDON_TLS_KEY")
    refused()


def test_a_certificate_that_has_expired_is_refused(running, client_files, authority):
    """By the server: our own client would not even send it."""
    late = authority.sign("late", ends_in=timedelta(hours=-1))
    credentials = grpc.ssl_channel_credentials(authority.pem, late.key, late.certificate)
    with grpc.secure_channel(running.target, credentials) as channel, pytest.raises(grpc.RpcError) as raised:
        sample(channel)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served_name(running, client_files) == "server one"


def test_a_replica_is_dialled_by_address_under_the_name_of_its_service(
    serve, server_files, environment, authority
):
    server_files.write(authority.sign("server", host="andon-policy"))
    running = serve(ScriptedService(), config(server_files))
    for name, is_served in (("andon-policy", True), ("andon-reward", False), (None, False)):
        options = replace(ONCE, tls_server_name=name)
        with open_channel(running.target, service_name=POLICY, options=options) as channel:
            if is_served:
                assert sample(channel) == 7
                continue
            with pytest.raises(grpc.RpcError) as raised:
                sample(channel)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_without_client_authorities_no_certificate_is_asked_for(serve, server_files, environment):
    environment.delenv("ANDON_TLS_CERTIFICATE")
    environment.delenv("ANDON_TLS_KEY")
    settings = config(server_files).model_copy(update={"tls_client_ca": None})
    running = serve(ScriptedService(), settings)
    with open_channel(running.target, service_name=POLICY) as channel:
        assert sample(channel) == 7


def test_a_new_certificate_is_shown_to_new_connections_and_running_calls_go_on(
    serve, server_files, client_files, authority, open_client, server_loop
):
    service, registry = ScriptedService(), CollectorRegistry()
    running = serve(service, config(server_files), registry)
    channel = open_client(running.target)
    stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
    waiting = stub.Sample.future(policy_service_pb2.SampleRequest(request_id="wait"), timeout=TIMEOUT_S)
    assert service.entered.wait(TIMEOUT_S)
    expiry = "andon_tls_certificate_expiry_timestamp_seconds"
    before_s = registry.get_sample_value(expiry)

    second = authority.sign("server two", ends_in=timedelta(days=9))
    server_files.write(second)
    assert served_name(running, client_files) == "server two"
    assert registry.get_sample_value(expiry) == second.not_after.timestamp() > before_s
    assert registry.get_sample_value("andon_tls_rotations_total", {"outcome": "ok"}) >= 1

    assert not waiting.done()
    server_loop.call_soon_threadsafe(service.may_answer.set)
    assert waiting.result(TIMEOUT_S).seed == 7
    assert sample(channel) == 7


@pytest.mark.parametrize("broken", ["key of another", "expired", "gone", "no certificate"])
def test_new_files_that_cannot_be_used_leave_the_old_ones_in_use(
    serve, server_files, client_files, authority, broken
):
    registry = CollectorRegistry()
    running = serve(ScriptedService(), config(server_files), registry)
    match broken:
        case "key of another":
            server_files.key.write_bytes(authority.sign("another").key)
        case "expired":
            server_files.write(authority.sign("late", ends_in=timedelta(hours=-1)))
        case "gone":
            server_files.certificate.unlink()
        case "no certificate":
            server_files.certificate.write_bytes(b"")
    assert served_name(running, client_files) == "server one"
    assert registry.get_sample_value("andon_tls_rotations_total", {"outcome": "refused"}) >= 1
    server_files.write(authority.sign("server two"))
    assert served_name(running, client_files) == "server two"


def test_the_authorities_of_clients_rotate_too(serve, server_files, client_files, authority, open_client):
    """First both authorities are trusted, then only the new one."""
    running = serve(ScriptedService(), config(server_files))
    channel = open_client(running.target)
    assert sample(channel) == 7
    new = Authority("new authority")
    server_files.ca.write_bytes(authority.pem + new.pem)
    client_files.write(new.sign("client two"))
    assert sample(channel) == 7
    server_files.ca.write_bytes(new.pem)
    assert sample(channel) == 7, "on the connection that is open"
    client_files.write(authority.sign("client of old"))
    with pytest.raises(grpc.RpcError) as raised:
        sample(channel)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_long_lived_client_takes_up_new_files_and_its_running_calls_go_on(
    running, open_client, client_files, server_files, authority
):
    channel = open_client(running.target)
    stream = cord_service_pb2_grpc.CordServiceStub(channel).WatchCord(
        cord_service_pb2.WatchCordRequest(), timeout=TIMEOUT_S
    )
    next(stream)
    new = Authority("new authority")
    # Servers move first and trust both; the client's old certificate is then of no more use.
    server_files.ca.write_bytes(new.pem)
    server_files.write(new.sign("server two"))
    client_files.ca.write_bytes(new.pem)
    client_files.write(new.sign("client two"))
    assert sample(channel) == 7, "on a new connection, by the new files"
    assert stream.is_active(), "on the old connection"
    stream.cancel()


def test_a_client_whose_files_break_goes_on_with_the_old_ones(running, open_client, client_files, authority):
    channel = open_client(running.target)
    assert sample(channel) == 7
    client_files.key.write_bytes(b"half a k")
    assert sample(channel) == 7
    client_files.write(authority.sign("client two"))
    assert sample(channel) == 7


def test_many_calls_at_once_survive_many_rotations(running, open_client, client_files, authority):
    channel = open_client(running.target)
    ending = threading.Event()
    failures: list[BaseException] = []
    counts = [0] * 4

    def call(index: int) -> None:
        try:
            while not ending.is_set():
                assert sample(channel) == 7
                counts[index] += 1
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    for number in range(20):
        client_files.write(authority.sign(f"client {number}"))
        assert sample(channel) == 7
    ending.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not failures
    assert min(counts) > 0


@pytest.mark.parametrize(
    ("change", "reason", "problem"),
    [
        ({"ANDON_TLS_KEY": None}, "TLS_SETTINGS", "given together"),
        ({"ANDON_TLS_CA": None}, "TLS_SETTINGS", "needs ANDON_TLS_CA"),
        ({"ANDON_TLS_CA": "/none/ca.crt"}, "TLS_FILES", "/none/ca.crt cannot be read"),
        ({"ANDON_TLS_CERTIFICATE": "/none/c"}, "TLS_FILES", "/none/c cannot be read as the certificate"),
    ],
)
def test_settings_of_a_client_that_cannot_be_are_told_at_once(environment, change, reason, problem):
    for name, value in change.items():
        if value is None:
            environment.delenv(name)
        else:
            environment.setenv(name, value)
    with pytest.raises(InvalidArgumentError, match=problem) as raised:
        PolicyClient("127.0.0.1:1")
    assert raised.value.reason == reason


def test_the_health_port_is_plain_and_knows_nothing_else(serve, server_files):
    running = serve(ScriptedService(), config(server_files, health_port=0))
    with grpc.insecure_channel(f"127.0.0.1:{running.health_port}") as channel:
        for name in ("", POLICY, CORD):
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            sample(channel)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_error_of_the_transport_names_the_service(running, environment, client_files, authority):
    strangers = Authority("somebody else")
    client_files.ca.write_bytes(strangers.pem)
    with (
        PolicyClient(running.target, options=ONCE) as client,
        pytest.raises(UnavailableError, match=f"PolicyService at {running.target} cannot be reached"),
    ):
        client.sample(["a"], SamplingParameters(max_new_tokens=1), timeout_s=TIMEOUT_S)


def test_keys_are_in_no_log(serve, server_files, open_client, authority, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    running = serve(ScriptedService(), config(server_files))
    assert sample(open_client(running.target)) == 7
    server_files.key.write_bytes(authority.sign("another").key)
    sample(open_client(running.target))
    secret = server_files.key.read_text().splitlines()[1]
    told = caplog.text + "".join(capfd.readouterr())
    assert "tls_files_refused" in told
    assert secret not in told
