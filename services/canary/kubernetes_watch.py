"""Tells that something about the policy's pods has changed, so that nobody need poll fast.

A hint and nothing more: whoever is woken reads afresh, and reads anyway after a while. So a watch that is
lost, expired or silent costs time and never truth. It lives in a thread of its own and is begun again for as
long as ``stop`` has not been called; the list at each new beginning counts as a change, for what happened in
between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from andon.errors import AndonError
from services.canary.kubernetes_calls import KubernetesCalls, Resource

log = structlog.get_logger(__name__)

WATCH_S = 300.0  # the server ends a watch after this; a new one goes on from where it was
SILENCE_S = 90.0  # bookmarks come about every minute, so after this the connection is dead
LONGEST_PAUSE_S = 10.0


class ChangeWatch:
    """Watches objects with some labels and calls ``on_change`` from its own thread."""

    def __init__(
        self,
        calls: KubernetesCalls,
        resource: Resource,
        *,
        labels: Mapping[str, str],
        on_change: Callable[[], None],
        silence_s: float = SILENCE_S,
        first_pause_s: float = 0.2,
    ) -> None:
        self._calls = calls
        self._labels = dict(labels)
        self._on_change = on_change
        self._silence_s = silence_s
        self._first_pause_s = first_pause_s
        self._stopping = threading.Event()
        self._resource = resource
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.plural}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more, and call nobody. The thread ends when the server next says something, or with the
        process; nobody waits for it.
        """
        self._stopping.set()

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while not self._stopping.is_set():
            try:
                since = self._calls.list(self._resource, labels=self._labels).version
                self._tell()
                while not self._stopping.is_set():
                    since = self._follow(since)
                    pause_s = self._first_pause_s
            except AndonError as error:
                log.info("watch_begins_again", resource=self._resource.plural, reason=error.reason)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _follow(self, since: str) -> str:
        """One watch to its end; where the next one goes on."""
        events = self._calls.watch(
            self._resource, labels=self._labels, since=since, timeout_s=WATCH_S, silence_s=self._silence_s
        )
        for event in events:
            since = event.version
            if self._stopping.is_set():
                break
            if event.type != "BOOKMARK":
                self._tell()
        return since

    def _tell(self) -> None:
        if not self._stopping.is_set():
            self._on_change()
