"""Whom an OpenID Connect provider names, and what they may do here.

Authorization code with PKCE, state and nonce. The identity token counts only with a signature by one of the
provider's published keys and with this site as its audience; unsigned ones and those signed with a shared
secret are refused. A claim gives the role, anew at each sign-in; who gets none is refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import structlog
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]
from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from andon.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from services.labeling.accounts import MAX_NAME_CHARS, Role
from services.labeling.config import LabelingConfig
from services.labeling.identities import Identity

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
CLOCK_LEEWAY_S = 60
_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 1_000_000
_METADATA_LIFETIME_S = 3600.0
_KEYS_AGAIN_AFTER_S = 60.0  # an unknown key id asks for the keys at most so often
_MIGHT = (Role.LABELER, Role.RESEARCHER, Role.ADMIN)  # from least to most
_EMAIL = re.compile(r"[^\s\x00-\x1f]{1,320}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._@-]+")

# What a provider answers: JSON objects of any shape.
Json = dict[str, Any]

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInAttempt:
    """What binds the provider's answer to the browser that asked."""

    state: str
    nonce: str
    verifier: str


class OidcProvider:
    """One provider, asked over HTTP."""

    def __init__(self, config: LabelingConfig, http: httpx.AsyncClient | None = None) -> None:
        """The config names an issuer. The secret's file is read at each use, so that it can change."""
        self._config = config
        self._issuer = config.oidc_issuer or ""
        self._client_id = config.oidc_client_id or ""
        self._http = http or httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False)
        self._metadata: Json = {}
        self._metadata_s = 0.0
        self._keys: KeySet | None = None
        self._keys_s = 0.0

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def authorization_url(self, attempt: SignInAttempt, *, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        endpoint = str((await self._load_metadata())["authorization_endpoint"])
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client_id,
                "redirect_uri": redirect_uri,
                "scope": " ".join(self._config.oidc_scopes),
                "state": attempt.state,
                "nonce": attempt.nonce,
                "code_challenge": create_s256_code_challenge(attempt.verifier),
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"

    async def identity(self, code: str, attempt: SignInAttempt, *, redirect_uri: str) -> Identity:
        """Exchange the code and check the identity token.

        Raises UnauthenticatedError OIDC_REFUSED, PermissionDeniedError NO_ROLE, UnavailableError
        OIDC_UNAVAILABLE.
        """
        metadata = await self._load_metadata()
        answer = await self._ask(
            "POST",
            str(metadata["token_endpoint"]),
            data={
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect_uri,
                "code_verifier": attempt.verifier,
            },
            auth=httpx.BasicAuth(self._client_id, self._client_secret()),
        )
        id_token = answer.get("id_token")
        if not isinstance(id_token, str):
            raise _refused("no identity token")
        claims = await self._checked_claims(id_token, answer.get("access_token"), attempt.nonce)
        role = role_of(claims, self._config)
        if role is None:
            raise PermissionDeniedError(
                "your organisation gives you no role here; ask whoever runs this site", reason="NO_ROLE"
            )
        email = claims.get("email")
        return Identity(
            issuer=self._issuer,
            subject=str(claims["sub"]),
            wanted_name=name_of(claims, self._config.oidc_name_claim),
            email=email if isinstance(email, str) and _EMAIL.fullmatch(email) else None,
            role=role,
        )

    async def _checked_claims(self, id_token: str, access_token: object, nonce: str) -> Json:
        try:
            try:
                token = jwt.decode(id_token, await self._load_keys(), algorithms=ALGORITHMS)
            except InvalidKeyIdError:
                token = jwt.decode(id_token, await self._load_keys(again=True), algorithms=ALGORITHMS)
            claims = CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": self._issuer},
                    "aud": {"essential": True, "value": self._client_id},
                    "sub": {"essential": True},
                    "nonce": {"essential": True, "value": nonce},
                },
                {
                    "nonce": nonce,
                    "client_id": self._client_id,
                    "access_token": access_token if isinstance(access_token, str) else None,
                },
            )
            claims.validate(now=int(time.time()), leeway=CLOCK_LEEWAY_S)
        except (JoseError, ValueError) as error:
            raise _refused(f"identity token: {type(error).__name__} {error}") from error
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= 255 or "\x00" in subject:
            raise _refused("identity token: no subject")
        return dict(claims)

    async def _load_metadata(self) -> Json:
        now_s = time.monotonic()
        if self._metadata and now_s - self._metadata_s < _METADATA_LIFETIME_S:
            return self._metadata
        metadata = await self._ask("GET", self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if metadata.get("issuer") != self._issuer:
            raise _unavailable("it calls itself by another issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            scheme = urlsplit(str(metadata.get(name, ""))).scheme
            if scheme != "https" and scheme != urlsplit(self._issuer).scheme:
                raise _unavailable(f"its {name} is not https")
        self._metadata, self._metadata_s = metadata, now_s
        return metadata

    async def _load_keys(self, *, again: bool = False) -> KeySet:
        now_s = time.monotonic()
        age_s = now_s - self._keys_s
        known = self._keys
        if known is not None and age_s < (_KEYS_AGAIN_AFTER_S if again else _METADATA_LIFETIME_S):
            return known
        answer = await self._ask("GET", str((await self._load_metadata())["jwks_uri"]))
        keys = answer.get("keys")
        # A shared secret among the keys must not verify anything.
        public = [key for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
        public = [key for key in public if key.get("kty") in ("RSA", "EC", "OKP")]
        try:
            self._keys = KeySet.import_key_set({"keys": public})
        except (JoseError, ValueError) as error:
            raise _unavailable("its keys cannot be read") from error
        self._keys_s = now_s
        return self._keys

    async def _ask(
        self, method: str, url: str, *, data: Mapping[str, str] | None = None, auth: httpx.Auth | None = None
    ) -> Json:
        try:
            answer = await self._http.request(
                method, url, data=data, auth=auth, headers={"Accept": "application/json"}
            )
        except httpx.HTTPError as error:
            raise _unavailable(type(error).__name__) from error
        if data is not None and 400 <= answer.status_code < 500:
            raise _refused(f"the code was not taken: {answer.status_code}")
        if answer.status_code != 200 or len(answer.content) > _MAX_ANSWER_BYTES:
            raise _unavailable(f"status {answer.status_code}")
        try:
            content = answer.json()
        except ValueError as error:
            raise _unavailable("no JSON") from error
        if not isinstance(content, dict):
            raise _unavailable("no JSON object")
        return content

    def _client_secret(self) -> str:
        if self._config.oidc_client_secret is not None:
            return self._config.oidc_client_secret.get_secret_value()
        path = self._config.oidc_client_secret_file
        try:
            return "" if path is None else path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise _unavailable("the client secret's file cannot be read") from error


def role_of(claims: Mapping[str, Any], config: LabelingConfig) -> Role | None:
    """The most powerful role that the claim gives, else the default one, None for nobody of ours."""
    value = claims.get(config.oidc_role_claim)
    values = value if isinstance(value, list) else [value]
    given = {
        Role(config.oidc_roles[entry])
        for entry in values
        if isinstance(entry, str) and entry in config.oidc_roles
    }
    for role in reversed(_MIGHT):
        if role in given:
            return role
    return None if config.oidc_default_role is None else Role(config.oidc_default_role)


def name_of(claims: Mapping[str, Any], claim: str) -> str:
    """The claim as an account's name, with what names may not hold replaced; empty when there is none."""
    value = claims.get(claim)
    if not isinstance(value, str):
        return ""
    return _NOT_IN_NAMES.sub("-", value).strip("-")[: MAX_NAME_CHARS - 20]


def _refused(why: str) -> UnauthenticatedError:
    # Why is for the log: it may help whoever made the token up.
    _log.warning("oidc_refused", why=why)
    return UnauthenticatedError(
        "your organisation's sign-in was not accepted; try again", reason="OIDC_REFUSED"
    )


def _unavailable(why: str) -> UnavailableError:
    _log.warning("oidc_unavailable", why=why)
    return UnavailableError("your organisation's sign-in cannot be reached", reason="OIDC_UNAVAILABLE")
