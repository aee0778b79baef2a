"""How objects of the cluster are changed: by the leader only, conditionally, and again until it is done.

A change is a loop: read the object, decide from what it is now, write only if nobody wrote in between. So it
may be repeated after a conflict, a lost answer or a crash, and what is already as wanted is not written.

``claim`` keeps former leaders out. A controller that begins to lead writes its term into every object that a
rollout touches, before it reads the rollout's record. A write that a former leader has still under way names
the version from before the claim and fails; any later one of it sees the foreign term, asks for the Lease,
and ends. So all that one leader does comes before all that the next one does, whatever their clocks say.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from services.canary.cluster_errors import (
    ClusterConflictError,
    ClusterMissingError,
    ClusterUnavailableError,
    NotLeaderError,
)
from services.canary.kubernetes_calls import CONFIG_MAPS, DEPLOYMENTS, KubernetesCalls, Object, Resource
from services.canary.kubernetes_objects import term_of, with_term

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Leadership(Protocol):
    """Who may act, as ``lease`` knows it."""

    def term(self) -> str | None:
        """The token of the present time of leading; None while this process does not lead."""

    def confirm(self, term: str) -> None:
        """Ask the API itself whether this term is the present one; raises NotLeaderError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long what fails for a moment is tried again."""

    total_s: float = 20.0
    """After this the error is the caller's."""
    first_pause_s: float = 0.05
    """Doubled each time, and drawn between half and all of it, so that writers do not meet again."""
    longest_pause_s: float = 2.0
    """The server's own wish in Retry-After may be longer."""


class ClaimedObjects:
    """The objects that rollouts change, and the only way to change them. Methods block."""

    def __init__(
        self,
        calls: KubernetesCalls,
        leadership: Leadership,
        *,
        patience: Patience,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._leadership = leadership
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._claimed = ""  # the term for which ``claim`` has ended

    @property
    def claimed_term(self) -> str:
        """The term for which everything is claimed; "" before."""
        return self._claimed

    def read(self, resource: Resource, name: str) -> Object:
        """One object, tried again while the API is unavailable."""
        return self.patiently(lambda: self._calls.get(resource, name))

    def claim(self, objects: Sequence[tuple[Resource, str]], *, makes: Object) -> bool:
        """Claim all for the present term, if that has not been done; whether this process leads.

        ``makes`` is created where it is missing: the record's empty ConfigMap.
        """
        term = self._leadership.term()
        if term is None:
            return False
        if term != self._claimed:
            for resource, name in objects:
                try:
                    self._change(resource, name, lambda _: None, term)
                except ClusterMissingError:
                    if (resource, name) != (CONFIG_MAPS, makes["metadata"]["name"]):
                        raise
                    self.patiently(lambda: self._make(makes))
                    self._change(resource, name, lambda _: None, term)
            self._claimed = term
            log.info("objects_claimed", term=term)
        return True

    def change(self, resource: Resource, name: str, decide: Callable[[Object], Object | None]) -> Object:
        """Bring an object to what ``decide`` makes of it; the object as it is then.

        ``decide`` gives a patch (for a ConfigMap the whole new object), or None when nothing is to be done.
        It may be called several times. Raises NotLeaderError, also when the term that was claimed has ended:
        what was decided in it has to be decided anew.
        """
        term = self._leadership.term()
        if term is None or term != self._claimed:
            raise NotLeaderError
        return self._change(resource, name, decide, term)

    def patiently(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` gives; conflicts and an API that is unavailable are tried again for a while."""
        ends_s = self._clock() + self._patience.total_s
        for pause_s in self._pauses():
            try:
                return attempt()
            except (ClusterConflictError, ClusterUnavailableError) as error:
                wished_s = error.retry_after_s if isinstance(error, ClusterUnavailableError) else 0.0
                wait_s = max(pause_s, wished_s)
                if self._clock() + wait_s > ends_s:
                    raise
                log.info("cluster_attempt_repeated", reason=error.reason, message=error.message)
                self._sleep(wait_s)
        raise AssertionError("pauses never end")

    def _pauses(self) -> Iterator[float]:
        longest_s = self._patience.first_pause_s
        while True:
            yield random.uniform(longest_s / 2, longest_s)
            longest_s = min(2 * longest_s, self._patience.longest_pause_s)

    def _change(
        self, resource: Resource, name: str, decide: Callable[[Object], Object | None], term: str
    ) -> Object:
        def attempt() -> Object:
            current = self._calls.get(resource, name)
            if term_of(current) != term:
                # After the read: whoever claims it from now on changes its version, and the write fails.
                self._leadership.confirm(term)
            elif self._leadership.term() != term:
                raise NotLeaderError
            wanted = decide(current)
            if wanted is None and term_of(current) == term:
                return current
            return self._write(resource, name, current, wanted, term)

        return self.patiently(attempt)

    def _write(
        self, resource: Resource, name: str, current: Object, wanted: Object | None, term: str
    ) -> Object:
        if resource is CONFIG_MAPS:
            # With all its fields, which are ours alone.
            return self._calls.replace(resource, name, with_term(wanted or current, current, term))
        patch = with_term(wanted, current, term)
        return self._calls.patch(resource, name, patch, strategic=resource is DEPLOYMENTS)

    def _make(self, new: Object) -> None:
        try:
            self._calls.create(CONFIG_MAPS, new)
        except ClusterConflictError as error:
            if (
                error.reason != "CLUSTER_NAME_TAKEN"
            ):  # else: made by another, or by a call whose answer was lost
                raise
