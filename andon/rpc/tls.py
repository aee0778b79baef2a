"""Decides what a server shows of itself on an encrypted port, and whose certificates it asks for.

``andon.rpc.server`` opens its port with ``ServerTls.credentials``. gRPC asks for the certificate again with
each new connection, so files that change are in use from the next connection on and running calls are not
cut. New files that cannot be used leave the old ones in use, with a warning and a metric: an operator has
until the old certificate expires.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import structlog

from andon.errors import InvalidArgumentError
from andon.rpc.certificates import Identity, read_authorities, read_identity
from andon.rpc.file_versions import FilesVersion, files_version
from andon.rpc.metrics import TlsMetrics

_log = structlog.stdlib.get_logger("andon.rpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None  # callers must show a certificate of one of these authorities

    @property
    def version(self) -> FilesVersion:
        """The present state of all of them."""
        own = files_version(self.certificate, self.key)
        return own if self.client_ca is None else own + files_version(self.client_ca)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMaterial:
    """What the files hold."""

    identity: Identity
    client_authorities: bytes | None


def read_server_material(files: TlsFiles) -> ServerMaterial:
    """Read all files. Raises InvalidArgumentError TLS_FILES."""
    return ServerMaterial(
        identity=read_identity(files.certificate, files.key),
        client_authorities=None if files.client_ca is None else read_authorities(files.client_ca),
    )


class ServerTls:
    """The present certificate of a server. gRPC's own threads ask it for news."""

    def __init__(self, files: TlsFiles, metrics: TlsMetrics) -> None:
        """Reads the files. Raises InvalidArgumentError TLS_FILES."""
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        self._version = files.version  # before the files are read: a change in between is then seen
        self._material = read_server_material(files)
        metrics.expiry.set(self._material.identity.validity.not_after.timestamp())

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._material),
            # gRPC takes None for "as before", which its type stubs forget.
            cast(Callable[[], grpc.ServerCertificateConfiguration], self.changed_configuration),
            require_client_authentication=self._files.client_ca is not None,
        )

    def changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new in the files since the last time; None while nothing is, or nothing usable."""
        with self._lock:
            version = self._files.version
            if version == self._version:
                return None
            self._version = version
            try:
                self._material = read_server_material(self._files)
            except InvalidArgumentError as error:
                self._metrics.rotations.labels("refused").inc()
                _log.warning("tls_files_refused", error=error.message)
                return None
            not_after = self._material.identity.validity.not_after
            self._metrics.rotations.labels("ok").inc()
            self._metrics.expiry.set(not_after.timestamp())
            _log.info("tls_files_read", not_after=not_after.isoformat())
            return _configuration(self._material)


def _configuration(material: ServerMaterial) -> grpc.ServerCertificateConfiguration:
    pair = (material.identity.private_key, material.identity.certificate_chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=material.client_authorities)
