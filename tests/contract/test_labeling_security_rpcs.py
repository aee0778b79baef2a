"""Who may call which RPC: every method of every service with every kind of token, over real gRPC.

The methods come from the descriptors, so that a new one fails here until its roles are written down; what
they are is written here a second time, and a third time in the comments of the contract.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as pb
from services.labeling.access import ROLES_BY_METHOD
from services.labeling.accounts import Role, hash_secret
from tests.labeling_rpcs import METHODS, bearer, request_class
from tests.labeling_world import World, serve_world
from tests.tokens import TOKENS

EVERYBODY = frozenset(Role)
DATA = EVERYBODY - {Role.LABELER}
RESEARCHERS = frozenset({Role.RESEARCHER, Role.ADMIN})
ADMINS = frozenset({Role.ADMIN})

ROLES: Mapping[str, frozenset[Role]] = {
    "CreateProject": DATA,
    "ListProjects": DATA,
    "SubmitTasks": DATA,
    "LeaseTasks": EVERYBODY,
    "SubmitAnswers": EVERYBODY,
    "SkipTasks": EVERYBODY,
    "ExportComparisons": DATA,
    "ImportComparisons": DATA,
    "GetProgress": DATA,
    "GetAgreement": DATA,
    "PullCord": EVERYBODY,
    "ReleaseCord": RESEARCHERS,
    "WatchCord": EVERYBODY,
    "GetCord": EVERYBODY,
    "ListCordEvents": EVERYBODY,
    "CreateInvitation": RESEARCHERS,
    "CreateToken": ADMINS,
    "RevokeTokens": ADMINS,
    "ListUsers": RESEARCHERS,
    "UpdateUser": ADMINS,
}
TOKEN_OF_ROLE = {
    Role.LABELER: TOKENS["lara"],
    Role.RESEARCHER: TOKENS["rita"],
    Role.ADMIN: TOKENS["admin"],
    Role.SERVICE: TOKENS["service"],
}
PROTOS = Path(__file__).parents[2] / "protos" / "andon" / "api" / "labeling" / "v1"
Metadata = tuple[tuple[str, str | bytes], ...]


@pytest.fixture(scope="module")
def world(
    server_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rpcs")
    with serve_world(server_loop, f"sqlite:///{folder}/labeling.sqlite3", folder) as world:
        world.must("SubmitTasks", world.tasks(lambda field: field, 2))
        yield world


def acting_request(method: MethodDescriptor) -> Message:
    """A request that would change something if it were let in."""
    requests: dict[str, Any] = {
        "CreateProject": pb.CreateProjectRequest(project="intruder"),
        "LeaseTasks": pb.LeaseTasksRequest(labeler_id="lara"),
        "PullCord": {"request_id": "r", "reason": "because"},
        "ReleaseCord": {"request_id": "r", "reason": "because"},
        "CreateInvitation": access_pb2.CreateInvitationRequest(role=access_pb2.ROLE_LABELER),
        "CreateToken": access_pb2.CreateTokenRequest(role=access_pb2.ROLE_ADMIN, name="intruder"),
        "RevokeTokens": access_pb2.RevokeTokensRequest(name="lara"),
        "UpdateUser": access_pb2.UpdateUserRequest(user="lara", role=access_pb2.ROLE_ADMIN, closed=False),
        "ImportComparisons": pb.ImportComparisonsRequest(request_id="r", project="default", batch="b"),
    }
    found = requests.get(method.name, {})
    return request_class(method)(**found) if isinstance(found, dict) else found


def bad_credentials(world: World) -> dict[str, tuple[Metadata, str]]:
    """Every way to come without a good token, and the reason that is to be told."""
    tokens = world.site.tokens
    expired = tokens.make(name="bot", role=Role.ADMIN, created_by="test", wanted_lifetime_us=1).secret
    revoked = tokens.make(name="bot-2", role=Role.ADMIN, created_by="test").secret
    tokens.revoke_all("bot-2", actor="test")
    closed = tokens.make(name="closed", role=Role.ADMIN, created_by="test").secret
    world.site.add_account("closed", Role.ADMIN)
    world.site.accounts.update_user("closed", role=None, is_closed=True, actor="test")
    good = TOKENS["admin"]
    session = world.people[Role.ADMIN].cookies["andon"]
    return {
        "none": ((), "MISSING_TOKEN"),
        "another header": ((("x-authorization", f"Bearer {good}"),), "MISSING_TOKEN"),
        "as a cookie": ((("cookie", f"andon={session}"),), "MISSING_TOKEN"),
        "unknown": (bearer("x" * 43), "INVALID_TOKEN"),
        "empty": ((("authorization", ""),), "INVALID_TOKEN"),
        "no token": ((("authorization", "Bearer "),), "INVALID_TOKEN"),
        "no scheme": ((("authorization", good),), "INVALID_TOKEN"),
        "another scheme": ((("authorization", f"Basic {good}"),), "INVALID_TOKEN"),
        "twice": ((*bearer(good), *bearer(good)), "INVALID_TOKEN"),
        "two in one": ((("authorization", f"Bearer {good}, Bearer {good}"),), "INVALID_TOKEN"),
        "too long": (bearer("x" * 5000), "INVALID_TOKEN"),
        "its hash": (bearer(hash_secret(good)), "INVALID_TOKEN"),
        "a beginning": (bearer(good[:-1]), "INVALID_TOKEN"),
        "other letters": (bearer(good.upper()), "INVALID_TOKEN"),
        "a session's": (bearer(session), "INVALID_TOKEN"),
        "expired": (bearer(expired), "INVALID_TOKEN"),
        "revoked": (bearer(revoked), "INVALID_TOKEN"),
        "of a closed account": (bearer(closed), "INVALID_TOKEN"),
    }


def test_every_method_declares_its_roles() -> None:
    assert {path.rpartition("/")[2] for path in METHODS} == set(ROLES)
    assert {path: ROLES[path.rpartition("/")[2]] for path in METHODS} == ROLES_BY_METHOD


def test_the_contract_s_comments_name_the_same_roles() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in PROTOS.glob("*_service.proto"))
    found = re.findall(r"((?:^  //.*\n)+)  rpc (\w+)\(", text, re.MULTILINE)
    assert {name for _comment, name in found} == set(ROLES)
    num_named = 0
    for comment, name in found:
        words = re.search(r"Roles: ([a-z, ]+)", " ".join(comment.replace("//", " ").split()))
        if words is not None:
            num_named += 1
            assert frozenset(map(Role, words[1].split(", "))) == ROLES[name], name
    assert num_named >= 11


def test_nobody_is_let_in_without_a_good_token(world: World) -> None:
    credentials = bad_credentials(world)
    before = world.fingerprint()
    wrong = []
    for method in METHODS.values():
        for words, (metadata, reason) in credentials.items():
            outcome = world.rpcs.call(method, acting_request(method), metadata=metadata)
            is_told = any(token in outcome.words for token in TOKENS.values())
            if (outcome.code, outcome.reason, is_told) != ("UNAUTHENTICATED", reason, False):
                wrong.append((method.name, words, outcome))
    assert wrong == []
    assert world.fingerprint() == before


def test_wrong_roles_are_refused_and_change_nothing(world: World) -> None:
    in_database = {
        role: world.site.tokens.make(name=f"a-{role}", role=role, created_by="test").secret for role in Role
    }
    before = world.fingerprint()
    wrong, num_refused = [], 0
    for method in METHODS.values():
        for role in EVERYBODY - ROLES[method.name]:
            for token in (TOKEN_OF_ROLE[role], in_database[role]):
                outcome = world.rpcs.call(method, acting_request(method), metadata=bearer(token))
                num_refused += 1
                if (outcome.code, outcome.reason) != ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED"):
                    wrong.append((method.name, role, outcome))
    assert wrong == []
    assert num_refused == 2 * sum(len(EVERYBODY - roles) for roles in ROLES.values())
    assert world.fingerprint() == before


def test_a_refused_caller_s_bytes_are_not_even_read(world: World) -> None:
    for method in METHODS.values():
        outcome = world.rpcs.call(method, b"\xff\xff\xff", metadata=bearer("x" * 43))
        assert outcome.code == "UNAUTHENTICATED", method.name


def test_right_roles_are_let_in(world: World) -> None:
    wrong = []
    for method in METHODS.values():
        for role in ROLES[method.name]:
            outcome = world.rpcs.call(method, request_class(method)(), metadata=bearer(TOKEN_OF_ROLE[role]))
            if outcome.code not in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"):
                wrong.append((method.name, role, outcome))
    assert wrong == []


def test_nobody_acts_for_others_but_admins_and_services(world: World) -> None:
    requests = {
        "LeaseTasks": {"labeler_id": "somebody"},
        "SubmitAnswers": {"labeler_id": "somebody", "request_id": "r"},
        "SkipTasks": {"labeler_id": "somebody", "request_id": "r"},
        "PullCord": {"actor": "somebody", "request_id": "r", "reason": "because"},
        "ReleaseCord": {"actor": "somebody", "request_id": "r", "reason": "because"},
    }
    before = world.fingerprint()
    for name, fields in requests.items():
        (method,) = [method for method in METHODS.values() if method.name == name]
        for role in (Role.LABELER, Role.RESEARCHER):
            if role not in ROLES[name]:
                continue
            request = request_class(method)(**fields)
            outcome = world.rpcs.call(method, request, metadata=bearer(TOKEN_OF_ROLE[role]))
            assert (outcome.code, outcome.reason) == ("PERMISSION_DENIED", "ANOTHER_LABELER"), (name, role)
    assert world.fingerprint() == before


def test_researchers_invite_labelers_only(world: World) -> None:
    for role in (access_pb2.ROLE_RESEARCHER, access_pb2.ROLE_ADMIN):
        request = access_pb2.CreateInvitationRequest(role=role)
        outcome = world.call("CreateInvitation", request, by="rita")
        assert (outcome.code, outcome.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    request = access_pb2.CreateInvitationRequest(role=access_pb2.ROLE_LABELER)
    assert world.call("CreateInvitation", request, by="rita").code == "OK"


def test_no_token_stands_in_the_log(world: World) -> None:
    log = world.log_path.read_text(encoding="utf-8")
    assert "INVALID_TOKEN" in log
    assert not [token for token in TOKENS.values() if token in log]
