"""Decides how a client reaches a service: address, balancing, health, retries, message sizes, keepalive.

Every client in this package opens its channel here. The policy in one place: names are resolved by DNS and
calls spread round robin over the replicas that call themselves healthy; UNAVAILABLE is tried again, at most
four times in all with growing, jittered pauses, because every write carries a request id; nothing else is
repeated. Connections are encrypted where the environment says so, see ``andon.client.tls``, and follow the
files that it names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from andon.client.tls import tls_from_environment

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How a channel behaves; the defaults fit services on one machine and inside one cluster."""

    max_message_bytes: int = 64 * MEBIBYTE  # both ways, for one message; the servers' own limit
    keepalive_s: float = 30.0  # a silent peer is asked for a sign of life after so long
    keepalive_timeout_s: float = 10.0  # and given up after so long
    max_attempts: int = 4  # for UNAVAILABLE, the first attempt included; gRPC allows at most 5
    initial_backoff_s: float = 0.2  # before the second attempt, times a random factor
    max_backoff_s: float = 3.0
    reconnect_backoff_s: float = 1.0  # at most so long between two attempts to connect
    tls_server_name: str | None = None  # that the peer's certificate must have, where it is not the target's


def service_config(service_name: str, options: ChannelOptions) -> str:
    """The gRPC service config, as JSON, for a channel to the service with this full protobuf name."""
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": service_name},
            "methodConfig": [
                {
                    "name": [{}],
                    "retryPolicy": {
                        "maxAttempts": options.max_attempts,
                        "initialBackoff": f"{options.initial_backoff_s}s",
                        "maxBackoff": f"{options.max_backoff_s}s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


def open_channel(target: str, *, service_name: str, options: ChannelOptions | None = None) -> grpc.Channel:
    """A channel to ``target``: "host:port", or a gRPC name such as "dns:///policy:50051" or "unix:path".

    Raises InvalidArgumentError TLS_SETTINGS or TLS_FILES where ANDON_TLS_* ask for what cannot be.
    """
    chosen = options or ChannelOptions()
    return connect(
        target,
        [
            ("grpc.max_send_message_length", chosen.max_message_bytes),
            ("grpc.max_receive_message_length", chosen.max_message_bytes),
            ("grpc.keepalive_time_ms", round(chosen.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(chosen.keepalive_timeout_s * 1000)),
            ("grpc.initial_reconnect_backoff_ms", round(chosen.reconnect_backoff_s * 200)),
            ("grpc.min_reconnect_backoff_ms", round(chosen.reconnect_backoff_s * 200)),
            ("grpc.max_reconnect_backoff_ms", round(chosen.reconnect_backoff_s * 1000)),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", service_config(service_name, chosen)),
            *(
                []
                if chosen.tls_server_name is None
                else [("grpc.ssl_target_name_override", chosen.tls_server_name)]
            ),
        ],
    )


def connect(target: str, options: Sequence[tuple[str, str | int]] = ()) -> grpc.Channel:
    """A channel with gRPC's own options, plain or encrypted as the environment says."""
    tls = tls_from_environment()
    if tls is None:
        return grpc.insecure_channel(target, options)
    # Imported here: it logs, and the library of logs takes time to start that a plain connection must not.
    from andon.client.rotation import RotatingChannel

    return RotatingChannel(
        lambda: grpc.secure_channel(target, tls.credentials(), options), lambda: tls.version
    )
