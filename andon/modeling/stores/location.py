"""Decides how the place of a model store is written: a folder, or ``s3://bucket/prefix``.

Configurations and the command line take a ``StoreLocation``; ``store.ModelStore`` opens it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from andon.errors import InvalidArgumentError

_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._=-]+"
_S3_PATTERN = rf"s3://{_BUCKET}(/{_SEGMENT})*/?"
_S3 = re.compile(rf"s3://(?P<bucket>{_BUCKET})/?(?P<prefix>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """A bucket, and what the keys of all objects of the store begin with; "" for the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_location(location: str | Path) -> Path | S3Location:
    """Raises InvalidArgumentError INVALID_STORE for anything that is neither a folder nor s3://."""
    text = os.fspath(location)
    if isinstance(location, Path) or not ("://" in text or text.startswith("s3:")):
        if not text:
            raise InvalidArgumentError("the name of the store's folder is empty", reason="INVALID_STORE")
        return Path(text)
    match = _S3.fullmatch(text)
    if match is None or not re.fullmatch(_S3_PATTERN, text):
        raise InvalidArgumentError(
            f"{text!r} is no place for a model store: write a folder or s3://bucket/prefix, the prefix of "
            "letters, digits and '._=-'",
            reason="INVALID_STORE",
            store=text,
        )
    return S3Location(bucket=match["bucket"], prefix=match["prefix"].rstrip("/"))


def _as_text(value: Any) -> Any:  # whatever a file or a variable holds; pydantic refuses what is no text
    if not isinstance(value, (str, Path)):
        return value
    try:
        return str(parse_location(value))
    except InvalidArgumentError as error:
        raise ValueError(error.message) from error


StoreLocation = Annotated[
    str,
    BeforeValidator(_as_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "path", "pattern": "^(?!.*://)(?!s3:).+$"},
                {"type": "string", "pattern": f"^{_S3_PATTERN}$"},
            ]
        }
    ),
]
"""A setting that says where the model store is."""
