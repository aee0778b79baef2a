"""Decides how Envoy shares the policy's traffic between stable and canary on one machine.

``andon up --canary`` writes both files and runs Envoy; the canary controller's static platform moves the
weights with ``write_routes``. The bootstrap is fixed; the routes are a file of their own that Envoy reads
again when another one is renamed into its place, so that no connection is cut by a change.

What a caller can rely on: a canary that is dead or draining does not cost calls, for its share goes to stable
after the first failed attempt and, once health checks have noticed, at once. Stable's share never goes to the
canary. Who asks for the canary by header gets the canary or UNAVAILABLE. Weights and models are not changed
through the split: UpdateWeights and LoadModel are refused here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from andon.errors import InvalidArgumentError

TRACK_HEADER = "x-andon-track"
CANARY = "canary"
ROUTES_NAME = "andon-policy"
ROUTES_FILE = "routes.json"
BOOTSTRAP_FILE = "bootstrap.json"

STABLE_CLUSTER = "policy-stable"
CANARY_CLUSTER = "policy-canary"
CANARY_ELSE_STABLE_CLUSTER = "policy-canary-else-stable"

HEALTH_INTERVAL_S = 1
_SERVICE = "andon.api.policy.v1.PolicyService"
_HEALTH_SERVICE = "grpc.health.v1.Health"
_HTTP_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANY = 100_000
_MAX_BODY_BYTES = 64 * 1024 * 1024  # as much of a request as may be kept for a second attempt

# JSON, to any depth.
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where something listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyPorts:
    """What Envoy itself listens on, and what stands behind it."""

    listener: Address
    admin: Address  # also metrics, under /stats/prometheus
    stable: Address
    canary: Address


def routes(canary_percent: int) -> Json:
    """The route table with so many hundredths of the traffic on the canary, as Envoy's file of routes.

    Raises InvalidArgumentError CANARY_PERCENT.
    """
    if not 0 <= canary_percent <= 100:
        raise InvalidArgumentError(
            f"the canary's share must be 0 to 100 percent, not {canary_percent}", reason="CANARY_PERCENT"
        )
    split = {
        "weighted_clusters": {
            "clusters": [
                {"name": STABLE_CLUSTER, "weight": 100 - canary_percent},
                {"name": CANARY_ELSE_STABLE_CLUSTER, "weight": canary_percent},
            ]
        }
    }
    prefix, health = {"prefix": f"/{_SERVICE}/"}, {"prefix": f"/{_HEALTH_SERVICE}/"}
    asks_for_canary = [{"name": TRACK_HEADER, "string_match": {"exact": CANARY}}]
    configuration = {
        "@type": _type("envoy.config.route.v3.RouteConfiguration"),
        "name": ROUTES_NAME,
        "virtual_hosts": [
            {
                "name": "policy",
                "domains": ["*"],
                "routes": [
                    *(_refused(f"/{_SERVICE}/{method}") for method in ("UpdateWeights", "LoadModel")),
                    {
                        "match": {**prefix, "headers": asks_for_canary},
                        "route": _route({"cluster": CANARY_CLUSTER}),
                    },
                    {"match": prefix, "route": _route(split)},
                    # Clients watch health through the split; what they mean is whether stable serves, unless
                    # they ask for the canary's.
                    {
                        "match": {**health, "headers": asks_for_canary},
                        "route": _route({"cluster": CANARY_CLUSTER}),
                    },
                    {
                        "match": health,
                        "route": _route({"cluster": STABLE_CLUSTER}),
                    },
                ],
            }
        ],
    }
    return {"version_info": str(canary_percent), "resources": [configuration]}


def canary_percent_of(content: Mapping[str, Any]) -> int:
    """The canary's share in a table that ``routes`` made. Raises InvalidArgumentError ROUTES."""
    try:
        found = int(content["version_info"])
    except (KeyError, TypeError, ValueError):
        raise InvalidArgumentError("this is no table of routes of Andon", reason="ROUTES") from None
    if content != routes(found):
        raise InvalidArgumentError("these routes were changed by somebody else", reason="ROUTES")
    return found


def write_routes(folder: Path, canary_percent: int) -> None:
    """Put the table into ``folder``, whole or not at all; Envoy takes it up within a moment."""
    _write(folder / ROUTES_FILE, routes(canary_percent))


def read_canary_percent(folder: Path) -> int:
    """The canary's share by the table in ``folder``.

    Raises InvalidArgumentError ROUTES where there is none that ``write_routes`` wrote.
    """
    path = folder / ROUTES_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise InvalidArgumentError(f"{path} is no table of routes", reason="ROUTES") from None
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{path} is no table of routes", reason="ROUTES")
    return canary_percent_of(content)


def write_bootstrap(folder: Path, ports: EnvoyPorts) -> Path:
    """Put Envoy's own configuration into ``folder``, beside the routes, and return its path."""
    path = folder / BOOTSTRAP_FILE
    _write(path, bootstrap(folder, ports))
    return path


def bootstrap(folder: Path, ports: EnvoyPorts) -> Json:
    """Envoy's configuration: one listener, three clusters, and routes from a file in ``folder``."""
    return {
        "node": {"id": "andon", "cluster": "andon"},
        "admin": {"address": _socket(ports.admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "policy",
                    "address": _socket(ports.listener),
                    "filter_chains": [{"filters": [_connection_manager(folder)]}],
                }
            ],
            "clusters": [
                _cluster(STABLE_CLUSTER, [ports.stable]),
                _cluster(CANARY_CLUSTER, [ports.canary]),
                _cluster(CANARY_ELSE_STABLE_CLUSTER, [ports.canary, ports.stable]),
            ],
        },
    }


def envoy_command(binary: str, bootstrap_file: Path) -> list[str]:
    """How Envoy is started: without hot restart, which would share memory between Envoys of one machine."""
    return [
        binary,
        "--config-path",
        str(bootstrap_file),
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
    ]


def _connection_manager(folder: Path) -> Json:
    source = {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / ROUTES_FILE),
            "watched_directory": {"path": str(folder)},
        },
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _type(
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            "stat_prefix": "policy",
            "codec_type": "HTTP2",
            # A call that samples for long is silent meanwhile; its own deadline ends it.
            "stream_idle_timeout": "0s",
            "rds": {"route_config_name": ROUTES_NAME, "config_source": source},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": _type("envoy.extensions.filters.http.router.v3.Router")},
                }
            ],
        },
    }


def _route(to: Json) -> Json:
    return {
        **to,
        # No limit of Envoy's own; the caller's deadline counts.
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        "retry_policy": {
            # Also after a reset or a cancellation in the middle, as by a server that ends: nothing that goes
            # through here writes.
            "retry_on": "connect-failure,refused-stream,reset,unavailable,cancelled",
            "num_retries": 3,
            "retry_back_off": {"base_interval": "0.05s", "max_interval": "1s"},
            # The next attempt goes to the next priority: from a dead canary to stable.
            "retry_priority": {
                "name": "envoy.retry_priorities.previous_priorities",
                "typed_config": {
                    "@type": _type(
                        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
                    ),
                    "update_frequency": 1,
                },
            },
        },
    }


def _refused(path: str) -> Json:
    return {"match": {"path": path}, "direct_response": {"status": 403}}


def _cluster(name: str, addresses: list[Address]) -> Json:
    """A cluster whose addresses stand in the order in which they are tried."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": _MAX_BODY_BYTES,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "priority": priority,
                    "lb_endpoints": [{"endpoint": {"address": _socket(address)}}],
                }
                for priority, address in enumerate(addresses)
            ],
        },
        # Envoy's own limits are low, for retries 3 at a time; what protects a model is its bounded queue.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _MANY,
                    "max_pending_requests": _MANY,
                    "max_requests": _MANY,
                    "max_retries": _MANY,
                }
            ]
        },
        # Nobody healthy is nobody: Envoy would otherwise spread calls over the dead.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [
            {
                "timeout": "2s",
                "interval": f"{HEALTH_INTERVAL_S}s",
                "no_traffic_interval": f"{HEALTH_INTERVAL_S}s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "always_log_health_check_failures": False,
                "grpc_health_check": {"service_name": _SERVICE},
            }
        ],
        "typed_extension_protocol_options": {
            _HTTP_PROTOCOL: {
                "@type": _type(_HTTP_PROTOCOL),
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def _socket(address: Address) -> Json:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _type(name: str) -> str:
    return f"type.googleapis.com/{name}"


def _write(path: Path, content: Json) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
