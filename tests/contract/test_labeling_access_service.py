"""AccessService through its client: invitations, tokens, accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import access_service_pb2_grpc as access_grpc
from andon.client.access import AccessClient
from andon.client.cord import CordClient
from andon.errors import (
    AlreadyExistsError,
    AndonError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from andon.rpc.errors import error_from_rpc
from services.labeling.accounts import Role
from tests.passwords import PASSWORD
from tests.site import SiteUnderTest, StartSite
from tests.tokens import TOKENS

TIMEOUT_S = 30


@pytest.fixture
def client() -> Iterator[Callable[..., AccessClient]]:
    with ExitStack() as clients:

        def open_it(site: SiteUnderTest, name: str = "admin") -> AccessClient:
            return clients.enter_context(AccessClient(site.running.target, token=TOKENS[name]))

        yield open_it


def refused(kind: type[AndonError], reason: str, act: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.reason == reason


def test_an_invitation_leads_to_an_account(
    start_site: StartSite, client: Callable[..., AccessClient]
) -> None:
    site = start_site()
    access = client(site)
    invitation = access.invite("researcher", user="rosa", lifetime_s=3600)
    assert invitation.url.startswith(f"{site.url}/invitation/")
    left = invitation.expire_time - datetime.now(UTC)
    assert timedelta(minutes=55) < left < timedelta(minutes=61)
    path = invitation.url.removeprefix(site.url)
    fields = {"password": PASSWORD, "password_again": PASSWORD}
    assert site.stranger().submit(path, fields, page=path).status_code == 303
    (user,) = access.users()
    assert (user.user, user.role, user.closed) == ("rosa", "researcher", False)
    refused(AlreadyExistsError, "USER_EXISTS", lambda: access.invite("labeler", user="rosa"))


def test_researchers_invite_labelers_only(start_site: StartSite, client: Callable[..., AccessClient]) -> None:
    access = client(start_site(), "rita")
    assert access.invite("labeler").url
    for role in ("researcher", "admin"):
        refused(PermissionDeniedError, "ROLE_NOT_ALLOWED", lambda role=role: access.invite(role))
    refused(PermissionDeniedError, "ROLE_NOT_ALLOWED", lambda: access.invite("service"))
    assert list(access.users()) == []


def test_what_an_invitation_may_not_ask_for(
    start_site: StartSite, client: Callable[..., AccessClient]
) -> None:
    access = client(start_site())
    refused(InvalidArgumentError, "INVALID_ROLE", lambda: access.invite("service"))
    refused(InvalidArgumentError, "INVALID_ROLE", lambda: access.invite("boss"))
    refused(InvalidArgumentError, "INVALID_LABELER", lambda: access.invite("labeler", user="a b"))
    for lifetime_s in (0.0, -5.0, 91 * 86_400.0):
        refused(
            InvalidArgumentError,
            "INVALID_DURATION",
            lambda lifetime_s=lifetime_s: access.invite("labeler", lifetime_s=lifetime_s),
        )


def test_a_token_acts_in_its_name_and_role(
    start_site: StartSite, client: Callable[..., AccessClient]
) -> None:
    site = start_site()
    access = client(site)
    issued = access.make_token("bea", role="labeler")
    left = issued.expire_time - datetime.now(UTC)
    assert timedelta(days=364) < left < timedelta(days=366)
    with CordClient(site.running.target, token=issued.token) as cord:
        assert cord.pull(actor="", reason="it rambles").actor == "bea"
    with AccessClient(site.running.target, token=issued.token) as other:
        refused(PermissionDeniedError, "ROLE_NOT_ALLOWED", lambda: list(other.users()))
    access.make_token("bea", role="service")
    assert access.revoke_tokens("bea") == 2
    refused(NotFoundError, "TOKEN_NOT_FOUND", lambda: access.revoke_tokens("bea"))
    refused(NotFoundError, "TOKEN_NOT_FOUND", lambda: access.revoke_tokens("\x00"))
    refused(InvalidArgumentError, "INVALID_LABELER", lambda: access.make_token("", role="labeler"))
    refused(
        InvalidArgumentError,
        "INVALID_DURATION",
        lambda: access.make_token("bea", role="labeler", lifetime_s=3651 * 86_400),
    )


def test_accounts_are_listed_page_by_page(start_site: StartSite, client: Callable[..., AccessClient]) -> None:
    site = start_site()
    names = [f"user-{number}" for number in range(5)]
    for name in reversed(names):
        site.add_account(name, Role.LABELER)
    access = client(site)
    for page_size in (1, 2, 5, 1000):
        assert [user.user for user in access.users(page_size=page_size)] == names
    for wrong in (-1, 1001):
        refused(InvalidArgumentError, "INVALID_PAGE", lambda wrong=wrong: list(access.users(page_size=wrong)))
    stub = access_grpc.AccessServiceStub(access.channel)
    request = access_pb2.ListUsersRequest(page_token="\x00")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListUsers(request, timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {TOKENS['admin']}"),))
    assert error_from_rpc(caught.value).reason == "INVALID_PAGE"


def test_accounts_change_role_and_close_and_open(
    start_site: StartSite, client: Callable[..., AccessClient]
) -> None:
    site = start_site()
    site.add_account("root", Role.ADMIN)
    lara = site.person("lara", Role.LABELER)
    access = client(site)
    assert access.update_user("lara", role="researcher").role == "researcher"
    closed = access.update_user("lara", closed=True)
    assert (closed.role, closed.closed) == ("researcher", True)
    assert lara.get("/cord").status_code == 303
    assert access.update_user("lara", closed=False).closed is False
    assert access.update_user("lara").role == "researcher"
    refused(NotFoundError, "USER_NOT_FOUND", lambda: access.update_user("nobody", closed=True))
    refused(NotFoundError, "USER_NOT_FOUND", lambda: access.update_user("\x00", closed=True))
    refused(InvalidArgumentError, "INVALID_ROLE", lambda: access.update_user("lara", role="service"))
    for change in ({"role": "labeler"}, {"closed": True}):
        refused(
            FailedPreconditionError,
            "LAST_ADMIN",
            lambda change=change: access.update_user("root", **change),
        )


def test_a_duration_that_breaks_its_own_rules(
    start_site: StartSite, client: Callable[..., AccessClient]
) -> None:
    access = client(start_site())
    stub = access_grpc.AccessServiceStub(access.channel)
    for lifetime in (Duration(seconds=10**12), Duration(seconds=1, nanos=-1)):
        request = access_pb2.CreateTokenRequest(role=access_pb2.ROLE_LABELER, name="a", lifetime=lifetime)
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateToken(
                request, timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {TOKENS['admin']}"),)
            )
        assert error_from_rpc(caught.value).reason == "INVALID_DURATION"


def test_a_client_takes_its_token_from_the_environment(
    start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = start_site()
    monkeypatch.delenv("ANDON_TOKEN", raising=False)
    with AccessClient(site.running.target) as access:
        refused(UnauthenticatedError, "MISSING_TOKEN", lambda: list(access.users()))
    monkeypatch.setenv("ANDON_TOKEN", TOKENS["admin"] + "\n")
    with AccessClient(site.running.target) as access:
        assert list(access.users()) == []
