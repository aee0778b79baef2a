"""Decides whether a supervisor and its services will understand each other: all encrypted, or none.

The variables ANDON_TLS_* hold for every connection of a process, so those that are meant for a cluster would
make ``andon up`` wait in vain for its own plain services, and the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from andon.client.tls import CA_VARIABLE, tls_from_environment
from andon.errors import FailedPreconditionError

_SETTING = "tls_certificate"


def check_encryption(
    services: Iterable[str], *, config_files: Mapping[str, Path], environment: Mapping[str, str]
) -> None:
    """Raise FailedPreconditionError ENCRYPTION_DIFFERS where a service speaks otherwise than its callers.

    ``config_files`` are those that ``write_service_configs`` made.
    """
    is_client_encrypted = tls_from_environment(environment) is not None
    for service in services:
        is_service_encrypted = _is_encrypted(service, config_files.get(service), environment)
        if is_client_encrypted and not is_service_encrypted:
            raise FailedPreconditionError(
                f"{CA_VARIABLE} is set, but {service} here speaks plain text: unset the variable, or give "
                f"{service} a {_SETTING} for this machine",
                reason="ENCRYPTION_DIFFERS",
                service=service,
            )
        if is_service_encrypted and not is_client_encrypted:
            raise FailedPreconditionError(
                f"{service} has a {_SETTING}, but {CA_VARIABLE} is not set: nobody here would trust it",
                reason="ENCRYPTION_DIFFERS",
                service=service,
            )


def _is_encrypted(service: str, config_file: Path | None, environment: Mapping[str, str]) -> bool:
    if environment.get(f"ANDON_{service.upper()}_{_SETTING.upper()}"):
        return True
    if config_file is None:
        return False
    return bool(json.loads(config_file.read_text(encoding="utf-8")).get(_SETTING))
