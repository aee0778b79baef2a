"""Which pages there are and who may open them. A page without declared roles cannot exist.

Page modules make a :class:`PageTable` and decorate functions of a :class:`~services.labeling.web.call.Call`;
``app`` puts the tables together.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from starlette.responses import Response

from services.labeling.accounts import ROLES_OF_PEOPLE, Role
from services.labeling.web.call import Call

Handler = Callable[[Call], Awaitable[Response]]


class Public(enum.Enum):
    """Pages that need no sign-in. Said by name, so that nobody opens one by leaving something out."""

    PUBLIC = "public"


PUBLIC = Public.PUBLIC
Audience = Collection[Role] | Public
ALL_PEOPLE = ROLES_OF_PEOPLE
RESEARCHERS = frozenset({Role.RESEARCHER, Role.ADMIN})
ADMINS = frozenset({Role.ADMIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One path and method."""

    path: str  # as Starlette writes it: "/projects/{project}"
    method: str  # "GET", which answers HEAD too, or "POST"
    roles: frozenset[Role] | Public
    handler: Handler
    menu: str | None  # its name in the header's menu, for pages that stand there


class PageTable:
    """The pages of one module."""

    def __init__(self) -> None:
        self.pages: list[Page] = []

    def get(self, path: str, *, roles: Audience, menu: str | None = None) -> Callable[[Handler], Handler]:
        """Register a page that only shows."""
        return self._register(path, "GET", roles, menu)

    def post(self, path: str, *, roles: Audience) -> Callable[[Handler], Handler]:
        """Register a page that acts. Its form's ``csrf`` field is checked before the handler is called."""
        return self._register(path, "POST", roles, None)

    def _register(
        self, path: str, method: str, roles: Audience, menu: str | None
    ) -> Callable[[Handler], Handler]:
        audience = roles if isinstance(roles, Public) else frozenset(roles)
        if not isinstance(audience, Public) and (not audience or not audience <= ROLES_OF_PEOPLE):
            raise ValueError(f"{method} {path} declares no roles, or roles that no person has")
        if menu is not None and isinstance(audience, Public):
            raise ValueError(f"{path} is public and cannot stand in the menu")

        def register(handler: Handler) -> Handler:
            self.pages.append(Page(path=path, method=method, roles=audience, handler=handler, menu=menu))
            return handler

        return register
