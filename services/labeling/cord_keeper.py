"""The cord as this process keeps it: who acts on it, who hears of it, and what the metrics say.

The RPCs, the pages and the door for alerts all act through :class:`CordKeeper`, so that a pull is one thing
whatever way it comes. Database threads of the cord's own keep it from waiting behind labelers' calls. Other
processes may act on the same database: a task looks for what they did and wakes the watchers here.
"""

from __future__ import annotations

import asyncio
import functools

import structlog

from andon.errors import AndonError
from services.labeling.changes import Changes
from services.labeling.cord import CordAction, CordEvent, is_pulled
from services.labeling.cord_store import Acted, CordStore
from services.labeling.errors import DrainingError
from services.labeling.metrics import LabelingMetrics
from services.labeling.requests import RepeatableRequest
from services.labeling.threads import DatabaseThreads

_RETRY_S = 1.0  # before the database is asked again that did not answer

_log = structlog.stdlib.get_logger(__name__)


class CordKeeper:
    """Acts on the cord and tells of it. All of it runs on the event loop but for the database calls."""

    def __init__(
        self, store: CordStore, *, threads: DatabaseThreads, metrics: LabelingMetrics, poll_s: float
    ) -> None:
        """``poll_s`` is how often other processes' acts are looked for."""
        self.changes = Changes()  # announced after every act that this process knows of
        self._store = store
        self._threads = threads
        self._metrics = metrics
        self._poll_s = poll_s
        self._last: CordEvent | None = None  # the newest that this process knows of
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> CordEvent | None:
        """Read the state, begin to look for other processes' acts, and give the last event."""
        self._note(await self.last())
        self._metrics.cord_pulled.set(is_pulled(self._last))
        self._following = asyncio.create_task(self._follow())
        return self._last

    def end(self) -> None:
        """Let all who wait for changes go on to another process."""
        self.changes.end()

    async def close(self) -> None:
        """Stop looking. Call :meth:`end` first."""
        if self._following is not None:
            await self._following

    async def act(self, request: RepeatableRequest, action: CordAction, *, actor: str, reason: str) -> Acted:
        """Pull or release, after ``cord.check_cord_act``. Raises CordNotPulledError.

        What was done is told to watchers and metrics even if the caller is gone by then.
        """
        done: list[Acted] = []

        def work() -> Acted:
            done.append(self._store.act(request, action, actor=actor, reason=reason))
            return done[-1]

        return await self._threads.write(work, then=lambda: self._tell(request.method, action, done[-1]))

    async def last(self) -> CordEvent | None:
        """The last event by the database, None when the cord was never touched."""
        return await self._threads.read(self._store.last)

    async def events_after(self, number: int) -> list[CordEvent]:
        """All events with a larger number, oldest first."""
        return await self._threads.read(functools.partial(self._store.events_after, number))

    async def newest_events(self, limit: int, *, before: int | None = None) -> list[CordEvent]:
        """A page of the record, newest first; of events with smaller numbers than ``before``."""
        return await self._threads.read(functools.partial(self._store.newest_events, limit, before=before))

    def _tell(self, method: str, action: CordAction, acted: Acted) -> None:
        if acted.repeated:
            self._metrics.requests_repeated.labels(method).inc()
            return
        self._metrics.cord_events.labels(action.value).inc()
        _log.warning(
            "cord_acted",
            action=action.value,
            actor=acted.event.actor,
            event_number=acted.event.number,
            method=method,
        )
        self._note(acted.event)
        self.changes.announce()

    def _note(self, event: CordEvent | None) -> bool:
        """Show the newest event in the metrics; whether this is news. Two acts may come in either order."""
        known = 0 if self._last is None else self._last.number
        if event is None or event.number <= known:
            return False
        self._last = event
        self._metrics.cord_pulled.set(is_pulled(event))
        return True

    async def _follow(self) -> None:
        wait_s = self._poll_s
        while True:
            try:
                await self.changes.wait_beyond(self.changes.count, timeout_s=wait_s)
                if self._note(await self.last()):
                    self.changes.announce()
                wait_s = self._poll_s
            except DrainingError:
                return
            except AndonError:  # counted and logged where it came from; what was known stands
                wait_s = max(self._poll_s, _RETRY_S)
            except Exception:  # noqa: BLE001 - a defect must not end the watch over the cord
                _log.exception("cord_not_followed")
                wait_s = max(self._poll_s, _RETRY_S)
