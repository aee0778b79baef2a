"""How sessions and failed sign-ins are kept. Methods block their thread.

A session belongs to a browser; its cookie holds the token of which only the SHA-256 stands here. Role and
closing are read from the account each time, so a change acts on the next request. How often a sign-in may
fail is decided in :mod:`services.labeling.accounts`.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.labeling.accounts import (
    ACCOUNT_LIMIT,
    ADDRESS_LIMIT,
    FAILURE_WINDOW_US,
    KNOWN_ADDRESS_US,
    PAIR_LIMIT,
    FailureLimit,
    Failures,
    Role,
    User,
    after_failure,
    hash_secret,
    new_secret,
    wait_us,
)
from services.labeling.database import Database, lock_name
from services.labeling.errors import SignInRefusedError, TooManyFailuresError
from services.labeling.schema import sessions, sign_in_failures, users

_KNOWN = "known:"  # keys of addresses from which an account was signed in to
_FAILURES = "sign_in_failures"  # the lock under which they are counted: passwords are slower anyway
_SEEN_EVERY_US = 60_000_000  # the time of the last request is kept this exactly
# Made once: every page runs it, and making a statement costs more than running it.
_FIND = (
    sa.select(sessions, users.c.role, users.c.is_closed, users.c.create_us.label("user_us"))
    .join(users, users.c.name == sessions.c.user_name)
    .where(
        sessions.c.token_sha256 == sa.bindparam("token_sha256"),
        sessions.c.expire_us > sa.bindparam("now_us"),
        sessions.c.seen_us > sa.bindparam("seen_after_us"),
        users.c.is_closed.is_(sa.false()),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A signed-in browser."""

    token_sha256: str
    user: User
    csrf_token: str
    seen_us: int
    expire_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTimes:
    """How long a session lasts."""

    absolute_us: int  # from the sign-in
    idle_us: int  # from the last request


class SessionStore:
    """Sessions in a database."""

    def __init__(self, database: Database, *, clock: Callable[[], int], times: SessionTimes) -> None:
        self._database = database
        self._clock = clock
        self._times = times

    def find(self, token: str) -> Session | None:
        """The session of a cookie; None when it has ended or its account is closed."""

        def work(connection: sa.Connection) -> Session | None:
            now_us = self._clock()
            row = connection.execute(
                _FIND,
                {
                    "token_sha256": hash_secret(token),
                    "now_us": now_us,
                    "seen_after_us": now_us - self._times.idle_us,
                },
            ).one_or_none()
            if row is None:
                return None
            return Session(
                token_sha256=row.token_sha256,
                user=User(
                    name=row.user_name,
                    role=Role(row.role),
                    is_closed=row.is_closed,
                    create_us=row.user_us,
                ),
                csrf_token=row.csrf_token,
                seen_us=row.seen_us,
                expire_us=row.expire_us,
            )

        return self._database.read(work)

    def needs_touch(self, session: Session) -> bool:
        """Whether the session was last seen so long ago that :meth:`touch` is due."""
        return self._clock() - session.seen_us >= _SEEN_EVERY_US

    def touch(self, session: Session) -> None:
        """Note that the session is in use."""
        query = (
            sa.update(sessions)
            .where(sessions.c.token_sha256 == session.token_sha256)
            .values(seen_us=self._clock())
        )
        self._database.write(lambda connection: connection.execute(query))

    def begin(self, user_name: str, *, ended_token: str | None) -> str:
        """Start a session and return its token, which is always a new one.

        ``ended_token`` is the session that the browser had before. Raises SIGN_IN_REFUSED when the account
        has been closed meanwhile.
        """
        token = new_secret()

        def work(connection: sa.Connection) -> str:
            now_us = self._clock()
            is_open = connection.execute(
                sa.select(users.c.name)
                .where(users.c.name == user_name, users.c.is_closed.is_(sa.false()))
                .with_for_update(read=True)
            ).first()
            if is_open is None:
                raise SignInRefusedError()
            connection.execute(
                sa.delete(sessions).where(
                    sa.or_(
                        sa.and_(sessions.c.user_name == user_name, sessions.c.expire_us <= now_us),
                        sessions.c.token_sha256 == hash_secret(ended_token or ""),
                    )
                )
            )
            connection.execute(
                sa.insert(sessions).values(
                    token_sha256=hash_secret(token),
                    user_name=user_name,
                    csrf_token=new_secret(),
                    create_us=now_us,
                    seen_us=now_us,
                    expire_us=now_us + self._times.absolute_us,
                )
            )
            return token

        return self._database.write(work)

    def end(self, token: str) -> None:
        """End a session; one that has ended already is no error."""
        query = sa.delete(sessions).where(sessions.c.token_sha256 == hash_secret(token))
        self._database.write(lambda connection: connection.execute(query))

    # Failed attempts

    def count_attempt(self, user_name: str, *, address: str) -> None:
        """Count a sign-in as failed before it is looked at, so that many at once cannot pass the limit.

        Raises TOO_MANY_FAILURES. :meth:`forgive` takes it back when the sign-in succeeds.
        """
        pair, place, account, known = _keys(user_name, address)

        def work(connection: sa.Connection) -> None:
            now_us = self._clock()
            limits = [(pair, PAIR_LIMIT), (place, ADDRESS_LIMIT)]
            if not _is_known(connection, known, now_us=now_us):
                limits.append((account, ACCOUNT_LIMIT))
            _count(connection, limits, now_us=now_us)

        self._database.write(work)

    def forgive(self, user_name: str, *, address: str) -> None:
        """Take back the attempt that has succeeded, and remember the address as one of this account's."""
        pair, place, account, known = _keys(user_name, address)

        def work(connection: sa.Connection) -> None:
            lock_name(connection, _FAILURES)
            table = sign_in_failures
            connection.execute(sa.delete(table).where(table.c.key.in_((pair, known))))
            connection.execute(
                sa.update(table)
                .where(table.c.key.in_((place, account)), table.c.num_failures > 0)
                .values(num_failures=table.c.num_failures - 1)
            )
            connection.execute(
                sa.insert(table).values(key=known, num_failures=0, window_start_us=self._clock())
            )

        self._database.write(work)

    def count_wrong_link(self, *, address: str) -> None:
        """Count an invitation that is not valid. Raises TOO_MANY_FAILURES."""
        limits = [(_key("link", address), ADDRESS_LIMIT)]
        self._database.write(lambda connection: _count(connection, limits, now_us=self._clock()))


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _keys(user_name: str, address: str) -> tuple[str, str, str, str]:
    """Keys of the pair, the address, the account and the known pair."""
    network = network_of(address)
    return (
        _key("pair", user_name, network),
        _key("address", network),
        _key("account", user_name),
        _KNOWN + hash_secret("\n".join((user_name, network))),
    )


def _key(kind: str, *parts: str) -> str:
    # Hashed, because names come as long and as strange as anybody types them.
    return f"{kind}:{hash_secret(chr(10).join(parts))}"


def _count(connection: sa.Connection, limits: Sequence[tuple[str, FailureLimit]], *, now_us: int) -> None:
    lock_name(connection, _FAILURES)
    table = sign_in_failures
    found = {
        row.key: Failures(num_failures=row.num_failures, window_start_us=row.window_start_us)
        for row in connection.execute(sa.select(table).where(table.c.key.in_([key for key, _ in limits])))
    }
    waiting_us = wait_us([(found.get(key), limit) for key, limit in limits], now_us=now_us)
    if waiting_us > 0:
        raise TooManyFailuresError(math.ceil(waiting_us / 1e6))
    _forget_old(connection, now_us=now_us)
    for key, _limit in limits:
        counted = after_failure(found.get(key), now_us=now_us)
        connection.execute(sa.delete(table).where(table.c.key == key))
        connection.execute(
            sa.insert(table).values(
                key=key, num_failures=counted.num_failures, window_start_us=counted.window_start_us
            )
        )


def _forget_old(connection: sa.Connection, *, now_us: int) -> None:
    table = sign_in_failures
    is_known = table.c.key.startswith(_KNOWN)
    connection.execute(
        sa.delete(table).where(
            sa.or_(
                sa.and_(is_known, table.c.window_start_us < now_us - KNOWN_ADDRESS_US),
                sa.and_(sa.not_(is_known), table.c.window_start_us < now_us - FAILURE_WINDOW_US),
            )
        )
    )


def _is_known(connection: sa.Connection, key: str, *, now_us: int) -> bool:
    table = sign_in_failures
    return (
        connection.execute(
            sa.select(table.c.key).where(
                table.c.key == key, table.c.window_start_us > now_us - KNOWN_ADDRESS_US
            )
        ).first()
        is not None
    )
