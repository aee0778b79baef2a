"""Decides whether a client's connections are encrypted, and with which certificates: ANDON_TLS_* variables.

ANDON_TLS_CA names the authorities whose services are trusted, and with that every connection of this package
is encrypted. ANDON_TLS_CERTIFICATE and ANDON_TLS_KEY are what the client shows of itself where a service asks
for it. ``andon.client.channel`` opens a new channel when the files have changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from andon.errors import InvalidArgumentError
from andon.rpc.file_versions import FilesVersion, files_version

CA_VARIABLE = "ANDON_TLS_CA"
CERTIFICATE_VARIABLE = "ANDON_TLS_CERTIFICATE"
KEY_VARIABLE = "ANDON_TLS_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Paths of PEM files."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    @property
    def version(self) -> FilesVersion:
        """The present state of all files."""
        return files_version(*(path for path in (self.ca, self.certificate, self.key) if path is not None))

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel needs, from the files as they are now. Raises InvalidArgumentError TLS_FILES."""
        # Imported here: cryptography takes time to start that a plain connection must not.
        from andon.rpc.certificates import read_authorities, read_identity

        authorities = read_authorities(self.ca)
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(authorities)
        identity = read_identity(self.certificate, self.key)
        return grpc.ssl_channel_credentials(authorities, identity.private_key, identity.certificate_chain)


def tls_from_environment(environment: Mapping[str, str] = os.environ) -> ClientTls | None:
    """What the variables ask for; None where connections are plain.

    Raises InvalidArgumentError TLS_SETTINGS.
    """
    ca = environment.get(CA_VARIABLE)
    certificate, key = environment.get(CERTIFICATE_VARIABLE), environment.get(KEY_VARIABLE)
    if (not certificate) != (not key):
        raise InvalidArgumentError(
            f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} are given together", reason="TLS_SETTINGS"
        )
    if not ca:
        if certificate:
            raise InvalidArgumentError(
                f"{CERTIFICATE_VARIABLE} needs {CA_VARIABLE}, the authorities of the services",
                reason="TLS_SETTINGS",
            )
        return None
    if not certificate or not key:
        return ClientTls(ca=Path(ca))
    return ClientTls(ca=Path(ca), certificate=Path(certificate), key=Path(key))
