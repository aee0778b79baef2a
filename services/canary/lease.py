"""Who may act: the holder of a Lease, for as long as it has renewed it in time.

The rules are those of client-go's leader election (k8s.io/client-go/tools/leaderelection):

* A candidate takes a Lease that has no holder, or whose record it has *seen unchanged* for the duration
  written in it. Only the candidate's own clock counts, which never jumps; the times in the Lease are for
  people, so wrong wall clocks do no harm.
* A holder leads until ``renew_deadline_s`` after the moment it *sent* its last successful renewal. The
  deadline is shorter than the duration, so it has stopped before anybody else begins.

Clocks that run at other speeds, or a machine that stood still, could still deceive a holder. Therefore each
time of leading has a token of its own, which ``kubernetes_platform`` writes into every object before it
changes any: what a former leader still sends fails there, whatever its clock says. ``confirm`` is the
question, put to the API itself, that comes before such a claim.

``LeaseLeadership`` runs in a thread of its own, so that a busy event loop does not cost the lead.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from andon.errors import AndonError, InvalidArgumentError
from services.canary.cluster_errors import ClusterConflictError, ClusterMissingError, NotLeaderError
from services.canary.kubernetes_calls import LEASES, KubernetesCalls, Object

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a lead lasts. The defaults are client-go's."""

    duration_s: int = 15
    """How long others wait after the last change that they have seen. The Lease holds whole seconds."""
    renew_deadline_s: float = 10.0
    """How long a holder leads after it sent a renewal that succeeded."""
    retry_period_s: float = 2.0
    """Between two attempts to take or to renew."""

    def __post_init__(self) -> None:
        if not 0 < self.retry_period_s < self.renew_deadline_s < self.duration_s:
            raise InvalidArgumentError(
                "a lease needs retry_period_s < renew_deadline_s < duration_s, all above 0",
                reason="INVALID_LEASE_TIMES",
                duration_s=self.duration_s,
                renew_deadline_s=self.renew_deadline_s,
                retry_period_s=self.retry_period_s,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The record of a Lease, and when this process first saw it so."""

    record: Object
    at_s: float


def uptime_s() -> float:
    """A clock that never jumps and goes on while the machine sleeps, where there is one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def new_identity() -> str:
    """A holder's name that no other process has, and no later one of the same pod."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


class LeaseLeadership:
    """Takes a Lease and keeps it. ``step`` does one attempt; ``start`` makes attempts until ``stop``."""

    def __init__(
        self,
        calls: KubernetesCalls,
        *,
        name: str,
        times: LeaseTimes,
        identity: str | None = None,
        clock: Callable[[], float] = uptime_s,
    ) -> None:
        self.identity = identity or new_identity()
        self._calls = calls
        self._name = name
        self._times = times
        self._clock = clock
        self._seen: _Seen | None = None
        self._leads_until_s = 0.0
        self._term = ""
        self._lock = threading.Lock()  # of the two above: they change together
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- what others ask -----------------------------------------------------------------------------------

    def is_leader(self) -> bool:
        """Whether this process may act now. Asks nobody and never blocks."""
        return self.term() is not None

    def term(self) -> str | None:
        """The token of this time of leading, another one each time; None while this process does not lead."""
        with self._lock:
            return self._term if self._term and self._clock() < self._leads_until_s else None

    def confirm(self, term: str) -> None:
        """Ask the API whether ``term`` is the present one; raises NotLeaderError."""
        holder, token = "nobody", ""
        try:
            record = _record_of(self._calls.get(LEASES, self._name))
        except ClusterMissingError:
            pass  # removed by a person; the next attempt makes it anew, as a new term
        else:
            holder = record.get("holderIdentity") or holder
            token = _token(record)
        if token != term or self.term() != term:
            raise NotLeaderError(holder=holder)

    # --- taking and keeping --------------------------------------------------------------------------------

    def step(self) -> bool:
        """One attempt to take or to renew; whether this process leads afterwards.

        Failures of the API are logged and leave the lead as it is: it ends by itself at its deadline.
        """
        led = self.is_leader()
        try:
            self._take_or_renew()
        except ClusterConflictError as error:
            log.info("lease_contended", lease=self._name, reason=error.reason)
        except AndonError as error:
            log.warning("lease_attempt_failed", lease=self._name, reason=error.reason, message=error.message)
        leads = self.is_leader()
        if leads != led:
            log.info("lead_taken" if leads else "lead_lost", lease=self._name, identity=self.identity)
        return leads

    def _take_or_renew(self) -> None:
        try:
            lease = self._calls.get(LEASES, self._name)
        except ClusterMissingError:
            self._lead(self._create_lease)
            return
        record = _record_of(lease)
        if self._seen is None or self._seen.record != record:
            self._seen = _Seen(record=record, at_s=self._clock())
        holder = record.get("holderIdentity") or ""
        if holder == self.identity and self.term() == _token(record):
            renewed = {**record, "renewTime": _now()}
            self._lead(lambda: self._write(lease, renewed))
        elif not holder or holder == self.identity or self._is_over(self._seen):
            # Its own expired lead is a new term too: what was under way in between is not to go on.
            taken = self._record(transitions=int(record.get("leaseTransitions") or 0) + 1)
            self._lead(lambda: self._write(lease, taken))
        else:
            self._forget()

    def _is_over(self, seen: _Seen) -> bool:
        return self._clock() >= seen.at_s + float(seen.record.get("leaseDurationSeconds") or 0)

    def _lead(self, write: Callable[[], Object]) -> None:
        """Lead from before the write was sent: others count from when it arrived, which is later."""
        sent_s = self._clock()
        record = _record_of(write())
        self._seen = _Seen(record=record, at_s=self._clock())
        with self._lock:
            self._term = _token(record)
            self._leads_until_s = sent_s + self._times.renew_deadline_s

    def _forget(self) -> None:
        with self._lock:
            self._term, self._leads_until_s = "", 0.0

    def _record(self, *, transitions: int) -> Object:
        now = _now()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._times.duration_s,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _create_lease(self) -> Object:
        return self._calls.create(
            LEASES,
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._record(transitions=0),
            },
        )

    def _write(self, lease: Object, record: Object) -> Object:
        return self._calls.replace(LEASES, self._name, {**lease, "spec": record})

    # --- as a thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to make attempts, until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.step()
            self._stopping.wait(self._times.retry_period_s)

    def stop(self) -> None:
        """End, and give the Lease back, so that another process need not wait. Acting must have ended."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        term = self.term()
        self._forget()
        if term is None:
            return
        try:
            lease = self._calls.get(LEASES, self._name)
            record = _record_of(lease)
            if _token(record) == term:
                free = {key: value for key, value in record.items() if key != "holderIdentity"}
                self._write(lease, {**free, "leaseDurationSeconds": 1, "renewTime": _now()})
        except AndonError as error:  # others take it after its duration
            log.warning("lease_not_released", lease=self._name, reason=error.reason, message=error.message)


def _record_of(lease: Object) -> Object:
    record: Object = lease.get("spec") or {}
    return record


def _token(record: Object) -> str:
    """One time of leading: who, for which time, and since when, should the Lease have been made anew."""
    return "/".join(str(record.get(key, "")) for key in ("leaseTransitions", "holderIdentity", "acquireTime"))


def _now() -> str:
    """A MicroTime for people; nothing is decided by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
