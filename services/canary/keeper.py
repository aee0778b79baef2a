"""The one door to the rollouts of this process: people's wishes come in here, and a thread looks on.

A platform and a controller are used by one thread at a time, so all of it goes under one lock. Who wants to
write does not wait for the round of probes that is under way: ``Wanted`` has it given up. A wish is written
into the record and carried out by the next look, which is made at once.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Literal

import structlog

from andon.errors import AndonError
from services.canary.controller import Controller
from services.canary.errors import (
    AlreadyStableError,
    LineStoppedError,
    NoRolloutError,
    NothingInProgressError,
    NotObservedError,
    RequestIdReusedError,
    RolloutInProgressError,
)
from services.canary.metrics import CanaryMetrics
from services.canary.platform import Platform, RecordedDecision, StoredRollout
from services.canary.rollout import Phase, Rollout, RolloutSpec

_log = structlog.stdlib.get_logger(__name__)

READ_WAIT_S = 0.5  # for the lock, before what was known at the last look is good enough


class Wanted:
    """Whether somebody waits for the lock, so that a round of probes should be given up. For all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._ending = False

    def is_set(self) -> bool:
        """Whether the present round should end now."""
        return self._waiting > 0 or self._ending

    def end(self) -> None:
        """No round is worth while any more."""
        self._ending = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While somebody waits."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1


class Keeper:
    """Rollouts on one platform."""

    def __init__(
        self,
        platform: Platform,
        controller: Controller,
        *,
        metrics: CanaryMetrics,
        is_leader: Callable[[], bool],
        emergency: Callable[[], str | None],
        when_idle: Callable[[], None],
        wanted: Wanted,
        look_interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        """``clock``: seconds since 1970. ``when_idle`` is called at each look that finds no rollout."""
        self._platform = platform
        self._controller = controller
        self._metrics = metrics
        self._is_leader = is_leader
        self._emergency = emergency
        self._when_idle = when_idle
        self._wanted = wanted
        self._look_interval_s = look_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Rollout | None = None  # as of the last look or wish
        self._look_now = threading.Event()
        self._ending = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._look_on, name="rollouts", daemon=True)

    # --- what people ask -----------------------------------------------------------------------------------

    def start_rollout(self, spec: RolloutSpec, *, request_id: str) -> Rollout:
        """Record a rollout; the same request again gives the same one, while it is the newest.

        Raises RolloutInProgressError, AlreadyStableError, RequestIdReusedError, LineStoppedError.
        """
        with self._writing():
            stored = self._platform.load()
            if stored is not None and stored.rollout.request_id == request_id:
                if stored.rollout.spec != spec:
                    raise RequestIdReusedError(request_id=request_id, rollout_id=stored.rollout.rollout_id)
                return stored.rollout
            if stored is not None and not stored.rollout.phase.is_final:
                before = stored.rollout
                raise RolloutInProgressError(
                    rollout_id=before.rollout_id, candidate=before.spec.candidate, phase=before.phase.value
                )
            stopped = self._emergency()
            if stopped is not None:
                raise LineStoppedError(stopped)
            stable = self._platform.stable_version()
            if stable == spec.candidate:
                raise AlreadyStableError(spec.candidate)
            now_s = self._clock()
            rollout = Rollout.begin(
                spec,
                rollout_id=_name_of(spec, request_id=request_id, now_s=now_s),
                stable=stable,
                now_s=now_s,
                request_id=request_id,
            )
            self._platform.save(rollout, revision=0 if stored is None else stored.revision)
            self._known = rollout
            _log.info(
                "rollout_started", rollout_id=rollout.rollout_id, candidate=spec.candidate, stable=stable
            )
        self.wake()
        return rollout

    def ask(self, what: Literal["promote", "abort"], *, actor: str, reason: str) -> Rollout:
        """Note what a person wants. Raises NothingInProgressError, NotObservedError."""
        with self._writing():
            stored = self._in_progress()
            rollout = stored.rollout
            if what == "promote" and rollout.phase not in (Phase.OBSERVING, Phase.HELD):
                raise NotObservedError(phase=rollout.phase.value)
            if rollout.phase is Phase.ROLLING_BACK:
                return rollout  # it ends as it would have
            asked = replace(rollout, asked=what, asked_by=actor, asked_reason=reason)
            self._platform.save(asked, revision=stored.revision)
            self._known = asked
            _log.info("rollout_asked", rollout_id=rollout.rollout_id, what=what, actor=actor)
        self.wake()
        return asked

    def newest(self) -> Rollout:
        """The newest rollout; while a look is under way, as it was before. Raises NoRolloutError."""
        if self._lock.acquire(timeout=-1 if self._known is None else READ_WAIT_S):
            try:
                stored = self._platform.load()
                self._known = None if stored is None else stored.rollout
            finally:
                self._lock.release()
        known = self._known
        if known is None:
            raise NoRolloutError
        return known

    def decisions(self) -> Sequence[RecordedDecision]:
        """What was decided, oldest first."""
        with self._writing():
            return [] if self._platform.load() is None else self._platform.decisions()

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have ``listener`` called, from any thread, whenever the newest rollout may have changed."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def wake(self) -> None:
        """Something changed: look now. Called from any thread."""
        self._look_now.set()
        self.tell()

    def tell(self) -> None:
        """Have every watcher look again."""
        for listener in list(self._listeners):
            listener()

    # --- looking on ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look on."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a round of probes in progress is given up."""
        self._ending.set()
        self._wanted.end()
        self._look_now.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Rollout | None:
        """Look once; what the controller's tick gives."""
        began_s = time.monotonic()
        with self._lock:
            self._metrics.leads.set(self._is_leader())
            rollout = self._controller.tick()
            if rollout is not None:
                self._known = rollout
        if rollout is None:
            self._when_idle()
        else:
            self._metrics.looks.observe(time.monotonic() - began_s)
            self.tell()
        return rollout

    def _look_on(self) -> None:
        while not self._ending.is_set():
            self._look_now.clear()
            self._look_now.wait(self._pause_s(self._look_safely()))

    def _look_safely(self) -> Phase | None:
        try:
            rollout = self.look()
        except AndonError as error:
            self._metrics.failed_looks.inc()
            _log.warning("look_failed", reason=error.reason, message=error.message)
            return None
        except Exception:  # noqa: BLE001 - a defect must not end the only thread that can roll back
            self._metrics.failed_looks.inc()
            _log.exception("look_broke_off")
            return None
        return None if rollout is None else rollout.phase

    def _pause_s(self, phase: Phase | None) -> float:
        """Its own changes are no reason to wait; a roll-back least of all."""
        is_busy = phase in (Phase.VERIFYING, Phase.ROLLING_BACK)
        return min(1.0, self._look_interval_s) if is_busy else self._look_interval_s

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._wanted.waiting():
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _in_progress(self) -> StoredRollout:
        stored = self._platform.load()
        if stored is None or stored.rollout.phase.is_final:
            raise NothingInProgressError
        return stored


def _name_of(spec: RolloutSpec, *, request_id: str, now_s: float) -> str:
    """Readable, and different for every request."""
    digest = hashlib.sha256(json.dumps([request_id, asdict(spec)]).encode()).hexdigest()[:6]
    return f"{spec.candidate.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now_s))}-{digest}"
