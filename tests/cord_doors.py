"""The four ways to the cord, as people and programs take them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx

from andon.client.cord import CordClient
from tests.site import Person

REASON = "five summaries in a row are rude"
Pull = Callable[[], None]


def by_page(person: Person) -> Pull:
    """Somebody who is signed in sends the form that every page holds."""
    token = person.csrf_of("/cord")

    def pull() -> None:
        fields = {"csrf": token, "nonce": uuid.uuid4().hex, "reason": REASON}
        answer = person.post("/cord/pull", data=fields)
        assert answer.status_code == 303, answer.text

    return pull


def by_command(target: str, token: str) -> Pull:
    """``andon cord pull``, a process of its own."""
    program = "from andon.cli.main import main; main()"
    arguments = [sys.executable, "-c", program, "cord", "pull", REASON, "--labeling-target", target]

    def pull() -> None:
        done = subprocess.run(
            arguments, env={**os.environ, "ANDON_TOKEN": token}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return pull


def by_rpc(client: CordClient) -> Pull:
    """A program calls PullCord."""

    def pull() -> None:
        client.pull(actor="", reason=REASON)

    return pull


def by_webhook(client: httpx.Client, token: str) -> Pull:
    """Alertmanager posts a firing alert."""
    client.headers["Authorization"] = f"Bearer {token}"

    def pull() -> None:
        answer = client.post("/alerts", json=alert_message(uuid.uuid4().hex))
        assert answer.status_code == 200, answer.text
        assert answer.json()["pulled"] == 1

    return pull


def alert_message(fingerprint: str) -> Mapping[str, Any]:
    """What Alertmanager posts of one alert that pulls."""
    alert = {
        "status": "firing",
        "labels": {"alertname": "AndonRewardSpike", "andon_cord": "pull"},
        "annotations": {"summary": REASON},
        "startsAt": datetime.now(UTC).isoformat(),
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": fingerprint,
    }
    return {"version": "4", "status": "firing", "receiver": "cord", "alerts": [alert]}
