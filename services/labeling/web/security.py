"""What holds for every answer and every request of the site, whatever page it is.

Headers that keep browsers from running, framing or remembering what is not ours; the size, time and type of
bodies; the host's name; and from where a form may be sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.labeling.web.problems import PageError

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": with that, browsers send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_DISCARDED_LIMITS = 4  # a body that is larger than so many times the limit is cut off


class SecurityHeaders:
    """Adds the headers to every answer; what sets no caching of its own is not stored anywhere."""

    def __init__(self, app: ASGIApp, *, is_secure: bool) -> None:
        self._app = app
        self._headers = dict(_HEADERS)
        if is_secure:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add to the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Ends a request whose body is too large. Nothing over the limit is kept in memory.

    A little more is still taken from the wire and thrown away: a browser that is cut off while it sends
    never gets to show the answer.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counted body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        is_too_large = announced.isdigit() and int(announced) > self._max_bytes
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            while True:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not is_too_large and num_bytes <= self._max_bytes:
                    return message
                is_over = message["type"] != "http.request" or not message.get("more_body", False)
                if is_over or num_bytes > _DISCARDED_LIMITS * self._max_bytes:
                    raise PageError(413, "What you sent is too large.", headers={"Connection": "close"})

        await self._app(scope, receive_counted, send)


async def read_body(request: Request, *, timeout_s: float) -> bytes:
    """The whole body. Raises a 408 page for one that takes longer, and what :class:`BodyLimit` raises."""
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError:
        raise PageError(
            408, "What you sent took too long to arrive.", headers={"Connection": "close"}
        ) from None


def media_type_of(request: Request) -> str:
    """What the body says that it is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().casefold()


def check_host(request: Request, allowed: Sequence[str]) -> None:
    """Refuse requests for another host's name, where the site's own is known."""
    if allowed and request.headers.get("host", "").casefold() not in allowed:
        raise PageError(421, "This site is not served under that address.")


def check_address(request: Request) -> None:
    """Refuse an address with U+0000, which no name that is kept can hold."""
    if "\x00" in request.url.path or "\x00" in request.scope["path"]:
        raise PageError(404)
    if any("\x00" in name or "\x00" in value for name, value in request.query_params.multi_items()):
        raise PageError(400, "The address holds the character U+0000.")


def check_origin(request: Request, own_hosts: Sequence[str]) -> None:
    """Refuse an act that a page of another site has sent, where the browser tells.

    ``own_hosts`` are the names under which the site is known; without any, the request's own Host counts.
    """
    fetch_site = request.headers.get("sec-fetch-site", "same-origin")
    if fetch_site not in ("same-origin", "none"):
        raise PageError(403, "This form was sent by another site.")
    origin = request.headers.get("origin")
    if origin is None:
        return
    expected = own_hosts or (request.headers.get("host", "").casefold(),)
    try:
        host = urlsplit(origin).netloc.casefold()
    except ValueError:
        host = ""
    if not host or host not in expected:
        raise PageError(403, "This form was sent by another site.")
