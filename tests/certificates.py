"""Certificates for tests: an authority, and what it signs, as files."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes
    not_after: datetime


class Authority:
    """Signs certificates for 127.0.0.1 and localhost."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            _builder(self._name, self._name, self._key, now - timedelta(days=1), now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        name: str,
        *,
        begins_in: timedelta = timedelta(days=-2),
        ends_in: timedelta = timedelta(days=2),
        host: str | None = None,
    ) -> Leaf:
        """A certificate of ``name``, good between two times as seen from now, for ``host`` alone if given."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        if host is not None:
            names = [x509.DNSName(host)]
        certificate = (
            _builder(subject, self._name, key, now + begins_in, now + ends_in)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            not_after=certificate.not_valid_after_utc,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where a process finds its certificate, its key and the authority that it trusts."""

    certificate: Path
    key: Path
    ca: Path

    def write(self, leaf: Leaf) -> None:
        """Put another certificate in place, file by file, each whole."""
        for path, content in ((self.certificate, leaf.certificate), (self.key, leaf.key)):
            temporary = path.with_name(f".{path.name}")
            temporary.write_bytes(content)
            temporary.replace(path)


def write_files(folder: Path, authority: Authority, leaf: Leaf) -> CertificateFiles:
    """The three files in a new folder."""
    folder.mkdir()
    files = CertificateFiles(certificate=folder / "tls.crt", key=folder / "tls.key", ca=folder / "ca.crt")
    files.ca.write_bytes(authority.pem)
    files.write(leaf)
    return files


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
