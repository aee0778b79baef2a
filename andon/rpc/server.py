"""Decides the order in which a server comes up and goes down. The only place that knows it.

Up: metrics port, gRPC port, health port, ``service.start``, health SERVING, the ready line. Down, on SIGTERM
or SIGINT: health NOT_SERVING, one probe period with the port still open, no new calls while running ones get
the grace period and the service drains, ``service.close``, health port, metrics port. ``run_service`` does
both for a process, ``RunningServer`` for a test.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from andon.errors import AndonError
from andon.observability.exporter import MetricsServer, register_process_metrics, start_metrics_server
from andon.observability.logs import configure_logging
from andon.rpc.auth import AccessPolicy, GuardedService
from andon.rpc.config import ServerConfig
from andon.rpc.interceptors import CallInterceptor
from andon.rpc.limits import CallLimiter
from andon.rpc.loopback import is_loopback
from andon.rpc.metrics import CallMetrics, TlsMetrics
from andon.rpc.roles import TokenGuardedService
from andon.rpc.service import Service, TalkativeService
from andon.rpc.tls import ServerTls
from andon.rpc.token_file import TokenFile

# Quoted, because it takes parameters only in the stubs.
HealthContext: TypeAlias = "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]"

_log = structlog.stdlib.get_logger("andon.rpc")


class ServerStartError(Exception):
    """A port is taken or cannot be bound, or the service cannot do what its settings ask for."""


class EndingHealthServicer(health.aio.HealthServicer):
    """Health whose watchers are let go at the drain; a client that watches would hold up the stop for all
    the grace.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: HealthCheckRequest, context: HealthContext
    ) -> None:
        """Stream the status until it changes no more or the server drains."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watch, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            watch.cancel()
            await asyncio.gather(watch, ending, return_exceptions=True)

    def end_watches(self) -> None:
        """End every stream of ``Watch``."""
        self._ending.set()


class RunningServer:
    """A service that serves inside ``async with``; leaving the block drains it."""

    def __init__(self, service: Service, config: ServerConfig, registry: CollectorRegistry) -> None:
        self.port = 0
        self.metrics_port = 0
        self.health_port: int | None = None
        self._service = service
        self._config = config
        self._registry = registry
        self._metrics_server: MetricsServer | None = None
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self._health: EndingHealthServicer | None = None

    @property
    def target(self) -> str:
        """What a client on this machine connects to."""
        return f"{self._config.host}:{self.port}"

    async def __aenter__(self) -> RunningServer:
        """Bring everything up. When a part fails, what is already up goes down again."""
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop(grace_s=self._config.drain_grace_s)

    async def _start(self) -> None:
        config = self._config
        try:
            self._metrics_server = start_metrics_server(
                self._registry, config.metrics_host, config.metrics_port
            )
        except OSError as error:
            raise ServerStartError(
                f"metrics port {config.metrics_host}:{config.metrics_port}: {error}"
            ) from error
        self.metrics_port = self._metrics_server.port

        call_metrics = CallMetrics(self._registry)
        interceptor = CallInterceptor(
            metrics=call_metrics,
            default_deadline_s=config.default_deadline_s,
            default_stream_deadline_s=config.default_stream_deadline_s,
            access_policy=_access_policy(self._service, config),
            limiter=(
                None
                if config.calls_per_second is None
                else CallLimiter(
                    calls_per_second=config.calls_per_second, burst=config.burst, clock=time.monotonic
                )
            ),
        )
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=_channel_options(config),
            maximum_concurrent_rpcs=config.max_concurrent_calls,
        )
        services = list(self._service.register(self._server))
        call_metrics.expect(_methods_of(services))
        self._health = EndingHealthServicer()
        for name in ("", *services):
            await self._health.set(name, HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = [*services, "grpc.health.v1.Health", reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)
        self.port = _bind(self._server, config, self._registry)
        await self._server.start()
        if config.health_port is not None:
            await self._start_health_server(self._health, config.health_host, config.health_port)
        if config.allow_insecure_bind:
            left = [field for field, host in config.open_addresses() if not is_loopback(host)]
            _log.info("open_without_encryption", fields=left)

        await self._service.start()
        interceptor.open = True
        for name in ("", *services):
            await self._health.set(name, HealthCheckResponse.SERVING)
        _log.info("serving", port=self.port, metrics_port=self.metrics_port)

    async def _start_health_server(self, servicer: EndingHealthServicer, host: str, port: int) -> None:
        self._health_server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._health_server)
        try:
            self.health_port = self._health_server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ServerStartError(f"health port {host}:{port}: {error}") from error
        await self._health_server.start()

    async def stop(self, *, grace_s: float) -> None:
        """Drain and free everything that is up."""
        if self._health is not None:
            _log.info("draining", grace_s=grace_s)
            await self._health.enter_graceful_shutdown()
            if grace_s > 0:
                await asyncio.sleep(self._config.drain_probe_period_s)
            self._health.end_watches()
        if self._server is not None:
            # Together: stopping refuses new calls at once, and draining lets the running ones come to an end.
            try:
                await asyncio.gather(self._server.stop(grace_s), self._service.drain())
            finally:
                await self._service.close()
                self._server = None
        if self._health_server is not None:
            await self._health_server.stop(None)
            self._health_server = None
        if self._metrics_server is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._metrics_server.close)
            self._metrics_server = None
            _log.info("stopped")


def run_service(service: Service, config: ServerConfig, registry: CollectorRegistry) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the process's exit code: 0, or 1 if it could not
    start.
    """
    configure_logging(config.log_level, config.log_format, service=service.name)
    register_process_metrics(registry, service=service.name)
    _log.info("configured", config=_without_passwords(config))
    try:
        asyncio.run(_serve(service, config, registry))
    except (AndonError, ServerStartError) as error:
        _log.error("start_failed", error=str(error), reason=getattr(error, "reason", "SERVER_START"))
        return 1
    return 0


async def _serve(service: Service, config: ServerConfig, registry: CollectorRegistry) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    running = RunningServer(service, config, registry)
    starting = asyncio.ensure_future(running.__aenter__())
    stop_wait = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, stop_wait}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        await starting
        ready = {"service": service.name, "port": running.port, "metrics_port": running.metrics_port}
        if running.health_port is not None:
            ready["health_port"] = running.health_port
        if isinstance(service, TalkativeService):
            ready.update(service.ready_facts)
        sys.stdout.write(f"ANDON_READY {json.dumps(ready)}\n")
        sys.stdout.flush()
        await stop_wait
    finally:
        stop_wait.cancel()
        if starting.exception() is None:
            await running.stop(grace_s=config.drain_grace_s)


def _bind(server: grpc.aio.Server, config: ServerConfig, registry: CollectorRegistry) -> int:
    """Open the gRPC port, encrypted where the config has certificates, and return its number."""
    address = f"{config.host}:{config.port}"
    try:
        if config.tls_files is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(
            address, ServerTls(config.tls_files, TlsMetrics(registry)).credentials()
        )
    except RuntimeError as error:
        raise ServerStartError(f"gRPC port {address}: {error}") from error


def _access_policy(service: Service, config: ServerConfig) -> AccessPolicy | None:
    """Who may call what: by the service's own tokens, or by the file of tokens, or nobody is asked."""
    if isinstance(service, GuardedService):
        return service.access_policy
    if config.tokens is None:
        return None
    if not isinstance(service, TokenGuardedService):
        raise ServerStartError(f"the {service.name} service has no roles, so it can have no tokens")
    return AccessPolicy(authenticator=TokenFile(config.tokens), roles_by_method=service.roles_by_method)


def _channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    keepalive_ms = int(config.keepalive_s * 1000)
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share the calls
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.max_connection_age_ms", int(config.max_connection_age_s * 1000)),
    ]


def _methods_of(services: Sequence[str]) -> list[tuple[str, str]]:
    pool = descriptor_pool.Default()
    return [(name, method.name) for name in services for method in pool.FindServiceByName(name).methods]


def _without_passwords(config: ServerConfig) -> object:
    """The config as plain values, with the password of any URL replaced."""
    text = re.sub(r"(://[^:/@\"]+):[^@\"]+@", r"\1:***@", config.model_dump_json())
    return json.loads(text)
