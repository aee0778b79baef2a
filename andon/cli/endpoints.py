"""Decides where each service is: a flag over ANDON_<SERVICE>_TARGET over the home's endpoints.json over
loopback.

``andon up`` writes ``endpoints.json`` into its home; every other command reads it, so that a plain ``andon
score`` finds the services that run in this folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from andon.errors import InvalidArgumentError

HOME_VARIABLE = "ANDON_HOME"
STORE_VARIABLE = "ANDON_STORE"
DEFAULT_HOME = Path("andon-home")
ENDPOINTS_FILE = "endpoints.json"

# In the order in which they are started; the trainer calls all others.
SERVICES = ("labeling", "reference", "reward", "policy", "trainer")

# What `andon up --canary` runs besides: a second policy process, the proxy that splits the traffic, and the
# controller that moves the split.
POLICY_CANARY = "policy-canary"
ENVOY = "envoy"
CANARY = "canary"
CANARY_PARTS = (POLICY_CANARY, ENVOY, CANARY)

DEFAULT_GRPC_PORTS: Mapping[str, int] = {
    "policy": 50051,
    "reference": 50052,
    "reward": 50053,
    "labeling": 50054,
    "trainer": 50055,
    CANARY: 50056,
    ENVOY: 50050,
    POLICY_CANARY: 50061,
}
DEFAULT_METRICS_PORTS: Mapping[str, int] = {
    "policy": 9101,
    "reference": 9102,
    "reward": 9103,
    "labeling": 9104,
    "trainer": 9105,
    CANARY: 9106,
    ENVOY: 9100,
    POLICY_CANARY: 9111,
}

# The labeling site, beside the labeling service's gRPC.
DEFAULT_WEB_PORT = 8054


def store_location(flag: str | None, *, home: Path | None = None) -> str:
    """The model store that this command works with: the flag, or store in the home."""
    return flag or str(home_folder(home) / "store")


def home_folder(flag: Path | None = None) -> Path:
    """The home that this command works in: the flag, ANDON_HOME, or ./andon-home."""
    if flag is not None:
        return flag
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)


def find_target(service: str, flag: str | None = None, *, home: Path | None = None) -> str:
    """Where ``service`` is reached."""
    if flag:
        return flag
    variable = os.environ.get(f"ANDON_{service.upper()}_TARGET")
    if variable:
        return variable
    endpoints = read_endpoints(home_folder(home))
    return endpoints.get(service, f"127.0.0.1:{DEFAULT_GRPC_PORTS[service]}")


def read_endpoints(home: Path) -> dict[str, str]:
    """The addresses that ``andon up`` wrote; empty when nothing runs there."""
    path = home / ENDPOINTS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidArgumentError(
            f"{path} is not JSON: {error}; remove it and start `andon up` again", reason="INVALID_ENDPOINTS"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(target, str) for target in content.values()):
        raise InvalidArgumentError(
            f"{path} does not map services to addresses; remove it and start `andon up` again",
            reason="INVALID_ENDPOINTS",
        )
    return content


def write_endpoints(home: Path, targets: Mapping[str, str]) -> None:
    """Records the addresses, whole or not at all."""
    temporary = home / f".{ENDPOINTS_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(dict(targets), indent=2) + "\n", encoding="utf-8")
    temporary.replace(home / ENDPOINTS_FILE)


def remove_endpoints(home: Path) -> None:
    """Forgets the addresses: the services are going down."""
    (home / ENDPOINTS_FILE).unlink(missing_ok=True)
