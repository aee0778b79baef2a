"""Decides whether files of certificates and keys can be used, and says what is wrong with them.

Servers (``andon.rpc.tls``) and clients (``andon.client.tls``) read their files here, at the start and again
whenever ``andon.rpc.file_versions`` says that they have changed. Whether a peer's certificate is to be
trusted is gRPC's to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from andon.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when a certificate is good."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate chain and its key, as PEM. The key never appears in a log or an error."""

    certificate_chain: bytes
    private_key: bytes
    validity: Validity  # of the first certificate, which is the holder's own

    def __repr__(self) -> str:
        """Without the key."""
        return f"Identity(validity={self.validity!r})"


def read_identity(certificate: Path, key: Path, *, now: datetime | None = None) -> Identity:
    """The certificate and its key. Raises InvalidArgumentError TLS_FILES, saying which file and why."""
    chain, private_key = _read(certificate, "certificate"), _read(key, "key")
    validity = certificate_validity(chain, source=certificate)
    try:
        its_key = serialization.load_pem_private_key(private_key, password=None).public_key()
    except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise _error(key, "is not a PEM key without a password") from None
    if its_key != x509.load_pem_x509_certificates(chain)[0].public_key():
        raise _error(key, f"is not the key of the certificate {certificate}")
    present = now or datetime.now(UTC)
    if present > validity.not_after:
        raise _error(certificate, f"expired at {validity.not_after:%Y-%m-%d %H:%M:%S} UTC")
    if present < validity.not_before:
        raise _error(certificate, f"is not good before {validity.not_before:%Y-%m-%d %H:%M:%S} UTC")
    return Identity(certificate_chain=chain, private_key=private_key, validity=validity)


def read_authorities(path: Path) -> bytes:
    """The certificates of authorities, as PEM. Raises InvalidArgumentError TLS_FILES."""
    pem = _read(path, "file of authorities")
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise _error(path, "holds no PEM certificates") from None
    return pem


def certificate_validity(pem: bytes, *, source: Path) -> Validity:
    """The dates of the first certificate in ``pem``, which was read from ``source``."""
    try:
        first = x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise _error(source, "holds no PEM certificate") from None
    return Validity(not_before=first.not_valid_before_utc, not_after=first.not_valid_after_utc)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _error(path, f"cannot be read as the {what}: {error.strerror}") from error


def _error(path: Path, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"TLS file {path} {problem}", reason="TLS_FILES", path=path)
