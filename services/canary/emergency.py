"""Why the line must stop at once: the andon cord, or an alert.

A pull that was seen is remembered until ``forget``, so that a cord which is pulled and released between two
looks still rolls a rollout back. A cord that cannot be heard stops the line after a while: nobody could stop
it then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

from andon.client.cord import Cord
from andon.errors import AndonError

_log = structlog.stdlib.get_logger(__name__)

RETRY_AFTER_S = 0.5  # between two attempts to listen


class CordSource(Protocol):
    """Where the cord is heard; ``andon.client.cord.CordClient`` is one."""

    def watch(self, *, timeout_s: float | None = None, wait_for_ready: bool = False) -> Iterator[Cord]:
        """The state at once, after every change, and again from time to time."""
        ...

    def close(self) -> None:
        """End what is in progress."""
        ...


class Emergency:
    """What stops the line, by whichever way it came. Any thread may use it."""

    def __init__(self, *, on_stop: Callable[[], None]) -> None:
        """``on_stop`` is called when the first reason is told."""
        self._on_stop = on_stop
        self._reason: str | None = None
        self._standing: list[Callable[[], str | None]] = []

    def watch(self, standing: Callable[[], str | None]) -> None:
        """Ask this too, at every look."""
        self._standing.append(standing)

    def tell(self, reason: str) -> None:
        """Stop the line. The first reason is kept."""
        if self._reason is None:
            self._reason = reason
            _log.warning("line_stopped", reason=reason)
            self._on_stop()

    def why(self) -> str | None:
        """Why the line must stop; None when it need not."""
        standing = (reason for ask in self._standing if (reason := ask()) is not None)
        return self._reason or next(standing, None)

    def forget(self) -> None:
        """Nothing runs that a reason of the past could concern."""
        self._reason = None


class CordWatch:
    """Listens to the cord in a thread of its own."""

    def __init__(
        self,
        source: CordSource,
        emergency: Emergency,
        *,
        unheard_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``unheard_s`` is how long the cord may be silent."""
        self._source = source
        self._emergency = emergency
        self._unheard_limit_s = unheard_s
        self._clock = clock
        self._closing = threading.Event()
        self._cord: Cord | None = None
        self._last_heard_s = clock()
        self._thread = threading.Thread(target=self._listen, name="cord-watch", daemon=True)
        emergency.watch(self.hold)

    def start(self) -> None:
        """Begin to listen."""
        self._last_heard_s = self._clock()
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        self._source.close()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def unheard_s(self) -> float:
        """How long ago the cord was last heard."""
        return self._clock() - self._last_heard_s

    def has_heard(self) -> bool:
        """Whether the cord was heard at all."""
        return self._cord is not None

    def hold(self) -> str | None:
        """Why the line must stand now; None when it may move."""
        cord = self._cord
        if cord is not None and cord.pulled:
            return _pulled(cord)
        if self.unheard_s() >= self._unheard_limit_s:
            return f"the cord service has not been heard for {self._unheard_limit_s:g} s"
        return None

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                for cord in self._source.watch():
                    self._hear(cord)
            except AndonError as error:
                if not self._closing.is_set():
                    _log.warning("cord_not_heard", reason=error.reason, unheard_s=round(self.unheard_s(), 1))
            except ValueError:  # what gRPC raises for a call on a channel that was closed in this very moment
                if not self._closing.is_set():
                    raise
            self._closing.wait(RETRY_AFTER_S)

    def _hear(self, cord: Cord) -> None:
        self._cord = cord
        self._last_heard_s = self._clock()
        if cord.pulled:
            self._emergency.tell(_pulled(cord))


def _pulled(cord: Cord) -> str:
    return f"the cord is pulled by {cord.actor}: {cord.reason}"
