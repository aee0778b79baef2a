"""One request as a page sees it: who asks, what they sent, and the ways to answer.

``app`` makes it after it has checked role and CSRF token, so a page that runs may trust both.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from services.labeling.accounts import User, new_secret
from services.labeling.cord import is_pulled
from services.labeling.errors import InvalidFieldError
from services.labeling.session_store import Session
from services.labeling.web.forms import EMPTY_FORM, Form
from services.labeling.web.problems import PageError
from services.labeling.web.session import Cookies, local_path, mask

if TYPE_CHECKING:
    from services.labeling.web.site import Site

T = TypeVar("T")


class Call:
    """A request, its session and its answer."""

    def __init__(self, site: Site, request: Request, *, cookies: Cookies, session: Session | None) -> None:
        self.site = site
        self.request = request
        self.cookies = cookies
        self.session = session
        self.form: Form = EMPTY_FORM  # of a POST
        self._new_form_cookie: str | None = None
        self._cord_pulled = False
        self._request_id = uuid.uuid4().hex

    @property
    def user(self) -> User:
        """Who asks. Only for pages that declare roles."""
        if self.session is None:
            raise RuntimeError("a public page has no user")
        return self.session.user

    @property
    def request_id(self) -> str:
        """A new id of this request, for acts that want one."""
        return self._request_id

    @property
    def client_address(self) -> str:
        """Where the request comes from: the browser, or the proxy that is not trusted to name it."""
        return self.request.client.host if self.request.client else ""

    @property
    def form_token(self) -> str:
        """The CSRF token that forms of this page carry, unmasked."""
        if self.session is not None:
            return self.session.csrf_token
        if self._new_form_cookie is not None:
            return self._new_form_cookie
        known = self.cookies.read_secret(self.request, self.cookies.form)
        if known is None:
            known = self._new_form_cookie = new_secret()
        return known

    def path(self, name: str) -> str:
        """A part of the path that the page's route names."""
        return str(self.request.path_params[name])

    def path_integer(self, name: str, *, maximum: int = 2**63 - 1) -> int:
        """A part of the path that is a number from 0; anything else is a page that does not exist."""
        text = self.path(name)
        if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > maximum:
            raise PageError(404)
        return int(text)

    def query(self, name: str, *, max_chars: int = 200) -> str:
        """A parameter of the address, empty when it is absent."""
        text = self.request.query_params.get(name, "")
        if len(text) > max_chars or "\x00" in text:
            raise InvalidFieldError("is too long", reason="INVALID_QUERY", field=name)
        return text

    def query_integer(self, name: str, *, default: int, minimum: int, maximum: int) -> int:
        """A number in the address."""
        text = self.query(name, max_chars=20)
        if not text:
            return default
        if not (text.isascii() and text.isdigit()) or not minimum <= int(text) <= maximum:
            raise InvalidFieldError(
                f"a whole number from {minimum:,} to {maximum:,}", reason="INVALID_QUERY", field=name
            )
        return int(text)

    async def read(self, work: Callable[[], T]) -> T:
        """Run a store's reading method in a database thread."""
        return await self.site.threads.read(work)

    async def write(self, work: Callable[[], T], *, then: Callable[[], None] | None = None) -> T:
        """Run a store's writing method in a database thread; ``then`` runs on the loop after the commit."""
        return await self.site.threads.write(work, then=then)

    async def render(
        self,
        template: str,
        /,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,  # whatever the template shows
    ) -> Response:
        """Draw a page. Templates also get user, csrf, path, menu, cord (the last event) and cord_pulled."""
        cord = await self.site.last_cord_event()
        text = self.site.templates.render(
            template,
            user=None if self.session is None else self.session.user,
            csrf=mask(self.form_token),
            path=self.request.url.path,
            menu=[
                entry
                for entry in self.site.menu
                if self.session is not None and self.session.user.role in entry.roles
            ],
            cord=cord,
            cord_pulled=is_pulled(cord),
            **values,
        )
        return self._finish(HTMLResponse(text, status_code=status, headers=dict(headers or {})))

    def redirect(self, path: str) -> Response:
        """Send the browser on to a page of this site, which it then asks for with GET."""
        return self._finish(RedirectResponse(local_path(path), status_code=303))

    def answer_json(self, value: object, *, status: int = 200) -> Response:
        """Answer a script."""
        return self._finish(JSONResponse(value, status_code=status))

    def answer_nothing(self) -> Response:
        """Answer a script that wants no more than success."""
        return self._finish(Response(status_code=204))

    def _finish(self, response: Response) -> Response:
        if self._new_form_cookie is not None:
            self.cookies.set(response, self.cookies.form, self._new_form_cookie)
        return response
