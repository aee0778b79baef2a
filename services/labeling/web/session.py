"""Which cookies there are, which tokens forms carry, and how both are compared.

A session's cookie and CSRF token change with every sign-in. Before there is a session, sign-in and invitation
forms carry the value of a cookie of their own (double submit). Tokens in pages are masked anew each time, so
that the length of a compressed page tells nothing about them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
MAX_NEXT_CHARS = 2000


class Cookies:
    """Cookies of this site; ``is_secure`` binds them to https and to this host."""

    def __init__(self, *, is_secure: bool) -> None:
        prefix = "__Host-" if is_secure else ""
        self.session = f"{prefix}andon"
        self.form = f"{prefix}andon-form"
        self.sign_in_elsewhere = f"{prefix}andon-oidc"
        self._is_secure = is_secure

    def read_secret(self, request: Request, name: str) -> str | None:
        """The cookie's value when it can be one of ours."""
        value = request.cookies.get(name, "")
        return value if _SECRET.fullmatch(value) else None

    def set(self, response: Response, name: str, value: str, *, max_age_s: int | None = None) -> None:
        """Set a cookie that no script can read and no other site can send along with a form."""
        response.set_cookie(
            name, value, max_age=max_age_s, path="/", secure=self._is_secure, httponly=True, samesite="lax"
        )

    def delete(self, response: Response, name: str) -> None:
        """Let the browser forget it."""
        response.delete_cookie(name, path="/", secure=self._is_secure, httponly=True, samesite="lax")


def mask(token: str) -> str:
    """A CSRF token as it stands in a page: a random pad, and the token under it."""
    plain = _bytes_of(token)
    if plain is None:
        raise ValueError("not a token")
    pad = secrets.token_bytes(len(plain))
    return _text_of(pad + bytes(a ^ b for a, b in zip(pad, plain, strict=True)))


def is_same_token(sent: str, expected: str) -> bool:
    """Whether ``sent``, masked or not, is the expected token."""
    raw, wanted = _bytes_of(sent), _bytes_of(expected)
    if raw is None or wanted is None:
        return False
    if len(raw) == 2 * len(wanted):
        pad, masked = raw[: len(wanted)], raw[len(wanted) :]
        raw = bytes(a ^ b for a, b in zip(pad, masked, strict=True))
    return hmac.compare_digest(raw, wanted)


def local_path(target: str) -> str:
    """``target`` when it is a path on this site, else the first page: a link must not lead elsewhere."""
    if len(target) > MAX_NEXT_CHARS or not target.startswith("/") or target.startswith(("//", "/\\")):
        return "/"
    if any(ord(character) <= 32 or ord(character) == 127 for character in target) or "\\" in target:
        return "/"
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    return target if not parts.scheme and not parts.netloc else "/"


def sign_in_path(request: Request) -> str:
    """Where to sign in and then come back to this page."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/sign-in?next={quote(local_path(target), safe='')}"


def _bytes_of(token: str) -> bytes | None:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None


def _text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
