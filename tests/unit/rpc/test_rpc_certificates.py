"""Files of certificates that can be used, and what is said of those that cannot."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from andon.errors import InvalidArgumentError
from andon.rpc.certificates import certificate_validity, read_authorities, read_identity
from andon.rpc.file_versions import files_version
from tests.certificates import Authority, CertificateFiles, write_files


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> CertificateFiles:
    return write_files(tmp_path / "pki", authority, authority.sign("server"))


def test_good_files_are_read_with_the_date_of_their_end(files, authority):
    leaf = authority.sign("other")
    files.write(leaf)
    identity = read_identity(files.certificate, files.key)
    assert (identity.certificate_chain, identity.private_key) == (leaf.certificate, leaf.key)
    assert identity.validity.not_after == leaf.not_after
    assert "PRIVATE" not in repr(identity)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (datetime(2050, 1, 1, tzinfo=UTC), datetime(2123, 4, 5, 6, 7, 8, tzinfo=UTC)),
        (datetime(1951, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_both_dates_are_those_that_another_library_wrote(begin, end, kind):
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if kind == "ec"
        else rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    # A long name makes for long lengths in the encoding.
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 60)] * 5)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    found = certificate_validity(certificate.public_bytes(serialization.Encoding.PEM), source=Path("c"))
    assert (found.not_before, found.not_after) == (begin, end)


def problem(files: CertificateFiles) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        read_identity(files.certificate, files.key)
    assert raised.value.reason == "TLS_FILES"
    return raised.value.message


def test_each_kind_of_wrong_file_is_named_with_what_is_wrong(files, authority):
    good = authority.sign("server")
    files.certificate.unlink()
    assert "tls.crt cannot be read as the certificate: No such file" in problem(files)
    files.write(good)
    files.key.write_bytes(authority.sign("another").key)
    assert "tls.key is not the key of the certificate" in problem(files)
    files.key.write_bytes(b"no key")
    assert "tls.key is not a PEM key without a password" in problem(files)
    files.write(good)
    files.certificate.write_bytes(b"\xff\xfe")
    assert "tls.crt holds no PEM certificate" in problem(files)
    files.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    assert "tls.crt holds no PEM certificate" in problem(files)
    files.write(authority.sign("late", ends_in=timedelta(hours=-1)))
    assert "tls.crt expired at " in problem(files)
    files.write(authority.sign("early", begins_in=timedelta(hours=1)))
    assert "tls.crt is not good before " in problem(files)


def test_a_key_with_a_password_is_refused_without_asking_for_it(files):
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "without a password" in problem(files)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff", b"-----BEGIN CERTIFICATE-----\n"])
def test_authorities_must_be_certificates(tmp_path, content, authority):
    path = tmp_path / "ca.crt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"ca\.crt holds no PEM certificates"):
        read_authorities(path)
    path.write_bytes(authority.pem)
    assert read_authorities(path) == authority.pem


def test_a_file_that_is_written_replaced_or_gone_has_another_version(tmp_path):
    path = tmp_path / "a"
    versions = [files_version(path)]
    path.write_text("1")
    versions.append(files_version(path))
    other = tmp_path / "b"
    other.write_text("1")
    other.replace(path)
    versions.append(files_version(path))
    assert len(set(versions)) == 3
    assert files_version(path) == versions[-1]
