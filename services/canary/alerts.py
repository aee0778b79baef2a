"""Hears firing alerts from Prometheus Alertmanager.

It asks Alertmanager's own API (``GET /api/v2/alerts``) for what fires, is neither silenced nor inhibited, and
fits the matchers. An Alertmanager that cannot be asked is counted and logged and is no emergency: its silence
says nothing of the canary, which has its gates.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from andon.errors import AndonError
from services.canary.emergency import Emergency
from services.canary.errors import MetricsUnreadableError

_log = structlog.stdlib.get_logger(__name__)

TIMEOUT_S = 5.0
MOST_BYTES = 16 * 1024 * 1024
INTERVAL_S = 5.0


def firing_alerts(url: str, matchers: Sequence[str]) -> list[str]:
    """What fires, in words. Raises MetricsUnreadableError."""
    query = [("active", "true"), ("silenced", "false"), ("inhibited", "false")]
    query += [("filter", matcher) for matcher in matchers]
    address = f"{url.rstrip('/')}/api/v2/alerts?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            alerts = json.loads(answer.read(MOST_BYTES))
        return [_in_words(alert) for alert in alerts]
    except (
        urllib.error.URLError,
        TimeoutError,
        ConnectionError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
    ) as error:
        raise MetricsUnreadableError(url, error) from error


class AlertWatch:
    """Asks in a thread of its own."""

    def __init__(
        self,
        url: str,
        matchers: Sequence[str],
        emergency: Emergency,
        *,
        failed: Callable[[], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """``failed`` hears of each attempt that got no answer."""
        self._url = url
        self._matchers = tuple(matchers)
        self._emergency = emergency
        self._failed = failed
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._firing: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._watch, name="alert-watch", daemon=True)
        emergency.watch(self.hold)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking; a question under way ends by its time-out."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=TIMEOUT_S + 1)

    def hold(self) -> str | None:
        """Why the line must stand, by the last answer; None when it may move."""
        return f"the alert {self._firing[0]} fires" if self._firing else None

    def look(self) -> None:
        """Ask once."""
        try:
            self._firing = tuple(firing_alerts(self._url, self._matchers))
        except AndonError as error:
            self._failed()
            _log.warning("alerts_not_heard", reason=error.reason, message=error.message)
            return
        reason = self.hold()
        if reason is not None:
            self._emergency.tell(reason)

    def _watch(self) -> None:
        while not self._closing.is_set():
            self.look()
            self._closing.wait(self._interval_s)


def _in_words(alert: dict[str, Any]) -> str:
    """``alert`` is JSON as Alertmanager's API describes it."""
    name = str(alert["labels"].get("alertname", "without a name"))
    summary = alert.get("annotations", {}).get("summary")
    return f"{name} ({summary})" if summary else name
