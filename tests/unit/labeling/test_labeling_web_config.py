"""What the site may be told, and what it refuses to be told."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from andon.rpc.config import load_config
from services.labeling.config import LabelingConfig
from services.labeling.web.server import WebServer

OIDC = {"oidc_issuer": "https://id.example.org", "oidc_client_id": "andon"}
TLS = {"web_tls_certificate": Path("a.crt"), "web_tls_key": Path("a.key")}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"web_host": "0.0.0.0"}, "web_host"),
        ({"web_host": "labels.example.org"}, "web_host"),
        ({"web_tls_certificate": "a.crt"}, "given together"),
        ({"web_tls_key": "a.key"}, "given together"),
        ({"web_public_url": "labels.example.org"}, "not an address"),
        ({"web_public_url": "ftp://labels.example.org"}, "not an address"),
        ({"web_public_url": "https://labels.example.org/site"}, "not an address"),
        ({"web_public_url": "https://labels.example.org?x=1"}, "scheme and host only"),
        ({"web_public_url": "https://ann@labels.example.org"}, "scheme and host only"),
        ({"session_hours": 1, "session_idle_hours": 2}, "longer than session_hours"),
        ({"session_hours": 0}, "session_hours"),
        ({"oidc_client_id": "andon"}, "need oidc_issuer"),
        ({"oidc_client_secret": "s"}, "need oidc_issuer"),
        (OIDC, "one of oidc_client_secret"),
        ({**OIDC, "oidc_client_secret": "s", "oidc_client_secret_file": "f"}, "one of oidc_client_secret"),
        ({"oidc_issuer": "https://id.example.org", "oidc_client_secret": "s"}, "oidc_client_id"),
        ({"oidc_roles": {"staff": "boss"}}, "oidc_roles"),
        ({"oidc_roles": {"staff": "service"}}, "oidc_roles"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        LabelingConfig(**fields)


def test_an_address_that_others_reach_needs_tls_or_a_word() -> None:
    assert LabelingConfig(web_host="0.0.0.0", **TLS).web_host == "0.0.0.0"
    assert LabelingConfig(web_host="0.0.0.0", allow_insecure_bind=True).web_host == "0.0.0.0"
    with pytest.raises(ValidationError, match="host"):
        LabelingConfig(host="0.0.0.0", **TLS)  # the certificate is the site's, not the RPCs'


@pytest.mark.parametrize(
    ("fields", "url", "is_secure"),
    [
        ({}, "http://127.0.0.1:0", False),
        ({"web_host": "::1"}, "http://[::1]:0", False),
        (TLS, "https://127.0.0.1:0", True),
        ({"web_public_url": "https://labels.example.org/"}, "https://labels.example.org", True),
        ({"web_public_url": "http://labels.example.org"}, "http://labels.example.org", False),
    ],
)
def test_where_people_find_the_site(fields: dict[str, Any], url: str, is_secure: bool) -> None:
    config = LabelingConfig(**fields)
    assert WebServer(config).url == url
    assert config.is_site_secure is is_secure


def test_secrets_stay_out_of_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(
        LabelingConfig,
        service="labeling",
        argv=["--oidc-issuer", "https://id.example.org", "--oidc-client-id", "andon"],
        environment={"ANDON_LABELING_OIDC_CLIENT_SECRET": "very-secret"},
    )
    assert config.oidc_client_secret is not None
    assert config.oidc_client_secret.get_secret_value() == "very-secret"
    logging.getLogger(__name__).warning("%s %r %s", config, config, config.model_dump_json())
    assert "very-secret" not in caplog.text


def test_lists_and_maps_come_from_the_environment() -> None:
    config = load_config(
        LabelingConfig,
        service="labeling",
        argv=[],
        environment={
            "ANDON_LABELING_WEB_TRUSTED_PROXIES": "10.0.0.0/8,127.0.0.1",
            "ANDON_LABELING_OIDC_ROLES": '{"staff": "labeler"}',
        },
    )
    assert config.web_trusted_proxies == ["10.0.0.0/8", "127.0.0.1"]
    assert config.oidc_roles == {"staff": "labeler"}
