"""When the figures that a monitor watches are computed: in the background, at a set interval.

A scrape reads what was computed last and touches nothing. Reading uses a database thread, computing a thread
of its own. What could not be read is unknown, and the metrics say nothing rather than something old.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from andon.errors import AndonError
from services.labeling.figures_store import FiguresStore, Workload
from services.labeling.metrics import Figures, LabelingMetrics
from services.labeling.quality.newest import known_item_agreement, labeler_agreement
from services.labeling.quality.records import JudgedAnswer
from services.labeling.threads import DatabaseThreads

_log = structlog.stdlib.get_logger(__name__)


class FiguresWatch:
    """Keeps the figures in the metrics fresh between :meth:`start` and :meth:`close`."""

    def __init__(
        self,
        store: FiguresStore,
        *,
        threads: DatabaseThreads,
        metrics: LabelingMetrics,
        interval_s: float,
        num_answers: int,
        num_recent_known: int,
        active_s: float,
    ) -> None:
        """``num_answers`` and ``num_recent_known``: over how many of the newest answers."""
        self._store = store
        self._threads = threads
        self._metrics = metrics
        self._interval_s = interval_s
        self._num_answers = num_answers
        self._num_recent_known = num_recent_known
        self._active_us = round(active_s * 1e6)
        self._closing = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._refreshing = asyncio.create_task(self._refresh_always())

    async def close(self) -> None:
        """Finish what is under way and stop."""
        self._closing.set()
        if self._refreshing is not None:
            await self._refreshing

    async def refresh(self) -> None:
        """Compute the figures once."""
        try:
            workload = await self._threads.read(lambda: self._store.workload(active_us=self._active_us))
            answers = await self._threads.read(lambda: self._store.newest_answers(self._num_answers))
            known = await self._threads.read(self._store.newest_known_answers)
        except AndonError:  # counted and logged where it came from
            self._metrics.figures.show(None)
            return
        self._metrics.figures.show(await asyncio.to_thread(self._compute, workload, answers, known))

    def _compute(self, workload: Workload, answers: list[JudgedAnswer], known: list[JudgedAnswer]) -> Figures:
        known_items = known_item_agreement(known, num_recent=self._num_recent_known)
        return Figures(
            labeler_agreement=labeler_agreement(answers),
            known_items_recent=known_items.recent,
            known_items_baseline=known_items.baseline,
            num_waiting_tasks=workload.num_waiting_tasks,
            num_active_labelers=workload.num_active_labelers,
        )

    async def _refresh_always(self) -> None:
        while not self._closing.is_set():
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - a defect here must not end the watch over what people do
                _log.exception("figures_failed")
                self._metrics.figures.show(None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._closing.wait()
