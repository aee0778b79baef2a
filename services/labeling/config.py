"""What the labeling service can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from andon.rpc.config import Port, ServerConfig
from services.labeling.database import parse_url


class LabelingConfig(ServerConfig):
    """Flags, ANDON_LABELING_* variables or a file; see ``andon.rpc.config``."""

    port: Port = 50054
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9104
    """Prometheus port; 0 takes a free one."""
    database: str = "sqlite:///andon-home/labeling.sqlite3"
    """SQLAlchemy URL. A new SQLite file and its folder are made."""
    database_lock_wait_s: float = Field(default=5.0, gt=0)
    """How long a write waits for another process before the call answers UNAVAILABLE."""
    database_readers: int = Field(default=2, ge=1, le=64)
    """Threads that read from the database."""
    max_queued_calls: int = Field(default=500, ge=1)
    """Database calls that may wait or run; further ones answer RESOURCE_EXHAUSTED."""
    default_lease_s: float = Field(default=1800.0, gt=0)
    """How long a task is a labeler's who did not say how long they need."""
    max_lease_s: float = Field(default=7 * 86400.0, gt=0)
    """The longest lease."""
    max_text_chars: int = Field(default=200_000, ge=1)
    """The longest document or candidate."""
    cord_keepalive_s: float = Field(default=1.0, gt=0)
    """A watcher of the cord hears the state at least this often."""
    cord_poll_s: float = Field(default=0.25, gt=0)
    """How often this process looks whether another one on the same database has touched the cord."""
    figures_interval_s: float = Field(default=30.0, gt=0)
    """How often the figures of people's labeling in the metrics are computed anew, in the background."""
    figures_answers: int = Field(default=2_000, ge=1, le=50_000)
    """Over how many of the newest answers the labelers' agreement is taken."""
    figures_recent_known: int = Field(default=100, ge=1, le=1_000)
    """So many of the newest answers to known items are "recent", those before them "baseline"."""
    figures_active_s: float = Field(default=900.0, gt=0)
    """Whoever has answered within this time is an active labeler."""
    export_page_comparisons: int = Field(default=500, ge=1)
    """Comparisons read from the database at a time."""
    export_poll_s: float = Field(default=1.0, gt=0)
    """How often an export that follows looks for answers that another process recorded."""
    seed: str | None = None
    """Fixes the order of tasks and candidates of a new database; drawn at random when absent."""

    tokens_file: Path | None = None
    """YAML or JSON list of {name, role, token or token_sha256}, beside the tokens in the database. Only its
    owner and group may read it. Read again when it changes.
    """
    web_host: str = "127.0.0.1"
    """Address of the site."""
    web_port: Port = 8054
    """Port of the site; 0 takes a free one and says which in the ready line."""
    web_tls_certificate: Path | None = None
    """PEM file with the site's certificate chain; with it the site speaks https only."""
    web_tls_key: Path | None = None
    """PEM file with the certificate's key."""
    web_public_url: str | None = None
    """How people reach the site, for links and where a proxy ends TLS, for example
    "https://labels.example.org". Requests for other hosts are refused then.
    """
    web_trusted_proxies: list[str] = Field(default=[])
    """Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed."""
    web_max_body_bytes: int = Field(default=2 * 1024 * 1024, ge=1024)
    """The largest form; larger ones are answered with 413."""
    session_hours: float = Field(default=12.0, gt=0, le=24 * 90)
    """How long a sign-in lasts."""
    session_idle_hours: float = Field(default=4.0, gt=0, le=24 * 90)
    """How long a sign-in lasts without a request."""
    oidc_issuer: str | None = None
    """URL of an OpenID Connect provider; with it people may sign in there."""
    oidc_client_id: str | None = None
    """The client id that the provider gave to this site."""
    oidc_client_secret: SecretStr | None = None
    """The client secret; better in ANDON_LABELING_OIDC_CLIENT_SECRET or a file than in a flag."""
    oidc_client_secret_file: Path | None = None
    """File with the client secret."""
    oidc_scopes: list[str] = Field(default=["openid", "profile", "email"])
    """What the provider is asked for."""
    oidc_name_claim: str = "preferred_username"
    """The claim of the identity token that becomes the name of a new account."""
    oidc_role_claim: str = "groups"
    """The claim, a text or a list of texts, that says what somebody may do."""
    oidc_roles: dict[str, Literal["labeler", "researcher", "admin"]] = Field(default={})
    """Which value of the role claim gives which role; the most powerful one counts."""
    oidc_default_role: Literal["labeler", "researcher", "admin"] | None = None
    """The role of those whom no value gives one; without it they are refused."""

    def open_addresses(self) -> list[tuple[str, str]]:
        """Also the site's, unless it speaks https."""
        addresses = super().open_addresses()
        if self.web_tls_certificate is None:
            addresses.append(("web_host", self.web_host))
        return addresses

    @field_validator("web_public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError("not an address such as https://labels.example.org")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("must be scheme and host only")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_pairs(self) -> LabelingConfig:
        if self.tokens is not None:
            raise ValueError("tokens: this service has roles of its own and takes tokens_file")
        if (self.web_tls_certificate is None) != (self.web_tls_key is None):
            raise ValueError("web_tls_certificate and web_tls_key are given together")
        if self.session_idle_hours > self.session_hours and "session_idle_hours" in self.model_fields_set:
            raise ValueError("session_idle_hours is longer than session_hours")
        secrets = [self.oidc_client_secret, self.oidc_client_secret_file]
        if self.oidc_issuer is None:
            if self.oidc_client_id is not None or any(secret is not None for secret in secrets):
                raise ValueError("the oidc_ settings need oidc_issuer")
            return self
        if self.oidc_client_id is None or sum(secret is not None for secret in secrets) != 1:
            raise ValueError(
                "oidc_issuer needs oidc_client_id and one of oidc_client_secret and oidc_client_secret_file"
            )
        return self

    @property
    def is_site_secure(self) -> bool:
        """Whether browsers reach the site over https, here or at a proxy."""
        public = self.web_public_url or ""
        return self.web_tls_certificate is not None or public.startswith("https:")

    @field_validator("database")
    @classmethod
    def _check_database(cls, url: str) -> str:
        parse_url(url)
        return url
