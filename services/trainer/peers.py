"""How a stage calls other services: several at once, with patience for one that is away.

A service that restarts is waited for; one that came back without its model, or with another one, is given the
right one first. Only then, or after the patience has run out, is a failure the run's. The stage's own thread
waits here and goes on obeying the controls; the calls themselves run in other threads, and none begins while
the run is asked to halt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from andon.errors import (
    AndonError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.trainer.errors import PeerLostError
from services.trainer.stages.context import StageContext, StageState

T = TypeVar("T")

LOOK_UP_EVERY_S = 0.1  # how often the waiting thread obeys the controls
FIRST_PAUSE_S = 0.2  # before a call is made again; doubles
LONGEST_PAUSE_S = 2.0
MOST_AT_ONCE = 128  # calls; further ones wait for a thread

# The service works, but not with the model that the call needs.
_MODEL_REASONS = frozenset({"MODEL_NOT_LOADED", "MODEL_VERSION_MISMATCH"})
_DAMAGED_ON_THE_WAY = frozenset({"WEIGHTS_CHECKSUM_MISMATCH", "WEIGHTS_TRUNCATED"})


class AbandonedCallError(Exception):
    """Nobody waits for this call any more: its run has left."""


class Peers:
    """Calls of one stage."""

    def __init__(self, context: StageContext, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._patience_s = context.clients.patience_s
        self._clock = clock
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._away: dict[str, str] = {}  # peer -> why it is being waited for
        # Never waited for here: a call that hangs ends when the run's connections are closed.
        self._threads = ThreadPoolExecutor(max_workers=MOST_AT_ONCE, thread_name_prefix="peer-call")

    def together(self, calls: Sequence[Callable[[], T]], *, state: Callable[[], StageState]) -> list[T]:
        """Make the calls at the same time and give their results in order; the first failure is raised.

        ``state`` must describe the moment before the calls.
        """
        return self.wait_for([self._threads.submit(call) for call in calls], state=state)

    def wait_for(self, futures: Sequence[Future[T]], *, state: Callable[[], StageState]) -> list[T]:
        """Results, in order, of calls that other threads make; the first failure is raised."""
        try:
            while True:
                done, pending = wait(futures, timeout=LOOK_UP_EVERY_S, return_when=FIRST_EXCEPTION)
                failed = next((future for future in futures if future in done and future.exception()), None)
                if failed is not None:
                    failed.result()
                self._tell_what_is_away()
                if not pending:
                    return [future.result() for future in futures]
                self._context.obey(state)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """The run leaves: no call begins any more, and none is made again."""
        self._abandoned.set()

    def patiently(self, peer: str, call: Callable[[], T], *, restore: Callable[[], object]) -> T:
        """Make one call until it succeeds, fails for good, or the peer has been away for the patience.

        ``restore`` gives the peer the model that the call needs; it may fail like the call itself.
        """
        away_since_s: float | None = None
        pause_s = FIRST_PAUSE_S
        must_restore = False
        while True:
            self._until_it_may_begin()
            try:
                if must_restore:
                    restore()
                    must_restore = False
                result = call()
            except AndonError as error:
                if not _may_pass(error):
                    raise
                must_restore = must_restore or error.reason in _MODEL_REASONS
                now_s = self._clock()
                away_since_s = now_s if away_since_s is None else away_since_s
                if now_s - away_since_s >= self._patience_s:
                    raise PeerLostError(
                        peer=peer,
                        patience_s=self._patience_s,
                        last_problem=f"{error.reason}: {error.message}",
                    ) from error
                with self._lock:
                    self._away[peer] = error.reason
            else:
                with self._lock:
                    self._away.pop(peer, None)
                return result
            self._abandoned.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _until_it_may_begin(self) -> None:
        while self._context.asked_to_halt() and not self._abandoned.wait(LOOK_UP_EVERY_S):
            pass
        if self._abandoned.is_set():
            raise AbandonedCallError

    def _tell_what_is_away(self) -> None:
        with self._lock:
            message = "; ".join(
                f"waiting for {peer} ({reason})" for peer, reason in sorted(self._away.items())
            )
        self._context.waiting(message)


def _may_pass(error: AndonError) -> bool:
    """Whether the same call may succeed later."""
    match error:
        case UnavailableError() | DeadlineExceededError():
            return True
        case ResourceExhaustedError():
            return error.reason in ("QUEUE_FULL", "RATE_LIMITED")
        case FailedPreconditionError():
            return error.reason in _MODEL_REASONS
        case DataLossError():
            return error.reason in _DAMAGED_ON_THE_WAY
    return False
