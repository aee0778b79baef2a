"""How a problem becomes a page: which HTTP status, and which plain words."""

from __future__ import annotations

from collections.abc import Mapping

from andon.errors import AndonError
from services.labeling.errors import TooManyFailuresError

_STATUS_OF_CODE = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 503,
}

TITLES: Mapping[int, str] = {
    400: "That was not understood",
    401: "Please sign in",
    403: "Not for you",
    404: "Nothing here",
    405: "Not possible here",
    408: "Too slow",
    409: "Not any more",
    413: "Too large",
    415: "Not a form",
    421: "Wrong address",
    429: "Too much at once",
    500: "Something broke",
    503: "Try again in a moment",
}
_DEFAULT_WORDS: Mapping[int, str] = {
    404: "There is no such page, or it is not yours.",
    405: "This page does not take that kind of request.",
    500: "This is our mistake. It has been recorded.",
    503: "The service is busy or restarting. Nothing was lost that was confirmed to you.",
}


class PageError(Exception):
    """Ends a request with an error page."""

    def __init__(self, status: int, words: str = "", *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.words = words or _DEFAULT_WORDS.get(status, "")
        self.headers = dict(headers or {})


def page_error_of(error: AndonError) -> PageError:
    """An error of the domain as a page."""
    status = _STATUS_OF_CODE.get(error.code, 500)
    headers: dict[str, str] = {}
    if isinstance(error, TooManyFailuresError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status in (429, 503):
        headers["Retry-After"] = "2"
    words = "" if status >= 500 else _sentence(error.message)
    return PageError(status, words, headers=headers)


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:] + ("" if message.endswith(".") else ".")
