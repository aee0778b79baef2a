"""How accounts and invitations are kept: one transaction per method, each change with its record.

The rules stand in ``accounts``; ``session_store`` keeps sessions, ``token_store`` the tokens of programs.
Methods block their thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from services.labeling.accounts import (
    DEFAULT_INVITATION_US,
    MAX_INVITATION_US,
    PASSWORD_LINK_US,
    Role,
    User,
    check_person_role,
    check_user_name,
    hash_secret,
    is_user_name,
    lifetime_us,
    new_secret,
)
from services.labeling.audit import Act, newest_acts, record_act
from services.labeling.database import Database, lock_name
from services.labeling.errors import (
    InvitationNotFoundError,
    LastAdminError,
    SignInRefusedError,
    UserExistsError,
    UserNotFoundError,
)
from services.labeling.identities import Identity
from services.labeling.schema import api_tokens, comparisons, invitations, leases, sessions, users
from services.labeling.token_store import Issued, revoke

_INVITATIONS = sa.select(invitations, users.c.create_us.label("user_us"), users.c.is_closed).outerjoin(
    users, users.c.name == invitations.c.user_name
)
_ADMINS = "admins"  # the lock under which the number of open admins changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A link that is still good."""

    token_sha256: str
    role: Role
    user_name: str  # empty: the invited person chooses
    created_by: str
    create_us: int
    expire_us: int
    resets_password: bool  # it was made for an account that was there already


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """An account and what its password is compared with."""

    user: User
    password_hash: str | None  # None for those who sign in elsewhere


class AccountStore:
    """Accounts in a database."""

    def __init__(self, database: Database, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    # Invitations

    def invite(
        self, *, role: Role, user_name: str, created_by: str, wanted_lifetime_us: int | None = None
    ) -> Issued:
        """Make an invitation. Raises USER_EXISTS where the account is named and there already."""
        check_person_role(role)
        if user_name:
            check_user_name(user_name)
        lifetime = lifetime_us(wanted_lifetime_us, default_us=DEFAULT_INVITATION_US, max_us=MAX_INVITATION_US)

        def work(connection: sa.Connection) -> Issued:
            if user_name and _find_user(connection, user_name) is not None:
                raise UserExistsError(user_name)
            return self._add_link(
                connection, role=role, user_name=user_name, created_by=created_by, lifetime=lifetime
            )

        return self._database.write(work)

    def password_link(self, user_name: str, *, created_by: str) -> Issued:
        """Make a link with which somebody who has an account chooses a new password."""
        if not is_user_name(user_name):
            raise UserNotFoundError(user_name)

        def work(connection: sa.Connection) -> Issued:
            user = _find_user(connection, user_name)
            if user is None or user.is_closed:
                raise UserNotFoundError(user_name)
            return self._add_link(
                connection,
                role=user.role,
                user_name=user_name,
                created_by=created_by,
                lifetime=PASSWORD_LINK_US,
            )

        return self._database.write(work)

    def find_invitation(self, token: str) -> Invitation:
        """The invitation of this link; raises INVITATION_NOT_FOUND."""

        def work(connection: sa.Connection) -> Invitation:
            row = connection.execute(
                _INVITATIONS.where(
                    invitations.c.token_sha256 == hash_secret(token), self._is_open_invitation()
                )
            ).one_or_none()
            if row is None or (row.user_us is not None and not _is_of_account(row)):
                raise InvitationNotFoundError()
            return _invitation(row)

        return self._database.read(work)

    def accept_invitation(self, token: str, *, name: str, password_hash: str) -> User:
        """Open the account, or give it a new password. Of several who use one link at once, one gets it.

        A link that was made for a name before somebody else took it opens nothing. Whoever chooses a name
        themselves gets none under which answers or tokens are: they would be theirs. Raises USER_EXISTS.
        """
        check_user_name(name)

        def work(connection: sa.Connection) -> User:
            lock_name(connection, "user", name)
            now_us = self._clock()
            link = connection.execute(
                sa.update(invitations)
                .where(
                    invitations.c.token_sha256 == hash_secret(token),
                    self._is_open_invitation(),
                    sa.or_(invitations.c.user_name == "", invitations.c.user_name == name),
                )
                .values(used_us=now_us, used_by=name)
                .returning(invitations.c.role, invitations.c.user_name, invitations.c.create_us)
            ).one_or_none()
            if link is None:
                raise InvitationNotFoundError()
            user = _find_user(connection, name)
            if user is None and not link.user_name and _is_in_use(connection, name):
                raise UserExistsError(name)
            if user is None:
                user = User(name=name, role=Role(link.role), is_closed=False, create_us=now_us)
                _add_user(connection, user, password_hash=password_hash)
            elif link.user_name == name and link.create_us > user.create_us and not user.is_closed:
                connection.execute(
                    sa.update(users).where(users.c.name == name).values(password_hash=password_hash)
                )
                connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
            elif link.user_name:
                raise InvitationNotFoundError()
            else:
                raise UserExistsError(name)
            record_act(
                connection,
                actor=name,
                action="invitation.accept",
                subject=name,
                detail={"role": user.role.value},
                now_us=now_us,
            )
            return user

        return self._database.write(work)

    def open_invitations(self, *, limit: int = 200) -> list[Invitation]:
        """Links that can still be used, newest first."""
        query = (
            _INVITATIONS.where(self._is_open_invitation())
            .order_by(invitations.c.create_us.desc(), invitations.c.token_sha256)
            .limit(limit)
        )
        return self._database.read(lambda connection: [_invitation(row) for row in connection.execute(query)])

    def withdraw_invitation(self, token_sha256: str, *, actor: str) -> None:
        """End a link; raises INVITATION_NOT_FOUND for one that is not good any more."""

        def work(connection: sa.Connection) -> None:
            now_us = self._clock()
            row = connection.execute(
                sa.update(invitations)
                .where(invitations.c.token_sha256 == token_sha256, self._is_open_invitation())
                .values(expire_us=now_us)
                .returning(invitations.c.user_name, invitations.c.role)
            ).one_or_none()
            if row is None:
                raise InvitationNotFoundError()
            record_act(
                connection,
                actor=actor,
                action="invitation.withdraw",
                subject=row.user_name,
                detail={"role": row.role},
                now_us=now_us,
            )

        self._database.write(work)

    # Accounts

    def find_user(self, name: str) -> User | None:
        """The account of this name."""
        return self._database.read(lambda connection: _find_user(connection, name))

    def find_credentials(self, name: str) -> Credentials | None:
        """What a sign-in under this name is compared with; None where there is no open account."""
        if not is_user_name(name):
            return None

        def work(connection: sa.Connection) -> Credentials | None:
            row = connection.execute(
                sa.select(users).where(users.c.name == name, users.c.is_closed.is_(sa.false()))
            ).one_or_none()
            return None if row is None else Credentials(user=_user(row), password_hash=row.password_hash)

        return self._database.read(work)

    def keep_password(self, name: str, password_hash: str) -> None:
        """Keep a new hash of the same password."""
        query = sa.update(users).where(users.c.name == name).values(password_hash=password_hash)
        self._database.write(lambda connection: connection.execute(query))

    def change_password(self, name: str, password_hash: str) -> None:
        """Keep another password and end all sessions under the old one."""

        def work(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(users).where(users.c.name == name).values(password_hash=password_hash)
            )
            connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
            record_act(connection, actor=name, action="user.password", subject=name, now_us=self._clock())

        self._database.write(work)

    def newest_acts(self, *, limit: int) -> list[Act]:
        """What was changed last, newest first."""
        return self._database.read(lambda connection: newest_acts(connection, limit=limit))

    def account_of(self, identity: Identity) -> User:
        """The account of somebody whom a provider vouches for, made or given its present role now.

        A name that others have is never theirs: the account gets another one. Raises SIGN_IN_REFUSED for a
        closed account. The last admin stays one.
        """

        def work(connection: sa.Connection) -> User:
            lock_name(connection, "subject", identity.issuer, identity.subject)
            row = connection.execute(
                sa.select(users.c.name).where(
                    users.c.oidc_issuer == identity.issuer, users.c.oidc_subject == identity.subject
                )
            ).one_or_none()
            return (
                self._open_account(connection, identity)
                if row is None
                else self._renew_role(connection, row.name, identity.role)
            )

        return self._database.write(work)

    def list_users(self, *, after: str = "", limit: int) -> list[User]:
        """Accounts in the order of their names, from the first one after ``after``."""
        query = sa.select(users).where(users.c.name > after).order_by(users.c.name).limit(limit)
        return self._database.read(lambda connection: [_user(row) for row in connection.execute(query)])

    def has_users(self) -> bool:
        """Whether anybody has an account."""
        query = sa.select(users.c.name).limit(1)
        return self._database.read(lambda connection: connection.execute(query).first() is not None)

    def update_user(self, name: str, *, role: Role | None, is_closed: bool | None, actor: str) -> User:
        """Change a role, or close and open an account. Closing ends its sessions and its tokens at once.

        Raises USER_NOT_FOUND, and LAST_ADMIN where no open admin would be left.
        """
        if role is not None:
            check_person_role(role)
        if not is_user_name(name):
            raise UserNotFoundError(name)

        def work(connection: sa.Connection) -> User:
            lock_name(connection, _ADMINS)
            before = _find_user(connection, name)
            if before is None:
                raise UserNotFoundError(name)
            after = User(
                name=name,
                role=before.role if role is None else role,
                is_closed=before.is_closed if is_closed is None else is_closed,
                create_us=before.create_us,
            )
            if after == before:
                return before
            if (
                _is_open_admin(before)
                and not _is_open_admin(after)
                and not _has_other_admin(connection, name)
            ):
                raise LastAdminError(name)
            now_us = self._clock()
            connection.execute(
                sa.update(users)
                .where(users.c.name == name)
                .values(role=after.role.value, is_closed=after.is_closed)
            )
            if after.is_closed and not before.is_closed:
                connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
                revoke(connection, name, now_us=now_us)
            record_act(
                connection,
                actor=actor,
                action="user.update",
                subject=name,
                detail={"role": after.role.value, "is_closed": after.is_closed},
                now_us=now_us,
            )
            return after

        return self._database.write(work)

    def _open_account(self, connection: sa.Connection, identity: Identity) -> User:
        now_us = self._clock()
        suffix = hash_secret("\n".join((identity.issuer, identity.subject)))[:12]
        name = identity.wanted_name
        if name:
            lock_name(connection, "user", name)
        if not name or _find_user(connection, name) is not None or _is_in_use(connection, name):
            name = f"{name or 'user'}-{suffix}"
        user = User(name=name, role=identity.role, is_closed=False, create_us=now_us)
        _add_user(connection, user, password_hash=None, identity=identity)
        record_act(
            connection,
            actor=name,
            action="user.open",
            subject=name,
            detail={"role": user.role.value, "issuer": identity.issuer},
            now_us=now_us,
        )
        return user

    def _renew_role(self, connection: sa.Connection, name: str, role: Role) -> User:
        lock_name(connection, _ADMINS)
        user = _find_user(connection, name)
        if user is None or user.is_closed:
            raise SignInRefusedError()
        if user.role is role or (user.role is Role.ADMIN and not _has_other_admin(connection, name)):
            return user
        connection.execute(sa.update(users).where(users.c.name == name).values(role=role.value))
        record_act(
            connection,
            actor=name,
            action="user.update",
            subject=name,
            detail={"role": role.value, "is_closed": False},
            now_us=self._clock(),
        )
        return replace(user, role=role)

    def _add_link(
        self, connection: sa.Connection, *, role: Role, user_name: str, created_by: str, lifetime: int
    ) -> Issued:
        token, now_us = new_secret(), self._clock()
        connection.execute(
            sa.insert(invitations).values(
                token_sha256=hash_secret(token),
                role=role.value,
                user_name=user_name,
                created_by=created_by,
                create_us=now_us,
                expire_us=now_us + lifetime,
            )
        )
        record_act(
            connection,
            actor=created_by,
            action="invitation.create",
            subject=user_name,
            detail={"role": role.value},
            now_us=now_us,
        )
        return Issued(secret=token, expire_us=now_us + lifetime)

    def _is_open_invitation(self) -> sa.ColumnElement[bool]:
        return sa.and_(invitations.c.used_us.is_(None), invitations.c.expire_us > self._clock())


def _find_user(connection: sa.Connection, name: str) -> User | None:
    row = connection.execute(sa.select(users).where(users.c.name == name)).one_or_none()
    return None if row is None else _user(row)


def _is_in_use(connection: sa.Connection, name: str) -> bool:
    """Whether somebody without an account has answered or holds a token under this name."""
    columns = (leases.c.labeler_id, comparisons.c.labeler_id, api_tokens.c.name)
    queries = [sa.select(column).where(column == name).limit(1) for column in columns]
    return any(connection.execute(query).first() is not None for query in queries)


def _is_open_admin(user: User) -> bool:
    return user.role is Role.ADMIN and not user.is_closed


def _has_other_admin(connection: sa.Connection, name: str) -> bool:
    query = sa.select(users.c.name).where(
        users.c.role == Role.ADMIN.value, users.c.is_closed.is_(sa.false()), users.c.name != name
    )
    return connection.execute(query.limit(1)).first() is not None


def _add_user(
    connection: sa.Connection, user: User, *, password_hash: str | None, identity: Identity | None = None
) -> None:
    connection.execute(
        sa.insert(users).values(
            name=user.name,
            role=user.role.value,
            password_hash=password_hash,
            oidc_issuer=None if identity is None else identity.issuer,
            oidc_subject=None if identity is None else identity.subject,
            email=None if identity is None else identity.email,
            is_closed=user.is_closed,
            create_us=user.create_us,
        )
    )


def _user(row: sa.Row[Any]) -> User:
    return User(name=row.name, role=Role(row.role), is_closed=row.is_closed, create_us=row.create_us)


def _invitation(row: sa.Row[Any]) -> Invitation:
    return Invitation(
        token_sha256=row.token_sha256,
        role=Role(row.role),
        user_name=row.user_name,
        created_by=row.created_by,
        create_us=row.create_us,
        expire_us=row.expire_us,
        resets_password=row.user_us is not None,
    )


def _is_of_account(row: sa.Row[Any]) -> bool:
    """Whether the link was made for the account that has its name now."""
    return bool(row.create_us > row.user_us and not row.is_closed)
