"""Bearer tokens: what is taken for one, who may call what, how long an answer is remembered."""

import asyncio
import hashlib
from typing import Any

import pytest

from andon.errors import AndonError, PermissionDeniedError, UnauthenticatedError
from andon.rpc.auth import (
    AccessPolicy,
    Caller,
    FirstOf,
    RecentCallers,
    authenticate,
    bearer,
    current_caller,
    hash_token,
)

ANN = Caller(name="ann", role="labeler")
METHOD = "/andon.api.x.v1.X/Do"


class Known:
    """Knows tokens from a dict, and counts how often it is asked."""

    def __init__(self, **callers: Caller) -> None:
        self.callers = {
            hashlib.sha256(token.encode()).hexdigest(): caller for token, caller in callers.items()
        }
        self.num_asked = 0

    async def caller_of(self, token_sha256: str) -> Caller | None:
        self.num_asked += 1
        return self.callers.get(token_sha256)


def ask(metadata: list[tuple[str, Any]], *, roles: dict[str, set[str]] | None = None) -> Caller:
    policy = AccessPolicy(
        authenticator=Known(secret=ANN),
        roles_by_method={METHOD: {"labeler"}} if roles is None else roles,
    )
    return asyncio.run(authenticate(policy, METHOD, metadata))


def test_a_token_names_its_holder() -> None:
    assert ask([bearer("secret")]) == ANN
    assert ask([("authorization", "bearer   secret ")]) == ANN
    assert ask([("x-other", "1"), ("Authorization", "Bearer secret")]) == ANN


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "MISSING_TOKEN"),
        ([("authorization-bin", b"Bearer secret")], "MISSING_TOKEN"),
        ([("authorization", "secret")], "INVALID_TOKEN"),
        ([("authorization", "Basic secret")], "INVALID_TOKEN"),
        ([("authorization", "Bearer ")], "INVALID_TOKEN"),
        ([("authorization", "Bearer wrong")], "INVALID_TOKEN"),
        ([("authorization", b"Bearer secret")], "INVALID_TOKEN"),
        ([("authorization", "Bearer " + "x" * 5000)], "INVALID_TOKEN"),
        ([bearer("secret"), bearer("secret")], "INVALID_TOKEN"),
    ],
)
def test_what_is_no_good_token_is_refused_and_not_repeated(
    metadata: list[tuple[str, Any]], reason: str
) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        ask(metadata)
    assert caught.value.reason == reason
    assert "secret" not in f"{caught.value} {caught.value.metadata}"


@pytest.mark.parametrize("roles", [{}, {METHOD: set()}, {METHOD: {"admin"}}, {METHOD + "2": {"labeler"}}])
def test_a_method_is_closed_to_every_role_that_it_does_not_name(roles: dict[str, set[str]]) -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        ask([bearer("secret")], roles=roles)
    assert caught.value.reason == "ROLE_NOT_ALLOWED"


def test_the_caller_is_known_inside_of_the_call_only() -> None:
    policy = AccessPolicy(authenticator=Known(secret=ANN), roles_by_method={METHOD: {"labeler"}})

    async def call() -> Caller | None:
        await authenticate(policy, METHOD, [bearer("secret")])
        return current_caller()

    async def calls() -> tuple[Caller | None, Caller | None]:
        return await asyncio.create_task(call()), current_caller()

    assert asyncio.run(calls()) == (ANN, None)


def test_only_the_hash_is_asked_for() -> None:
    assert (
        hash_token("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_known_caller_is_remembered_for_a_while_and_no_longer() -> None:
    known, clock = Known(secret=ANN), Clock()
    recent = RecentCallers(known, lifetime_s=2.0, max_entries=10, clock=clock)
    secret = hash_token("secret")

    async def run() -> list[Caller | None]:
        seen = [await recent.caller_of(secret), await recent.caller_of(secret)]
        known.callers.clear()  # revoked
        clock.now_s += 1.9
        seen.append(await recent.caller_of(secret))
        clock.now_s += 0.1
        seen.append(await recent.caller_of(secret))
        return seen

    assert asyncio.run(run()) == [ANN, ANN, ANN, None]
    assert known.num_asked == 2


def test_unknown_tokens_are_asked_for_each_time_and_take_no_room() -> None:
    known, clock = Known(secret=ANN), Clock()
    recent = RecentCallers(known, lifetime_s=60.0, max_entries=1, clock=clock)

    async def run() -> None:
        await recent.caller_of(hash_token("secret"))
        for number in range(5):
            assert await recent.caller_of(hash_token(f"made up {number}")) is None
        await recent.caller_of(hash_token("secret"))

    asyncio.run(run())
    assert known.num_asked == 6


def test_the_memory_is_bounded() -> None:
    tokens = {f"t{number}": Caller(name=f"n{number}", role="labeler") for number in range(4)}
    known, clock = Known(**tokens), Clock()
    recent = RecentCallers(known, lifetime_s=60.0, max_entries=3, clock=clock)

    async def run() -> None:
        for token in tokens:
            await recent.caller_of(hash_token(token))
        assert known.num_asked == 4
        await recent.caller_of(hash_token("t3"))
        assert known.num_asked == 4
        await recent.caller_of(hash_token("t0"))  # the oldest had to go
        assert known.num_asked == 5

    asyncio.run(run())


def test_the_first_who_knows_the_token_answers() -> None:
    other = Caller(name="bob", role="admin")
    first, second = Known(a=ANN), Known(a=other, b=other)
    both = FirstOf(first, second)

    async def run() -> list[Caller | None]:
        return [await both.caller_of(hash_token(token)) for token in ("a", "b", "c")]

    assert asyncio.run(run()) == [ANN, other, None]


def test_an_authenticator_that_fails_lets_nobody_in() -> None:
    class Broken:
        async def caller_of(self, token_sha256: str) -> Caller | None:
            raise AndonError("no database")

    policy = AccessPolicy(authenticator=Broken(), roles_by_method={METHOD: {"labeler"}})
    with pytest.raises(AndonError, match="no database"):
        asyncio.run(authenticate(policy, METHOD, [bearer("secret")]))
