"""Decides who calls and whether they may: a token becomes a caller, a table of methods names the roles.

A service that hands over an :class:`AccessPolicy` is closed by default: a method that its table does not name
is refused, and so is a call without a token. Health and reflection stay open. What roles mean is the
service's own; here they are words. Servicers ask :func:`current_caller`. A token never appears in a log, an
error or a metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from andon.errors import PermissionDeniedError, UnauthenticatedError

METADATA_KEY = "authorization"
_SCHEME = "bearer"
MAX_TOKEN_CHARS = 4096

_caller: ContextVar[Caller | None] = ContextVar("andon_caller", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever holds the token of this call."""

    name: str
    role: str


class Authenticator(Protocol):
    """Knows the holders of tokens."""

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """The holder of the token with this SHA-256 in hexadecimal; None when there is none, or not any more.

        Only hashes are looked up, so how long it takes tells nothing about other tokens.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPolicy:
    """Who may call what."""

    authenticator: Authenticator
    roles_by_method: Mapping[str, Collection[str]]  # "/package.Service/Method" -> roles


@runtime_checkable
class GuardedService(Protocol):
    """A service that asks its callers who they are, beside what ``andon.rpc.service.Service`` asks for."""

    @property
    def access_policy(self) -> AccessPolicy:
        """Read once, before the first call."""
        ...


async def authenticate(
    policy: AccessPolicy,
    path: str,
    metadata: Sequence[tuple[str, str | bytes]],
    *,
    on_known: Callable[[Caller], None] = lambda caller: None,
) -> Caller:
    """The caller of method ``path``, who may call it. ``on_known`` hears of those too who may not.

    Raises UnauthenticatedError MISSING_TOKEN or INVALID_TOKEN, PermissionDeniedError ROLE_NOT_ALLOWED.
    """
    caller = await policy.authenticator.caller_of(hash_token(_token_of(metadata)))
    if caller is None:
        raise UnauthenticatedError("this token is not valid, or not any more", reason="INVALID_TOKEN")
    _caller.set(caller)
    on_known(caller)
    if caller.role not in policy.roles_by_method.get(path, ()):
        raise PermissionDeniedError(
            f"{caller.role} may not call {path.rpartition('/')[2]}",
            reason="ROLE_NOT_ALLOWED",
            role=caller.role,
            method=path.rpartition("/")[2],
        )
    return caller


def current_caller() -> Caller | None:
    """The caller of the running call; None where the service asks nobody."""
    return _caller.get()


def hash_token(token: str) -> str:
    """SHA-256 of a token, as hexadecimal: all that is ever kept or compared of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def bearer(token: str) -> tuple[str, str]:
    """The metadata entry that carries a token."""
    return METADATA_KEY, f"Bearer {token.strip()}"


class RecentCallers:
    """Remembers for a few seconds who holds a token, so that a crowd of callers does not ask the database.

    Only known tokens are remembered: unknown ones could be made up without end. A token that is revoked is
    good for at most ``lifetime_s`` more.
    """

    def __init__(
        self, authenticator: Authenticator, *, lifetime_s: float, max_entries: int, clock: Callable[[], float]
    ) -> None:
        self._authenticator = authenticator
        self._lifetime_s = lifetime_s
        self._max_entries = max_entries
        self._clock = clock
        self._entries: dict[str, tuple[float, Caller]] = {}  # in the order in which they were asked for

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """As the authenticator says, now or a moment ago."""
        now_s = self._clock()
        known = self._entries.get(token_sha256)
        if known is not None and now_s - known[0] < self._lifetime_s:
            return known[1]
        caller = await self._authenticator.caller_of(token_sha256)
        self._entries.pop(token_sha256, None)
        if caller is not None:
            while len(self._entries) >= self._max_entries:
                del self._entries[next(iter(self._entries))]
            # The time before the question: the answer may be as old as that.
            self._entries[token_sha256] = (now_s, caller)
        return caller


class FirstOf:
    """Asks several authenticators in turn."""

    def __init__(self, *authenticators: Authenticator) -> None:
        self._authenticators = authenticators

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """The first answer that names somebody."""
        for authenticator in self._authenticators:
            caller = await authenticator.caller_of(token_sha256)
            if caller is not None:
                return caller
        return None


def _token_of(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    values = [value for key, value in metadata if key.lower() == METADATA_KEY]
    if not values:
        raise UnauthenticatedError(
            "this call needs a token: metadata 'authorization: Bearer ...'", reason="MISSING_TOKEN"
        )
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or len(value) > MAX_TOKEN_CHARS:
        raise UnauthenticatedError("the authorization is not one bearer token", reason="INVALID_TOKEN")
    scheme, _space, token = value.partition(" ")
    if scheme.lower() != _SCHEME or not token.strip():
        raise UnauthenticatedError("the authorization is not a bearer token", reason="INVALID_TOKEN")
    return token.strip()
