"""Decides whether files of certificates and keys can be used, and says what is wrong with them.

Servers (``andon.rpc.tls``) and clients (``andon.client.tls``) read their files here, at the start and again
whenever ``FilesVersion`` says that they have changed. The standard library checks that key and certificate
belong together but does not tell how long a certificate is good, so its two dates are read from the DER here;
nothing else in it is looked at. Whether a peer's certificate is to be trusted is gRPC's to decide.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from andon.errors import InvalidArgumentError

# What tells one state of some files from another: mtime, size and inode of each, None for one that is gone.
FilesVersion: TypeAlias = tuple[tuple[int, int, int] | None, ...]

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _EXPLICIT_VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0


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


def files_version(*paths: Path) -> FilesVersion:
    """The present state of the files; equal states mean that nothing has to be read again."""
    return tuple(_file_version(path) for path in paths)


def read_identity(certificate: Path, key: Path, *, now: datetime | None = None) -> Identity:
    """The certificate and its key. Raises InvalidArgumentError TLS_FILES, saying which file and why."""
    chain, private_key = _read(certificate, "certificate"), _read(key, "key")
    validity = certificate_validity(chain, source=certificate)
    try:
        # An empty password: without one the library would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _error(key, f"is not the key of the certificate {certificate}") from None
        raise _error(key, "is not a PEM key without a password") from None
    except OSError as error:
        raise _error(key, f"cannot be read: {error.strerror}") from error
    if (chain, private_key) != (_read(certificate, "certificate"), _read(key, "key")):
        raise _error(certificate, "changed while it was read")
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
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise _error(path, "holds no PEM certificates") from None
    return pem


def certificate_validity(pem: bytes, *, source: Path) -> Validity:
    """The dates of the first certificate in ``pem``, which was read from ``source``."""
    found = _PEM.search(pem.decode("ascii", "replace"))
    if found is None:
        raise _error(source, "holds no PEM certificate")
    try:
        return _validity(ssl.PEM_cert_to_DER_cert(found.group()))
    except (ValueError, IndexError):
        raise _error(source, "holds no readable certificate") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Element:
    """One element of DER: its tag, its content, and where the next one begins."""

    tag: int
    content: bytes
    end: int


def _element(der: bytes, start: int) -> _Element:
    tag, length = der[start], der[start + 1]
    begin = start + 2
    if length & 0x80:
        num_bytes = length & 0x7F
        length = int.from_bytes(der[begin : begin + num_bytes], "big")
        begin += num_bytes
    content = der[begin : begin + length]
    if len(content) != length:
        raise ValueError("cut off")
    return _Element(tag=tag, content=content, end=begin + length)


def _validity(der: bytes) -> Validity:
    """RFC 5280, 4.1: Certificate{TBSCertificate{[0] version, serial, algorithm, issuer, Validity, ...}}."""
    certificate = _element(der, 0)
    to_be_signed = _element(certificate.content, 0).content
    element = _element(to_be_signed, 0)
    expected = [_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE]
    if element.tag == _EXPLICIT_VERSION:
        element = _element(to_be_signed, element.end)
    for position, tag in enumerate(expected):
        if element.tag != tag:
            raise ValueError("not a certificate")
        if position < len(expected) - 1:
            element = _element(to_be_signed, element.end)
    first = _element(element.content, 0)
    second = _element(element.content, first.end)
    return Validity(not_before=_time(first), not_after=_time(second))


def _time(element: _Element) -> datetime:
    text = element.content.decode("ascii")
    if element.tag == _UTC_TIME:
        # RFC 5280, 4.1.2.5.1: two digits from 50 on belong to the twentieth century.
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif element.tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _file_version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _error(path, f"cannot be read as the {what}: {error.strerror}") from error


def _error(path: Path, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"TLS file {path} {problem}", reason="TLS_FILES", path=path)
