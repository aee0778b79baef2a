"""Accounts of the labeling site as a client sees them: invitations, tokens, users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import access_service_pb2_grpc as access_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection
from andon.errors import InvalidArgumentError
from andon.rpc.convert import seconds_to_duration, timestamp_to_datetime

_ROLES = {
    "labeler": access_pb2.ROLE_LABELER,
    "researcher": access_pb2.ROLE_RESEARCHER,
    "admin": access_pb2.ROLE_ADMIN,
    "service": access_pb2.ROLE_SERVICE,
}
_ROLE_NAMES = {number: name for name, number in _ROLES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A link with which one person opens an account."""

    url: str
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A bearer token; the service does not tell it again."""

    token: str
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUser:
    """An account."""

    user: str
    role: str
    closed: bool
    create_time: datetime


class AccessClient(ServiceConnection):
    """Calls the access service, which lives in the labeling service."""

    def __init__(
        self, target: str, *, options: ChannelOptions | None = None, token: str | None = None
    ) -> None:
        """``token`` is the bearer token; ANDON_TOKEN when left out."""
        super().__init__(
            target,
            service_name="andon.api.labeling.v1.AccessService",
            options=options,
            token=token,
        )
        self._stub = access_grpc.AccessServiceStub(self.channel)

    def invite(
        self, role: str, *, user: str = "", lifetime_s: float | None = None, timeout_s: float = 30.0
    ) -> Invitation:
        """Make an invitation for a labeler, a researcher or an admin; they choose a name when none is given.

        Where an answer gets lost and the call is made again, the first link is one that nobody knows.
        """
        request = access_pb2.CreateInvitationRequest(
            role=_role(role),
            user=user,
            lifetime=None if lifetime_s is None else seconds_to_duration(lifetime_s),
        )
        answer = self.unary(self._stub.CreateInvitation, request, timeout_s=timeout_s)
        return Invitation(url=answer.url, expire_time=timestamp_to_datetime(answer.expire_time))

    def make_token(
        self, name: str, *, role: str, lifetime_s: float | None = None, timeout_s: float = 30.0
    ) -> IssuedToken:
        """Make a token for a program."""
        request = access_pb2.CreateTokenRequest(
            role=_role(role),
            name=name,
            lifetime=None if lifetime_s is None else seconds_to_duration(lifetime_s),
        )
        answer = self.unary(self._stub.CreateToken, request, timeout_s=timeout_s)
        return IssuedToken(token=answer.token, expire_time=timestamp_to_datetime(answer.expire_time))

    def revoke_tokens(self, name: str, *, timeout_s: float = 30.0) -> int:
        """End all tokens of this name and say how many there were."""
        answer = self.unary(
            self._stub.RevokeTokens, access_pb2.RevokeTokensRequest(name=name), timeout_s=timeout_s
        )
        return answer.revoked_count

    def users(self, *, page_size: int = 1000, timeout_s: float = 30.0) -> Iterator[SiteUser]:
        """All accounts in the order of their names, fetched page by page."""
        page_token = ""
        while True:
            request = access_pb2.ListUsersRequest(page_size=page_size, page_token=page_token)
            answer = self.unary(self._stub.ListUsers, request, timeout_s=timeout_s)
            yield from map(_user, answer.users)
            page_token = answer.next_page_token
            if not page_token:
                return

    def update_user(
        self, user: str, *, role: str | None = None, closed: bool | None = None, timeout_s: float = 30.0
    ) -> SiteUser:
        """Change a role, or close or open an account."""
        request = access_pb2.UpdateUserRequest(
            user=user, role=access_pb2.ROLE_UNSPECIFIED if role is None else _role(role), closed=closed
        )
        answer = self.unary(self._stub.UpdateUser, request, timeout_s=timeout_s)
        return _user(answer.user)


def _role(name: str) -> access_pb2.Role.ValueType:
    try:
        return _ROLES[name]
    except KeyError:
        raise InvalidArgumentError(
            f"{name!r} is no role; the roles are {', '.join(_ROLES)}", reason="INVALID_ROLE", role=name
        ) from None


def _user(user: access_pb2.User) -> SiteUser:
    return SiteUser(
        user=user.user,
        role=_ROLE_NAMES[user.role],
        closed=user.closed,
        create_time=timestamp_to_datetime(user.create_time),
    )
