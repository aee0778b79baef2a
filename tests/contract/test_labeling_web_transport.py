"""The site under TLS and behind proxies, its start and its end."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from andon.rpc.server import RunningServer, ServerStartError
from services.labeling.accounts import Role
from services.labeling.config import LabelingConfig
from services.labeling.schema import sign_in_failures
from services.labeling.service import LabelingService
from tests.passwords import PASSWORD, add_with_password
from tests.site import SiteUnderTest, StartSite, form_token


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One engine: nothing here depends on it."""
    return f"sqlite:///{tmp_path}/labeling.sqlite3"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "site.crt", tmp_path / "site.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


def test_under_tls_cookies_are_bound_to_the_host(
    start_site: StartSite, certificate: tuple[Path, Path]
) -> None:
    site = start_site(web_tls_certificate=certificate[0], web_tls_key=certificate[1])
    assert site.url.startswith("https://127.0.0.1:")
    add_with_password(site, "ann")
    person = site.stranger(verify=ssl.create_default_context(cafile=str(certificate[0])))
    page = person.get("/sign-in")
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    fields = {"csrf": form_token(page.text), "name": "ann", "password": PASSWORD}
    answer = person.post("/sign-in", data=fields, headers={"Origin": site.url})
    assert answer.status_code == 303
    cookies = answer.headers.get_list("set-cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        assert cookie.startswith("__Host-andon")
        assert "Secure" in cookie
        assert "HttpOnly" in cookie
        assert "Path=/" in cookie
    assert person.get("/cord").status_code == 200
    # Another protocol on this port is no site.
    with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.HTTPError):
        plain.get(site.url.replace("https", "http"))


def test_a_proxy_that_is_trusted_names_the_browser(start_site: StartSite) -> None:
    site = start_site(web_trusted_proxies=["127.0.0.1"])
    guess_often(site, header_changes=True, expected=[401] * 12)


def test_a_browser_cannot_name_itself(start_site: StartSite) -> None:
    site = start_site()
    guess_often(site, header_changes=True, expected=[401] * 10 + [429] * 2)


def guess_often(site: SiteUnderTest, *, header_changes: bool, expected: list[int]) -> None:
    add_with_password(site, "ann")
    person = site.stranger()
    token = form_token(person.get("/sign-in").text)
    statuses = []
    for number in range(len(expected)):
        headers = {"X-Forwarded-For": f"192.0.2.{number}"} if header_changes else {}
        fields = {"csrf": token, "name": "ann", "password": "wrong password"}
        statuses.append(person.post("/sign-in", data=fields, headers=headers).status_code)
    assert statuses == expected


def test_behind_a_proxy_that_ends_tls_forms_come_from_the_public_address(start_site: StartSite) -> None:
    site = start_site(web_public_url="https://labels.example.org", web_trusted_proxies=["127.0.0.1"])
    address = f"http://127.0.0.1:{site.service.ready_facts['web_port']}"
    host = {"Host": "labels.example.org"}
    with httpx.Client(base_url=address, trust_env=False, headers=host) as proxy:
        page = proxy.get("/sign-in")
        assert "Secure" in page.headers["set-cookie"]
        cookie = page.headers["set-cookie"].partition(";")[0]
        fields = {"csrf": form_token(page.text), "name": "ann", "password": "wrong password"}
        for origin, status in (("https://labels.example.org", 401), (address, 403)):
            headers = {"Cookie": cookie, "Origin": origin}
            assert proxy.post("/sign-in", data=fields, headers=headers).status_code == status


def test_a_taken_port_and_a_wrong_certificate_end_the_start(
    start_site: StartSite, serve: Callable[..., RunningServer], tmp_path: Path
) -> None:
    taken = start_site().service.ready_facts["web_port"]
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for fields in (
        {"web_port": taken},
        {"web_port": 0, "web_tls_certificate": broken, "web_tls_key": broken},
        {"web_port": 0, "web_tls_certificate": tmp_path / "none", "web_tls_key": broken},
    ):
        config = LabelingConfig(
            port=0, metrics_port=0, database=f"sqlite:///{tmp_path}/other.sqlite3", **fields
        )
        registry = CollectorRegistry()
        with pytest.raises(ServerStartError):
            serve(LabelingService(config, registry), config, registry)


def test_running_requests_end_before_the_site_does(
    start_site: StartSite, server_loop: asyncio.AbstractEventLoop
) -> None:
    site = start_site()
    slow = PasswordHasher(time_cost=20, memory_cost=16 * 1024, parallelism=1)  # some tenths of a second
    site.add_account("ann", Role.LABELER, password_hash=slow.hash(PASSWORD))
    person = site.stranger()
    token = form_token(person.get("/sign-in").text)
    fields = {"csrf": token, "name": "ann", "password": PASSWORD}
    query = sa.select(sa.func.count()).select_from(sign_in_failures)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(person.post, "/sign-in", data=fields)
        deadline_s = time.monotonic() + 30
        while not site.database.read(lambda connection: connection.execute(query).scalar_one()):
            assert time.monotonic() < deadline_s  # from then on the password is being compared
        stopping = asyncio.run_coroutine_threadsafe(site.running.stop(grace_s=10.0), server_loop)
        assert answer.result(30).status_code == 303
        stopping.result(30)
    with pytest.raises(httpx.ConnectError):
        site.stranger().get("/healthz")


def test_pages_that_nobody_has_visited_stand_at_zero(start_site: StartSite) -> None:
    """So that the first visit of each is an increase, which Prometheus shows."""
    site = start_site()
    metrics = httpx.Client(base_url=f"http://127.0.0.1:{site.running.metrics_port}", trust_env=False)

    def visits() -> dict[str, float]:
        families = text_string_to_metric_families(metrics.get("/metrics").text)
        seconds = next(family for family in families if family.name == "andon_site_request_seconds")
        return {
            sample.labels["page"]: sample.value
            for sample in seconds.samples
            if sample.name.endswith("_count")
        }

    with metrics:
        before = visits()
        assert {"/", "/cord", "/people", "/inbox/{item}", "/alerts"} <= set(before)
        assert set(before.values()) == {0.0}
        httpx.get(f"{site.url}/cord", trust_env=False)
        assert visits() == {**before, "/cord": 1.0}
