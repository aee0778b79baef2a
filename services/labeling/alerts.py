"""Which alerts pull the cord, and what is written down of them.

Reads the message of Prometheus Alertmanager's webhook, version 4: its own documentation names the fields. An
alert pulls when it fires and carries the label ``andon_cord: pull``; all others are none of the cord's
business. Alertmanager repeats what still fires, so an alert is known by its fingerprint and by when it began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from services.labeling.cord import MAX_REASON_CHARS
from services.labeling.errors import InvalidFieldError
from services.labeling.requests import RepeatableRequest

ACTOR = "alertmanager"
METHOD = "alerts.pull"  # of the request that is remembered
LABEL, PULL = "andon_cord", "pull"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TEXTS: Mapping[str, str] = {}


class Alert(BaseModel):
    """One alert of a message."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    status: Literal["firing", "resolved"]
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = _NO_TEXTS
    starts_at: AwareDatetime = Field(alias="startsAt")
    fingerprint: str = Field(min_length=1, max_length=200)

    @property
    def pulls(self) -> bool:
        """Whether it asks for the cord."""
        return self.status == "firing" and self.labels.get(LABEL) == PULL


class AlertMessage(BaseModel):
    """What Alertmanager posts: the alerts of one group."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    version: Literal["4"]
    alerts: tuple[Alert, ...]


def read_alerts(body: bytes) -> AlertMessage:
    """The message in a body. Raises InvalidFieldError INVALID_ALERTS, which does not quote it."""
    try:
        return AlertMessage.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidFieldError(first["msg"], reason="INVALID_ALERTS", field=place or "body") from None


def request_of(alert: Alert) -> RepeatableRequest:
    """What makes a repetition of this alert recognisable: it pulls once, however often it is told."""
    began_us = (alert.starts_at - _EPOCH) // timedelta(microseconds=1)
    digest = hashlib.sha256(f"{alert.fingerprint}\n{began_us}".encode()).hexdigest()
    return RepeatableRequest(method=METHOD, request_id=digest, digest=digest)


def reason_of(alert: Alert) -> str:
    """Why the cord is pulled: the alert's name and what its rule says, cut to what the record takes."""
    told = alert.annotations
    name = alert.labels.get("alertname", "").strip() or "an alert without a name"
    lines = [f"{name}: {told['summary']}" if told.get("summary") else name]
    lines += [told["description"]] if told.get("description") else []
    lines += [f"Runbook: {told['runbook_url']}"] if told.get("runbook_url") else []
    text = "\n".join(lines).replace("\x00", "\ufffd")
    return text if len(text) <= MAX_REASON_CHARS else f"{text[: MAX_REASON_CHARS - 1]}…"
