"""The RPCs of AccessService: invitations, tokens, accounts. Who may call them stands in ``access``."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import access_service_pb2_grpc as access_grpc
from andon.errors import PermissionDeniedError
from services.labeling.account_store import AccountStore
from services.labeling.accounts import Role, User, check_user_name, may_invite
from services.labeling.callers import caller
from services.labeling.errors import InvalidFieldError
from services.labeling.messages import duration_to_us, timestamp_from_us
from services.labeling.threads import DatabaseThreads
from services.labeling.token_store import TokenStore
from services.labeling.web.links import invitation_url

DEFAULT_PAGE_USERS = 100
MAX_PAGE_USERS = 1000

_ROLES = {
    access_pb2.ROLE_LABELER: Role.LABELER,
    access_pb2.ROLE_RESEARCHER: Role.RESEARCHER,
    access_pb2.ROLE_ADMIN: Role.ADMIN,
    access_pb2.ROLE_SERVICE: Role.SERVICE,
}
_ROLES_OUT = {role: number for number, role in _ROLES.items()}

_log = structlog.stdlib.get_logger(__name__)


class AccessServicer(access_grpc.AccessServiceServicer):
    """Who may use the site and its RPCs."""

    def __init__(
        self,
        accounts: AccountStore,
        tokens: TokenStore,
        *,
        threads: DatabaseThreads,
        site_url: Callable[[], str],
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._threads = threads
        self._site_url = site_url

    async def CreateInvitation(
        self,
        request: access_pb2.CreateInvitationRequest,
        context: grpc.aio.ServicerContext[
            access_pb2.CreateInvitationRequest, access_pb2.CreateInvitationResponse
        ],
    ) -> access_pb2.CreateInvitationResponse:
        """Make a link."""
        role, inviter = _role(request.role), caller()
        if not may_invite(Role(inviter.role), role):
            raise PermissionDeniedError(
                f"{inviter.role} may not invite as {role}", reason="ROLE_NOT_ALLOWED", role=inviter.role
            )
        if request.user:
            _check_name(request.user, field="user")
        lifetime_us = _lifetime_us(request.lifetime) if request.HasField("lifetime") else None
        issued = await self._threads.write(
            lambda: self._accounts.invite(
                role=role, user_name=request.user, created_by=inviter.name, wanted_lifetime_us=lifetime_us
            )
        )
        _log.info("invitation_made", invited_as=role.value)
        return access_pb2.CreateInvitationResponse(
            url=invitation_url(self._site_url(), issued.secret),
            expire_time=timestamp_from_us(issued.expire_us),
        )

    async def CreateToken(
        self,
        request: access_pb2.CreateTokenRequest,
        context: grpc.aio.ServicerContext[access_pb2.CreateTokenRequest, access_pb2.CreateTokenResponse],
    ) -> access_pb2.CreateTokenResponse:
        """Make a token."""
        role = _role(request.role)
        _check_name(request.name, field="name")
        lifetime_us = _lifetime_us(request.lifetime) if request.HasField("lifetime") else None
        maker = caller().name
        issued = await self._threads.write(
            lambda: self._tokens.make(
                name=request.name, role=role, created_by=maker, wanted_lifetime_us=lifetime_us
            )
        )
        _log.info("token_made", token_name=request.name, token_role=role.value)
        return access_pb2.CreateTokenResponse(
            token=issued.secret, expire_time=timestamp_from_us(issued.expire_us)
        )

    async def RevokeTokens(
        self,
        request: access_pb2.RevokeTokensRequest,
        context: grpc.aio.ServicerContext[access_pb2.RevokeTokensRequest, access_pb2.RevokeTokensResponse],
    ) -> access_pb2.RevokeTokensResponse:
        """End tokens."""
        actor = caller().name
        num_revoked = await self._threads.write(lambda: self._tokens.revoke_all(request.name, actor=actor))
        _log.info("tokens_revoked", token_name=request.name, count=num_revoked)
        return access_pb2.RevokeTokensResponse(revoked_count=num_revoked)

    async def ListUsers(
        self,
        request: access_pb2.ListUsersRequest,
        context: grpc.aio.ServicerContext[access_pb2.ListUsersRequest, access_pb2.ListUsersResponse],
    ) -> access_pb2.ListUsersResponse:
        """Name accounts."""
        if not 0 <= request.page_size <= MAX_PAGE_USERS:
            raise InvalidFieldError(f"0 to {MAX_PAGE_USERS:,}", reason="INVALID_PAGE", field="page_size")
        if request.page_token:
            _check_name(request.page_token, field="page_token", reason="INVALID_PAGE")
        size = request.page_size or DEFAULT_PAGE_USERS
        users = await self._threads.read(
            lambda: self._accounts.list_users(after=request.page_token, limit=size + 1)
        )
        return access_pb2.ListUsersResponse(
            users=[_user_to_proto(user) for user in users[:size]],
            next_page_token=users[size - 1].name if len(users) > size else "",
        )

    async def UpdateUser(
        self,
        request: access_pb2.UpdateUserRequest,
        context: grpc.aio.ServicerContext[access_pb2.UpdateUserRequest, access_pb2.UpdateUserResponse],
    ) -> access_pb2.UpdateUserResponse:
        """Change an account."""
        role = None if request.role == access_pb2.ROLE_UNSPECIFIED else _role(request.role)
        is_closed = request.closed if request.HasField("closed") else None
        actor = caller().name
        user = await self._threads.write(
            lambda: self._accounts.update_user(request.user, role=role, is_closed=is_closed, actor=actor)
        )
        _log.info("user_updated", user=user.name, user_role=user.role.value, is_closed=user.is_closed)
        return access_pb2.UpdateUserResponse(user=_user_to_proto(user))


def _role(number: access_pb2.Role.ValueType) -> Role:
    role = _ROLES.get(number)
    if role is None:
        raise InvalidFieldError("names no role", reason="INVALID_ROLE", field="role")
    return role


def _check_name(name: str, *, field: str, reason: str | None = None) -> None:
    try:
        check_user_name(name)
    except InvalidFieldError as error:
        raise InvalidFieldError(error.problem, reason=reason or error.reason, field=field) from None


def _lifetime_us(duration: Duration) -> int:
    return duration_to_us(duration, field="lifetime", reason="INVALID_DURATION")


def _user_to_proto(user: User) -> access_pb2.User:
    return access_pb2.User(
        user=user.name,
        role=_ROLES_OUT[user.role],
        closed=user.is_closed,
        create_time=timestamp_from_us(user.create_us),
    )
