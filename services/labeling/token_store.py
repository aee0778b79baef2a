"""How the bearer tokens of programs are kept. Methods block their thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling.accounts import (
    DEFAULT_TOKEN_US,
    MAX_TOKEN_US,
    Role,
    check_user_name,
    hash_secret,
    is_user_name,
    lifetime_us,
    new_secret,
)
from services.labeling.audit import record_act
from services.labeling.database import Database
from services.labeling.errors import TokenNotFoundError
from services.labeling.limits import Clock
from services.labeling.schema import api_tokens, users


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A secret that was made; it is told once."""

    secret: str
    expire_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A program's token, without the secret."""

    token_sha256: str
    name: str
    role: Role
    created_by: str
    create_us: int
    expire_us: int


class TokenStore:
    """Tokens in a database."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def make(
        self, *, name: str, role: Role, created_by: str, wanted_lifetime_us: int | None = None
    ) -> Issued:
        """Make a token for a program."""
        check_user_name(name)
        lifetime = lifetime_us(wanted_lifetime_us, default_us=DEFAULT_TOKEN_US, max_us=MAX_TOKEN_US)
        token = new_secret()

        def work(connection: sa.Connection) -> Issued:
            now_us = self._clock()
            connection.execute(
                sa.insert(api_tokens).values(
                    token_sha256=hash_secret(token),
                    name=name,
                    role=role.value,
                    created_by=created_by,
                    create_us=now_us,
                    expire_us=now_us + lifetime,
                )
            )
            record_act(
                connection,
                actor=created_by,
                action="token.create",
                subject=name,
                detail={"role": role.value},
                now_us=now_us,
            )
            return Issued(secret=token, expire_us=now_us + lifetime)

        return self._database.write(work)

    def find(self, token_sha256: str) -> Token | None:
        """The token of this hash while it is good and its account, where there is one, is open."""

        def work(connection: sa.Connection) -> Token | None:
            row = connection.execute(
                sa.select(api_tokens)
                .outerjoin(users, users.c.name == api_tokens.c.name)
                .where(
                    api_tokens.c.token_sha256 == token_sha256,
                    _is_good(self._clock()),
                    sa.func.coalesce(users.c.is_closed, sa.false()).is_(sa.false()),
                )
            ).one_or_none()
            return None if row is None else _token(row)

        return self._database.read(work)

    def good(self, *, limit: int = 500) -> list[Token]:
        """Tokens that are still good, newest first."""
        query = (
            sa.select(api_tokens)
            .where(_is_good(self._clock()))
            .order_by(api_tokens.c.create_us.desc(), api_tokens.c.token_sha256)
            .limit(limit)
        )
        return self._database.read(lambda connection: [_token(row) for row in connection.execute(query)])

    def revoke_all(self, name: str, *, actor: str) -> int:
        """End all tokens of this name and say how many; raises TOKEN_NOT_FOUND where there are none."""
        if not is_user_name(name):
            raise TokenNotFoundError(name)

        def work(connection: sa.Connection) -> int:
            now_us = self._clock()
            num_revoked = revoke(connection, name, now_us=now_us)
            if num_revoked == 0:
                raise TokenNotFoundError(name)
            record_act(
                connection,
                actor=actor,
                action="token.revoke",
                subject=name,
                detail={"count": num_revoked},
                now_us=now_us,
            )
            return num_revoked

        return self._database.write(work)


def revoke(connection: sa.Connection, name: str, *, now_us: int) -> int:
    """End all good tokens of a name in the caller's transaction, and say how many there were."""
    ended = connection.execute(
        sa.update(api_tokens)
        .where(api_tokens.c.name == name, _is_good(now_us))
        .values(revoke_us=now_us)
        .returning(api_tokens.c.token_sha256)
    )
    return len(ended.all())


def _is_good(now_us: int) -> sa.ColumnElement[bool]:
    return sa.and_(api_tokens.c.revoke_us.is_(None), api_tokens.c.expire_us > now_us)


def _token(row: sa.Row[Any]) -> Token:
    return Token(
        token_sha256=row.token_sha256,
        name=row.name,
        role=Role(row.role),
        created_by=row.created_by,
        create_us=row.create_us,
        expire_us=row.expire_us,
    )
