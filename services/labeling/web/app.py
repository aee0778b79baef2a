"""How a request becomes a page: in which order host, session, role, form and CSRF token are checked.

Deny by default: a path that no module has registered does not exist, and a page runs only for the roles that
it declares. Whatever goes wrong ends in a page with plain words; a defect is logged and answered with 500.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from andon.errors import AndonError
from services.labeling.accounts import ROLES_OF_PEOPLE
from services.labeling.session_store import Session
from services.labeling.web import (
    alert_door,
    pages_access,
    pages_account,
    pages_admission,
    pages_batches,
    pages_cord,
    pages_exchange,
    pages_history,
    pages_inbox,
    pages_items,
    pages_labelers,
    pages_oidc,
    pages_onboarding,
    pages_people,
    pages_projects,
    pages_quality,
    pages_work,
)
from services.labeling.web.call import Call
from services.labeling.web.forms import FORM_MEDIA_TYPE, Form, parse_form
from services.labeling.web.pages import Page, PageTable, Public
from services.labeling.web.problems import TITLES, PageError, page_error_of
from services.labeling.web.security import (
    BodyLimit,
    SecurityHeaders,
    check_address,
    check_host,
    check_origin,
    media_type_of,
    read_body,
)
from services.labeling.web.session import Cookies, is_same_token, sign_in_path
from services.labeling.web.site import MenuEntry, Site

# The order is that of the header's menu, so daily work stands first; a role's first entry is its home.
PAGE_TABLES: tuple[PageTable, ...] = (
    pages_access.table,
    pages_oidc.table,
    pages_projects.table,
    pages_batches.table,
    pages_onboarding.table,
    pages_quality.table,
    pages_items.table,
    pages_labelers.table,
    pages_exchange.table,
    pages_work.table,
    pages_admission.table,
    pages_history.table,
    pages_inbox.table,
    pages_people.table,
    pages_account.table,
    pages_cord.table,
)

_BODY_TIMEOUT_S = 30.0

_log = structlog.stdlib.get_logger(__name__)


def build_app(site: Site, tables: Sequence[PageTable] = PAGE_TABLES) -> ASGIApp:
    """The whole site as an ASGI application."""
    pages = [page for table in tables for page in table.pages]
    site.menu = [
        MenuEntry(path=page.path, name=page.menu, roles=page.roles)
        for page in pages
        if page.menu is not None and not isinstance(page.roles, Public)
    ]
    site.home_pages = {
        role: entry.path for role in ROLES_OF_PEOPLE for entry in reversed(site.menu) if role in entry.roles
    }
    dispatcher = _Dispatcher(site)
    by_path: dict[str, dict[str, Page]] = {}
    for page in pages:
        if by_path.setdefault(page.path, {}).setdefault(page.method, page) is not page:
            raise ValueError(f"{page.method} {page.path} is registered twice")
    routes = [
        Route(path, dispatcher.endpoint(by_method), methods=list(by_method))
        for path, by_method in by_path.items()
    ]
    for path in (*by_path, alert_door.PATH):
        site.site_metrics.seconds.labels(path)  # known from the start, so that the first visit counts
    routes.append(Route("/healthz", _healthy, methods=["GET"]))
    routes.append(Route(alert_door.PATH, alert_door.AlertDoor(site)))
    routes.append(Route("/static/{file_name}", dispatcher.static, methods=["GET"]))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SecurityHeaders, is_secure=site.is_secure),
            Middleware(GZipMiddleware, minimum_size=500, compresslevel=6),
            Middleware(BodyLimit, max_bytes=site.config.web_max_body_bytes),
        ],
        exception_handlers={HTTPException: dispatcher.refuse},
    )
    # A path with one slash too many is another path, not a redirect.
    app.router.redirect_slashes = False
    return app


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


class _Dispatcher:
    """Everything around a page."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._cookies = Cookies(is_secure=site.is_secure)
        public_url = site.config.web_public_url
        self._hosts = () if public_url is None else (urlsplit(public_url).netloc.casefold(),)

    def endpoint(self, by_method: Mapping[str, Page]) -> Callable[[Request], Awaitable[Response]]:
        """The function that Starlette calls for the pages of one path."""

        async def answer(request: Request) -> Response:
            page = by_method["GET" if request.method == "HEAD" else request.method]
            return await self._answer(page.path, request, page)

        return answer

    async def static(self, request: Request) -> Response:
        """A file whose name holds its hash."""
        asset = self._site.templates.assets.get(request.path_params["file_name"])
        if asset is None:
            return await self._answer("static", request, PageError(404))
        return Response(
            asset.content,
            media_type=asset.media_type,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )

    async def refuse(self, request: Request, error: Exception) -> Response:
        """What Starlette itself refuses: unknown paths and wrong methods."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        return await self._answer("none", request, PageError(status, headers=headers))

    async def _answer(self, name: str, request: Request, page: Page | PageError) -> Response:
        start_s = time.monotonic()
        call: Call | None = None
        session: Session | None = None
        reason = ""
        try:
            check_host(request, self._hosts)
            check_address(request)
            session = await self._session(request)
            if isinstance(page, PageError):
                raise page
            call = Call(self._site, request, cookies=self._cookies, session=session)
            response = await self._run(page, call)
        except PageError as error:
            reason = error.words
            response = await self._problem(request, session, error)
        except AndonError as error:
            reason = error.reason
            response = await self._problem(request, session, page_error_of(error))
        except ClientDisconnect:
            reason = "CLIENT_GONE"
            response = Response(status_code=400)
        except Exception:  # noqa: BLE001 - the last place that can turn a defect into an answer
            reason = "UNEXPECTED"
            _log.exception("page_unexpected_error", page=name, method=request.method)
            response = await self._problem(request, session, PageError(500))
        seconds = time.monotonic() - start_s
        method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
        self._site.site_metrics.requests.labels(name, method, str(response.status_code)).inc()
        self._site.site_metrics.seconds.labels(name).observe(seconds)
        _log.info(
            "page_answered",
            page=name,
            method=method,
            status=response.status_code,
            reason=reason,
            user="" if session is None else session.user.name,
            seconds=round(seconds, 6),
        )
        return response

    async def _session(self, request: Request) -> Session | None:
        token = self._cookies.read_secret(request, self._cookies.session)
        if token is None:
            return None
        sessions = self._site.sessions
        session = await self._site.urgent_threads.read(lambda: sessions.find(token))
        if session is not None and sessions.needs_touch(session):
            await self._site.urgent_threads.write(lambda: sessions.touch(session))
        return session

    async def _run(self, page: Page, call: Call) -> Response:
        if not isinstance(page.roles, Public):
            if call.session is None:
                if page.method == "GET" and not _wants_json(call.request):
                    return call.redirect(sign_in_path(call.request))
                raise PageError(401, "Your session has ended. Sign in again, then repeat.")
            if call.session.user.role not in page.roles:
                raise PageError(403, "Your role does not allow this.")
        if page.method != "GET":
            check_origin(call.request, self._hosts)
            call.form = await _read_form(call.request)
            sent = call.request.headers.get("x-csrf-token") or call.form.secret("csrf", max_chars=200)
            expected = (
                call.session.csrf_token
                if call.session is not None
                else self._cookies.read_secret(call.request, self._cookies.form)
            )
            if expected is None or not is_same_token(sent, expected):
                raise PageError(
                    403,
                    "This form is out of date. Go back, load the page again and repeat; cookies must be on.",
                )
        return await page.handler(call)

    async def _problem(self, request: Request, session: Session | None, error: PageError) -> Response:
        title = TITLES.get(error.status, "That did not work")
        if _wants_json(request):
            return JSONResponse(
                {"error": error.words or title}, status_code=error.status, headers=error.headers
            )
        call = Call(self._site, request, cookies=self._cookies, session=session)
        try:
            return await call.render(
                "problem.html",
                status=error.status,
                headers=error.headers,
                problem_title=title,
                words=error.words,
                sign_in=sign_in_path(request) if error.status == 401 else None,
            )
        except AndonError:  # the database is away, and the page would show the cord
            return PlainTextResponse(
                f"{title}. {error.words}\n", status_code=error.status, headers=error.headers
            )


async def _read_form(request: Request) -> Form:
    body = await read_body(request, timeout_s=_BODY_TIMEOUT_S)
    if body and media_type_of(request) != FORM_MEDIA_TYPE:
        raise PageError(415, f"This page takes forms as {FORM_MEDIA_TYPE}.")
    return parse_form(body)


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept", "").startswith("application/json")
