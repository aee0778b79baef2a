"""Whether the andon cord lets training run.

A thread of its own listens to the cord service for as long as a run lasts. Two things hold the run: a pulled
cord, and a cord that could not be heard for ``hold_after_s`` (nobody could stop a run that does not hear).
Nothing is ever concluded from silence but that. The runner asks ``hold`` between optimizer steps; this module
stops nothing itself.
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

ACTOR = "trainer"  # who pulls when a guard alarms
RETRY_AFTER_S = 0.5  # between two attempts to listen; one small call, so it may be often


class CordSource(Protocol):
    """Where the cord is heard; ``andon.client.cord.CordClient`` is one."""

    def pull(
        self, *, actor: str, reason: str, request_id: str | None = None, timeout_s: float = 30.0
    ) -> Cord:
        """Stop training."""
        ...

    def watch(self, *, timeout_s: float | None = None, wait_for_ready: bool = False) -> Iterator[Cord]:
        """The state at once, after every change, and again from time to time."""
        ...

    def close(self) -> None:
        """End what is in progress."""
        ...


class CordGuard:
    """Hears one cord service for one run."""

    def __init__(
        self,
        source: CordSource,
        *,
        hold_after_s: float,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``changed`` is called from the listening thread after each word from the cord."""
        self._source = source
        self._hold_after_s = hold_after_s
        self._changed = changed
        self._clock = clock
        self._closing = threading.Event()
        self._heard = threading.Event()
        self._cord: Cord | None = None
        self._last_heard_s = clock()
        self._thread = threading.Thread(target=self._listen, name="cord-guard", daemon=True)

    def start(self) -> None:
        """Begin to listen, and wait for the first word, at most ``hold_after_s``.

        A run must not take its first steps while the cord may have been pulled before it began.
        """
        self._thread.start()
        self._heard.wait(self._hold_after_s)

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        self._source.close()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def pull(self, *, reason: str, request_id: str) -> int:
        """Pull the cord in the trainer's name; returns the event's number. Repeating it changes nothing."""
        return self._source.pull(actor=ACTOR, reason=reason, request_id=request_id).event_number

    def released_after(self, event_number: int) -> bool:
        """Whether somebody released the cord after this event."""
        cord = self._cord
        return cord is not None and not cord.pulled and cord.event_number > event_number

    def unheard_s(self) -> float:
        """How long ago the cord was last heard."""
        return self._clock() - self._last_heard_s

    def hold(self) -> str | None:
        """Why training must stand still, in words; None when it may run."""
        cord = self._cord
        if cord is not None and cord.pulled:
            return f"the cord is pulled by {cord.actor}: {cord.reason}"
        if self.unheard_s() >= self._hold_after_s:
            return f"the cord service has not been heard for {self._hold_after_s:g} s"
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
        known = self._cord
        self._cord = cord
        self._last_heard_s = self._clock()
        self._heard.set()
        if known is None or known.event_number != cord.event_number or known.pulled != cord.pulled:
            _log.info("cord_heard", pulled=cord.pulled, event_number=cord.event_number)
        self._changed()
