"""Which forms are taken: url-encoded UTF-8 of bounded size, read strictly.

A body that is no such form is the sender's mistake and becomes a page that says so. What a field means is
decided by the pages; they read it with a limit, and what is wrong with it names the field, so that the page
can say it beside the control.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_to_bytes

from services.labeling.errors import InvalidFieldError
from services.labeling.web.problems import PageError

MAX_FIELDS = 1000
FORM_MEDIA_TYPE = "application/x-www-form-urlencoded"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Form:
    """The fields of a form. Every text is valid Unicode without U+0000, with \\n for line ends."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def text(self, name: str, *, max_chars: int) -> str:
        """The field's text without space at its ends, empty when it is absent."""
        values = self._fields.get(name, ())
        if len(values) > 1:
            raise InvalidFieldError("was sent more than once", reason="INVALID_FORM", field=name)
        text = values[0].strip() if values else ""
        if len(text) > max_chars:
            raise InvalidFieldError(
                f"{len(text):,} characters; at most {max_chars:,}", reason="TEXT_TOO_LONG", field=name
            )
        return text

    def secret(self, name: str, *, max_chars: int) -> str:
        """As :meth:`text`, but with the space at its ends."""
        values = self._fields.get(name, ())
        if len(values) > 1 or any(len(value) > max_chars for value in values):
            raise InvalidFieldError("is too long", reason="TEXT_TOO_LONG", field=name)
        return values[0] if values else ""

    def texts(self, name: str, *, max_chars: int, max_count: int) -> list[str]:
        """All texts of a field that may be sent several times, such as checkboxes."""
        values = self._fields.get(name, ())
        if len(values) > max_count or any(len(value) > max_chars for value in values):
            raise InvalidFieldError("too much was sent", reason="INVALID_FORM", field=name)
        return [value.strip() for value in values]

    def integer(self, name: str, *, minimum: int, maximum: int) -> int | None:
        """The field's whole number, None when it is absent or empty."""
        text = self.text(name, max_chars=20)
        if not text:
            return None
        if re.fullmatch(r"-?[0-9]+", text, re.ASCII) is None or not minimum <= int(text) <= maximum:
            raise InvalidFieldError(
                f"a whole number from {minimum:,} to {maximum:,}", reason="INVALID_NUMBER", field=name
            )
        return int(text)

    def number(self, name: str, *, minimum: float, maximum: float) -> float | None:
        """The field's number, None when it is absent or empty."""
        text = self.text(name, max_chars=30)
        if not text:
            return None
        if (
            re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text, re.ASCII) is None
            or not minimum <= float(text) <= maximum
        ):
            raise InvalidFieldError(
                f"a number from {minimum:g} to {maximum:g}", reason="INVALID_NUMBER", field=name
            )
        return float(text)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """The field's text, which must be one of those."""
        text = self.text(name, max_chars=200)
        if text not in allowed:
            raise InvalidFieldError("choose one of those offered", reason="INVALID_CHOICE", field=name)
        return text

    def checked(self, name: str) -> bool:
        """Whether a checkbox is on."""
        return bool(self._fields.get(name))


EMPTY_FORM = Form({})


def parse_form(body: bytes) -> Form:
    """Read url-encoded fields. Raises a 400 page for a body that is malformed."""
    fields: dict[str, list[str]] = {}
    if not body:
        return EMPTY_FORM
    parts = body.split(b"&", MAX_FIELDS)
    if len(parts) > MAX_FIELDS:
        raise PageError(400, "The form has too many fields.")
    for part in parts:
        name, _equals, value = part.partition(b"=")
        fields.setdefault(_decode(name), []).append(_decode(value))
    return Form(fields)


def _decode(raw: bytes) -> str:
    if _BAD_ESCAPE.search(raw) is not None:
        raise PageError(400, "The form is malformed.")
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise PageError(400, "The form is not valid UTF-8.") from None
    if "\x00" in text:
        raise PageError(400, "The form holds the character U+0000, which cannot be kept.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
