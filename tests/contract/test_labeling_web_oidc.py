"""Signing in at a real OpenID Connect provider, which these tests serve, and at one that lies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from services.labeling.accounts import Role
from tests.site import Person, SiteUnderTest, StartSite

CLIENT_ID, CLIENT_SECRET = "andon", "the secret of the client"


class Provider:
    """A small provider: whoever comes is signed in at once as ``claims`` says."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
        self.published = [self.key]
        self.claims: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any]], str] = self.sign_well
        self.issuer_claimed: str | None = None
        self.codes: dict[str, dict[str, str]] = {}
        self.last_request: dict[str, str] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.get(self)

            def do_POST(self) -> None:
                provider.post(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def sign_well(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/.well-known/openid-configuration":
            answer(
                handler,
                {
                    "issuer": self.issuer_claimed or self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/jwks",
                    "id_token_signing_alg_values_supported": ["RS256", "none", "HS256"],
                },
            )
        elif url.path == "/jwks":
            answer(handler, {"keys": [key.as_dict(private=False) for key in self.published]})
        elif url.path == "/authorize":
            self.last_request = query
            code = f"code-{len(self.codes)}"
            self.codes[code] = query
            handler.send_response(302)
            back = urlencode({"code": code, "state": query["state"]})
            handler.send_header("Location", f"{query['redirect_uri']}?{back}")
            handler.end_headers()
        else:
            answer(handler, {}, status=404)

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        asked = self.codes.pop(form.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        right = (
            asked is not None
            and handler.headers["Authorization"] == f"Basic {basic}"
            and asked["code_challenge_method"] == "S256"
            and asked["code_challenge"] == base64.urlsafe_b64encode(challenge).rstrip(b"=").decode()
            and asked["redirect_uri"] == form["redirect_uri"]
        )
        if asked is None or not right:
            answer(handler, {"error": "invalid_grant"}, status=400)
            return
        now_s = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "sub": "subject-1",
            "iat": now_s,
            "exp": now_s + 300,
            "nonce": asked["nonce"],
            "preferred_username": "Zoë Müller",
            "email": "zoe@example.org",
            "groups": ["staff", "labelers"],
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        answer(handler, {"access_token": "a", "token_type": "Bearer", "id_token": self.sign(claims)})


def answer(handler: BaseHTTPRequestHandler, content: dict[str, Any], *, status: int = 200) -> None:
    raw = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


@pytest.fixture
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.close()


@pytest.fixture
def start(start_site: StartSite, provider: Provider) -> StartSite:
    def start_it(**fields: Any) -> SiteUnderTest:
        settings: dict[str, Any] = {
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            "oidc_roles": {"labelers": "labeler", "scientists": "researcher", "bosses": "admin"},
        }
        return start_site(**{**settings, **fields})

    return start_it


def travel(person: Person, path: str = "/sign-in/oidc?next=/cord") -> httpx.Response:
    """Leave for the provider, be signed in there, and come back."""
    there = person.get(path)
    assert there.status_code == 303
    return person.get(come_back_url(there))


def come_back_url(there: httpx.Response) -> str:
    with httpx.Client(trust_env=False) as client:
        return client.get(there.headers["location"]).headers["location"]


def test_somebody_whom_the_provider_names_gets_an_account_and_a_session(
    start: StartSite, provider: Provider
) -> None:
    site = start()
    person = site.stranger()
    assert "/sign-in/oidc?next=/cord" in person.get("/sign-in?next=/cord").text
    back = travel(person)
    assert (back.status_code, back.headers["location"]) == (303, "/cord")
    assert person.get("/cord").status_code == 200
    assert provider.last_request["scope"] == "openid profile email"
    (user,) = site.accounts.list_users(limit=10)
    assert (user.name, user.role) == ("Zo-M-ller", Role.LABELER)
    # The next time it is the same account, whatever they are called by then.
    provider.claims = {"preferred_username": "zoe"}
    assert travel(site.stranger()).status_code == 303
    assert len(site.accounts.list_users(limit=10)) == 1
    # It has no password, so no password fits.
    fields = {"name": user.name, "password": "no password fits this"}
    assert site.stranger().submit("/sign-in", fields, page="/sign-in").status_code == 401


def test_the_role_follows_the_provider_at_each_sign_in(start: StartSite, provider: Provider) -> None:
    site = start()
    for groups, role in (
        (["labelers", "bosses"], Role.ADMIN),
        ("scientists", Role.ADMIN),  # the last admin stays one
    ):
        provider.claims = {"groups": groups}
        assert travel(site.stranger()).status_code == 303
        assert [user.role for user in site.accounts.list_users(limit=10)] == [role]
    site.add_account("root", Role.ADMIN)
    assert travel(site.stranger()).status_code == 303
    user = site.accounts.find_user("Zo-M-ller")
    assert user is not None
    assert user.role is Role.RESEARCHER


@pytest.mark.parametrize("groups", [None, [], ["strangers"], 7, [["labelers"]], {"labelers": True}])
def test_who_is_given_no_role_is_refused(start: StartSite, provider: Provider, groups: object) -> None:
    site = start()
    provider.claims = {"groups": groups}
    person = site.stranger()
    refused = travel(person)
    assert refused.status_code == 403
    assert "gives you no role here" in refused.text
    assert site.accounts.list_users(limit=10) == []
    assert "andon" not in person.cookies


def test_a_default_role_lets_everybody_in(start: StartSite, provider: Provider) -> None:
    site = start(oidc_default_role="labeler")
    provider.claims = {"groups": None}
    assert travel(site.stranger()).status_code == 303


def test_a_name_that_somebody_has_is_not_taken_over(start: StartSite, provider: Provider) -> None:
    site = start()
    site.add_account("root", Role.ADMIN)
    provider.claims = {"preferred_username": "root"}
    assert travel(site.stranger()).status_code == 303
    names = {user.name: user.role for user in site.accounts.list_users(limit=10)}
    assert names.pop("root") is Role.ADMIN
    ((name, role),) = names.items()
    assert name.startswith("root-")
    assert role is Role.LABELER
    # Another subject who is called nothing at all gets a name too.
    provider.claims = {"preferred_username": "???", "sub": "subject-2"}
    assert travel(site.stranger()).status_code == 303
    assert len(site.accounts.list_users(limit=10)) == 3


def test_a_closed_account_stays_closed(start: StartSite) -> None:
    site = start()
    site.add_account("root", Role.ADMIN)
    assert travel(site.stranger()).status_code == 303
    site.accounts.update_user("Zo-M-ller", role=None, is_closed=True, actor="root")
    assert travel(site.stranger()).status_code == 401


LIES: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "somebody else"},
    "another audience, but for us": {"aud": "somebody else", "azp": CLIENT_ID},
    "several audiences, for another": {"aud": [CLIENT_ID, "somebody else"], "azp": "somebody else"},
    "another issuer": {"iss": "https://evil.example"},
    "expired": {"exp": 1_000_000_000},
    "no expiry": {"exp": None},
    "not yet": {"nbf": 9_000_000_000},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is no text": {"sub": 7},
}


def test_an_identity_token_that_lies_is_refused(start: StartSite, provider: Provider) -> None:
    site = start()
    for lie, claims in LIES.items():
        provider.claims = claims
        person = site.stranger()
        assert travel(person).status_code == 401, lie
        assert "andon" not in person.cookies
    assert site.accounts.list_users(limit=10) == []


def test_a_signature_that_is_none_is_refused(start: StartSite, provider: Provider) -> None:
    site = start()
    stranger_s_key = RSAKey.generate_key(2048, {"kid": "1"})
    unknown_key = RSAKey.generate_key(2048, {"kid": "2"})

    def encoded(*parts: dict[str, Any]) -> str:
        return ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts
        )

    def unsigned(claims: dict[str, Any]) -> str:
        return encoded({"alg": "none"}, claims) + "."

    def with_public_key_as_secret(claims: dict[str, Any]) -> str:
        # What fools those who let the token choose the algorithm.
        content = encoded({"alg": "HS256", "kid": "1"}, claims)
        digest = hmac.new(provider.key.as_pem(private=False), content.encode(), hashlib.sha256).digest()
        return f"{content}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"

    def cut(claims: dict[str, Any]) -> str:
        return provider.sign_well(claims)[:-4] + "AAAA"

    for name, sign in {
        "unsigned": unsigned,
        "another key": lambda claims: jwt.encode({"alg": "RS256", "kid": "1"}, claims, stranger_s_key),
        "an unknown key": lambda claims: jwt.encode({"alg": "RS256", "kid": "2"}, claims, unknown_key),
        "a shared secret": with_public_key_as_secret,
        "a broken signature": cut,
        "no token": lambda claims: "nonsense",
    }.items():
        provider.sign = sign
        person = site.stranger()
        assert travel(person).status_code == 401, name
        assert "andon" not in person.cookies
    assert site.accounts.list_users(limit=10) == []


def test_the_answer_counts_only_in_the_browser_that_asked(start: StartSite) -> None:
    site = start()
    attacker, victim = site.stranger(), site.stranger()
    url = come_back_url(attacker.get("/sign-in/oidc"))
    assert victim.get(url).status_code == 401  # never left
    victim.get("/sign-in/oidc")
    assert victim.get(url).status_code == 401  # left with another state
    code = parse_qs(urlsplit(url).query)["code"][0]
    assert attacker.get(f"/sign-in/oidc/callback?code={code}&state=wrong").status_code == 401
    assert attacker.get(f"/sign-in/oidc/callback?code={code}").status_code == 401
    assert attacker.get(f"{url}&error=access_denied".replace("code=", "c=")).status_code == 401
    assert attacker.get(url).status_code == 303
    assert attacker.get(url).status_code == 401  # a code is good once, and the cookie is gone


def test_the_way_back_leads_nowhere_else(start: StartSite) -> None:
    site = start()
    back = travel(site.stranger(), "/sign-in/oidc?next=https://evil.example/")
    assert back.headers["location"] == "/"


def test_a_new_key_of_the_provider_is_fetched_once(start: StartSite, provider: Provider) -> None:
    site = start()
    assert travel(site.stranger()).status_code == 303
    # Within a minute the keys are not asked for again, so that made-up key ids cost nothing.
    provider.key = RSAKey.generate_key(2048, {"kid": "9"})
    provider.published = [provider.key]
    provider.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": "9"}, claims, provider.key)
    assert travel(site.stranger()).status_code == 401


def test_a_provider_that_is_away_or_another_is_said_to_be_away(start: StartSite, provider: Provider) -> None:
    site = start()
    provider.issuer_claimed = "https://evil.example"
    away = site.stranger().get("/sign-in/oidc")
    assert away.status_code == 503
    assert site.stranger().get("/sign-in").status_code == 200


def test_without_a_provider_there_are_no_such_pages(start_site: StartSite) -> None:
    person = start_site().stranger()
    assert "/sign-in/oidc" not in person.get("/sign-in").text
    assert person.get("/sign-in/oidc").status_code == 404
    assert person.get("/sign-in/oidc/callback").status_code == 404
