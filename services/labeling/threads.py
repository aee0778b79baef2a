"""Which thread talks to the database, so that the event loop never waits for a disk.

The servicers call this. Reads and writes have threads of their own: a write that waits for a lock does not
hold up a reader. A call that is cancelled while it waits is never begun; one that has begun is finished,
and its caller finds out by repeating the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.labeling.errors import QueueFullError
from services.labeling.metrics import LabelingMetrics

T = TypeVar("T")


class DatabaseThreads:
    """Two small thread pools behind one bounded queue."""

    def __init__(
        self, *, num_readers: int, num_writers: int, max_queued_calls: int, metrics: LabelingMetrics
    ) -> None:
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="database-read")
        self._writers = ThreadPoolExecutor(num_writers, thread_name_prefix="database-write")
        self._max_queued_calls = max_queued_calls
        self._num_calls = 0
        self._metrics = metrics

    async def read(self, work: Callable[[], T]) -> T:
        """Run work that only reads."""
        return await self._run(self._readers, "read", work)

    async def write(self, work: Callable[[], T], *, then: Callable[[], None] | None = None) -> T:
        """Run work that writes; ``then`` is called on the loop after it, even if its caller has gone."""
        loop = asyncio.get_running_loop()

        def work_and_tell() -> T:
            value = work()
            if then is not None:
                loop.call_soon_threadsafe(then)
            return value

        return await self._run(self._writers, "write", work_and_tell)

    async def close(self) -> None:
        """Finish what has begun and end the threads."""
        loop = asyncio.get_running_loop()
        for executor in (self._readers, self._writers):
            await loop.run_in_executor(None, executor.shutdown)

    async def _run(self, executor: ThreadPoolExecutor, access: str, work: Callable[[], T]) -> T:
        if self._num_calls >= self._max_queued_calls:
            raise QueueFullError(self._max_queued_calls)
        self._num_calls += 1
        self._metrics.database_calls.inc()
        start = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        finally:
            self._num_calls -= 1
            self._metrics.database_calls.dec()
            self._metrics.database_seconds.labels(access).observe(time.monotonic() - start)
