"""Whether a request was answered before, and with what.

The stores ask inside the transaction that does the work, so that work and answer are remembered together or
not at all: a caller who heard nothing repeats the request and gets what the first one got.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.labeling import schema
from services.labeling.errors import RequestIdReusedError

# Made once: every write runs them, and making a statement costs more than running it.
_FIND = sa.select(schema.requests.c.digest, schema.requests.c.response).where(
    schema.requests.c.method == sa.bindparam("method"),
    schema.requests.c.request_id == sa.bindparam("request_id"),
)
_REMEMBER = sa.insert(schema.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatableRequest:
    """What makes a repetition recognisable."""

    method: str  # a request_id is unique per method
    request_id: str
    digest: str  # SHA-256 of the content, as hexadecimal


def recall(connection: sa.Connection, request: RepeatableRequest) -> Any | None:  # Any: what json.loads gives
    """The first answer to this request, None if it is new; refuses a request_id with other content."""
    found = _find(connection, request)
    if found is not None and found.digest != request.digest:
        raise RequestIdReusedError(request.request_id)
    return None if found is None else found.response


def recall_any(connection: sa.Connection, request: RepeatableRequest) -> Any | None:  # Any: as above
    """As :func:`recall`, but whatever the content: for acts that must not fail for a detail."""
    found = _find(connection, request)
    return None if found is None else found.response


def _find(connection: sa.Connection, request: RepeatableRequest) -> sa.Row[Any, Any] | None:
    return connection.execute(
        _FIND, {"method": request.method, "request_id": request.request_id}
    ).one_or_none()


def remember(connection: sa.Connection, request: RepeatableRequest, response: object, *, now_us: int) -> None:
    """Keep the answer, which must be JSON and not null."""
    connection.execute(
        _REMEMBER,
        {
            "method": request.method,
            "request_id": request.request_id,
            "digest": request.digest,
            "response": response,
            "request_us": now_us,
        },
    )
