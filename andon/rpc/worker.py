"""Decides which call the model works on next: one thread, first come first served, behind a bounded queue.

The servicers of the reward and the reference service call ``run``. One thread, because a model's weights and
its libraries' thread pools are shared anyway and a second forward pass would only slow down the first. A full
queue refuses at once: an early RESOURCE_EXHAUSTED is worth more to a caller than a late answer. The policy
has its own scheduler.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from andon.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from andon.rpc.deadline import call_deadline
from andon.rpc.metrics import WorkerMetrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[T]):
    """What the work gave, and where the time went."""

    value: T
    queue_s: float
    compute_s: float


class CallerGoneError(UnavailableError):
    """Nobody waits for the answer any more. Raised inside the model thread to break work off."""

    default_reason = "CALLER_GONE"


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """One call's place in the queue."""

    arrival: float
    deadline: float | None
    abandoned: threading.Event


class ModelWorker:
    """One dedicated thread behind a bounded queue."""

    def __init__(self, *, name: str, max_queued_calls: int, metrics: WorkerMetrics) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-model")
        self._max_queued_calls = max_queued_calls
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting = 0
        self._closing = False
        self._current: _Job | None = None

    async def run(self, work: Callable[[], T]) -> Timed[T]:
        """Wait for the thread, let it do ``work``, and return what it gave.

        When the awaiting task is cancelled, work that has not begun is skipped and work that has begun is
        told at its next ``check_caller``. Raises ResourceExhaustedError QUEUE_FULL, DeadlineExceededError and
        whatever ``work`` raises.
        """
        if self._closing:
            raise UnavailableError("the service is shutting down", reason="SHUTTING_DOWN")
        job = _Job(arrival=time.monotonic(), deadline=call_deadline(), abandoned=threading.Event())
        self._enter_queue()
        future = self._executor.submit(self._perform, job, work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            job.abandoned.set()
            if future.cancel():
                self._leave_queue()
                self._metrics.abandoned.labels("cancelled").inc()
            raise

    def check_caller(self) -> None:
        """Break off the work in progress if its caller has gone. Long work calls this, in the thread, at
        its seams.
        """
        job = self._current
        if job is None:
            return
        if job.abandoned.is_set():
            self._metrics.abandoned.labels("cancelled").inc()
            raise CallerGoneError("the caller has gone")
        if job.deadline is not None and time.monotonic() >= job.deadline:
            self._metrics.abandoned.labels("deadline").inc()
            raise DeadlineExceededError(
                "the deadline passed before the work was done", reason="DEADLINE_PASSED"
            )

    async def close(self) -> None:
        """Refuse new work, wait for what is queued and running, and end the thread."""
        self._closing = True
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    def _perform(self, job: _Job, work: Callable[[], T]) -> Timed[T]:
        start = time.monotonic()
        self._leave_queue()
        self._current = job
        self._metrics.running_calls.set(1)
        self._metrics.queue_seconds.observe(start - job.arrival)
        try:
            self.check_caller()
            value = work()
            compute_s = time.monotonic() - start
            self._metrics.compute_seconds.observe(compute_s)
            return Timed(value=value, queue_s=start - job.arrival, compute_s=compute_s)
        finally:
            self._current = None
            self._metrics.running_calls.set(0)

    def _enter_queue(self) -> None:
        with self._lock:
            if self._waiting >= self._max_queued_calls:
                self._metrics.rejected.inc()
                raise ResourceExhaustedError(
                    f"{self._waiting} calls already wait for the model; repeat later",
                    reason="QUEUE_FULL",
                    max_queued_calls=self._max_queued_calls,
                )
            self._waiting += 1
            self._metrics.waiting_calls.set(self._waiting)

    def _leave_queue(self) -> None:
        with self._lock:
            self._waiting -= 1
            self._metrics.waiting_calls.set(self._waiting)
