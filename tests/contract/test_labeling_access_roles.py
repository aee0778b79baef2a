"""Who may call which RPC of labeling, in whose name, and how long a token is good."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.rpc.errors import error_from_rpc
from services.labeling.access import ROLES_BY_METHOD
from services.labeling.accounts import Role
from tests.site import StartSite
from tests.tokens import ROLES, TOKENS, with_token

TIMEOUT_S = 30
PACKAGE = "andon.api.labeling.v1"

ANSWERING = {
    "LeaseTasks",
    "SubmitAnswers",
    "SkipTasks",
    "PullCord",
    "GetCord",
    "WatchCord",
    "ListCordEvents",
}
DATA = {
    "CreateProject",
    "ListProjects",
    "SubmitTasks",
    "ExportComparisons",
    "ImportComparisons",
    "GetProgress",
    "GetAgreement",
}
ALLOWED = {
    "labeler": ANSWERING,
    "service": ANSWERING | DATA,
    "researcher": ANSWERING | DATA | {"ReleaseCord", "CreateInvitation", "ListUsers"},
    "admin": ANSWERING
    | DATA
    | {"ReleaseCord", "CreateInvitation", "ListUsers", "CreateToken", "RevokeTokens", "UpdateUser"},
}

Connect = Callable[..., grpc.Channel]


def all_methods() -> dict[str, str]:
    """Path by method name, from the contract itself."""
    pool = descriptor_pool.Default()
    return {
        method.name: f"/{PACKAGE}.{service}/{method.name}"
        for service in ("LabelingService", "CordService", "AccessService")
        for method in pool.FindServiceByName(f"{PACKAGE}.{service}").methods
    }


def refusal(channel: grpc.Channel, path: str, metadata: Any = ()) -> str:
    """The reason with which an empty request is refused; empty when it is let in, or another reason."""
    call = channel.unary_stream(path)(b"", timeout=TIMEOUT_S, metadata=metadata)
    try:
        next(iter(call), None)
        return ""
    except grpc.RpcError as error:
        return error_from_rpc(error).reason
    finally:
        call.cancel()


def test_the_table_names_every_method_of_the_contract() -> None:
    assert set(ROLES_BY_METHOD) == set(all_methods().values())


def test_every_method_lets_in_exactly_its_roles(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    for name, role in ROLES.items():
        channel = connect(site.running, name)
        for method, path in all_methods().items():
            is_refused = refusal(channel, path) == "ROLE_NOT_ALLOWED"
            if method == "CreateInvitation" and role == "researcher":
                continue  # an empty request asks for no role; see the test of invitations
            assert is_refused == (method not in ALLOWED[role]), (role, method)


def test_every_method_needs_a_good_token(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    channel = connect(site.running, None)
    for path in all_methods().values():
        assert refusal(channel, path) == "MISSING_TOKEN"
        for wrong in ("Bearer wrong", "Basic " + TOKENS["admin"], TOKENS["admin"], "Bearer", ""):
            assert refusal(channel, path, (("authorization", wrong),)) == "INVALID_TOKEN", wrong


def test_health_and_reflection_stay_open(start_site: StartSite, connect: Connect) -> None:
    channel = connect(start_site().running, None)
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=TIMEOUT_S)
    names = {service.name for service in next(answers).list_services_response.service}
    assert f"{PACKAGE}.AccessService" in names


def test_tokens_are_good_until_they_are_revoked_or_too_old(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    plain = connect(site.running, None)
    path = all_methods()["GetProgress"]
    token = site.tokens.make(name="bot", role=Role.SERVICE, created_by="test").secret
    short = site.tokens.make(name="bot2", role=Role.SERVICE, created_by="test", wanted_lifetime_us=1).secret
    channel = with_token(plain, token)
    assert refusal(channel, path) == ""
    assert refusal(with_token(plain, short), path) == "INVALID_TOKEN"
    site.tokens.revoke_all("bot", actor="test")
    deadline_s = time.monotonic() + 5.0
    while refusal(channel, path) == "":
        assert time.monotonic() < deadline_s, "a revoked token is good for more than 5 s"
    assert refusal(channel, path) == "INVALID_TOKEN"


def test_closing_an_account_ends_its_tokens(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    site.add_account("lia", Role.LABELER)
    token = site.tokens.make(name="lia", role=Role.LABELER, created_by="test").secret
    channel = with_token(connect(site.running, None), token)
    site.accounts.update_user("lia", role=None, is_closed=True, actor="test")
    assert refusal(channel, all_methods()["GetCord"]) == "INVALID_TOKEN"
    site.accounts.update_user("lia", role=None, is_closed=False, actor="test")
    assert refusal(channel, all_methods()["GetCord"]) == "INVALID_TOKEN"


def test_a_stream_ends_when_its_token_does(start_site: StartSite, connect: Connect) -> None:
    site = start_site(cord_keepalive_s=0.05)
    token = site.tokens.make(name="bot", role=Role.SERVICE, created_by="test").secret
    stub = cord_grpc.CordServiceStub(with_token(connect(site.running, None), token))
    stream = stub.WatchCord(cord_pb2.WatchCordRequest(), timeout=TIMEOUT_S)
    next(stream)
    site.tokens.revoke_all("bot", actor="test")
    start_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    assert error_from_rpc(caught.value).reason == "INVALID_TOKEN"
    assert time.monotonic() - start_s < 5.5  # 5 s, and a moment for a busy machine


def test_labelers_act_in_their_own_name(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    admin = labeling_grpc.LabelingServiceStub(connect(site.running))
    candidates = [labeling_pb2.Candidate(text="a"), labeling_pb2.Candidate(text="b")]
    tasks = [labeling_pb2.Task(document="d", candidates=candidates, overlap_count=9)]
    admin.SubmitTasks(
        labeling_pb2.SubmitTasksRequest(request_id="1", batch="b", tasks=tasks), timeout=TIMEOUT_S
    )
    for caller, claimed, is_allowed in (
        ("lara", "", True),
        ("lara", "lara", True),
        ("lara", "rita", False),
        ("rita", "", True),
        ("rita", "lara", False),
        ("service", "lara", True),
        ("admin", "anybody", True),
    ):
        stub = labeling_grpc.LabelingServiceStub(connect(site.running, caller))
        request = labeling_pb2.LeaseTasksRequest(labeler_id=claimed)
        if is_allowed:
            stub.LeaseTasks(request, timeout=TIMEOUT_S)
        else:
            with pytest.raises(grpc.RpcError) as caught:
                stub.LeaseTasks(request, timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert error_from_rpc(caught.value).reason == "ANOTHER_LABELER"


def test_the_cord_knows_who_pulls_and_who_releases(start_site: StartSite, connect: Connect) -> None:
    site = start_site()
    stubs = {name: cord_grpc.CordServiceStub(connect(site.running, name)) for name in ROLES}

    def pull(caller: str, actor: str = "") -> str:
        request = cord_pb2.PullCordRequest(request_id=f"{caller}{actor}", actor=actor, reason="it rambles")
        return stubs[caller].PullCord(request, timeout=TIMEOUT_S).cord.actor

    assert pull("lara") == "lara"
    assert pull("service", "lara of the site") == "lara of the site"
    with pytest.raises(grpc.RpcError) as caught:
        pull("lara", "rita")
    assert error_from_rpc(caught.value).reason == "ANOTHER_LABELER"
    release = cord_pb2.ReleaseCordRequest(request_id="1", reason="mended")
    assert stubs["rita"].ReleaseCord(release, timeout=TIMEOUT_S).cord.actor == "rita"


def test_no_token_stands_in_the_log(
    start_site: StartSite, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    site = start_site()
    for name in (*ROLES, None):
        refusal(connect(site.running, name), all_methods()["UpdateUser"])
    wrong = (("authorization", "Bearer a-secret-typed-wrongly"),)
    refusal(connect(site.running, None), all_methods()["GetCord"], wrong)
    written = "".join(capfd.readouterr())
    assert "lara" in written
    assert "ROLE_NOT_ALLOWED" in written
    for secret in (*TOKENS.values(), "a-secret-typed-wrongly"):
        assert secret not in written
