"""What a rollout does to the world: the seam between the controller and wherever the samplers run.

``kubernetes_platform`` does it to a cluster, ``static_platform`` to processes that run already. Every call
may be repeated after a crash at any point of it, blocks, and raises AndonError where it cannot be done now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.canary.decisions import Decision
from services.canary.rollout import Rollout


class Track(StrEnum):
    """The two sides that share the traffic."""

    STABLE = "stable"
    CANARY = "canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How far a side's replicas have come."""

    wanted: int
    ready: int  # that run what was asked for last, and answer
    problem: str = ""  # what keeps the others, in words

    @property
    def is_complete(self) -> bool:
        """Whether all are there, and at least one."""
        return 0 < self.wanted <= self.ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One process that samples."""

    name: str
    target: str  # gRPC, "host:port"
    metrics_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRollout:
    """A rollout in the record."""

    rollout: Rollout
    revision: int  # what ``save`` must be told, so that nobody overwrites what he has not read


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """A decision in the record."""

    rollout_id: str
    time_s: float  # since 1970
    phase: str  # in which it was taken
    step: int
    decision: Decision


class Platform(Protocol):
    """Where samplers run."""

    def stable_version(self) -> str:
        """The version that stable is told to serve, such as policy/11."""
        ...

    def deploy(self, version: str) -> None:
        """Make the canary's replicas run this version; returns before they do."""
        ...

    def readiness(self, track: Track) -> Readiness:
        """How far a side has come."""
        ...

    def replicas(self, track: Track) -> Sequence[Replica]:
        """Those of a side that are ready."""
        ...

    def route(self, canary_percent: int) -> None:
        """Give the canary this share of the traffic, in percent; 0: none."""
        ...

    def routed(self) -> int:
        """The canary's present share of the traffic, in percent."""
        ...

    def set_stable(self, version: str) -> None:
        """Have stable move to this version, and the alias policy@stable with it; returns before it has.

        Nothing is restarted when both are there already, so a roll-back says it in any case.
        """
        ...

    def remove(self) -> None:
        """Let the canary's replicas end."""
        ...

    def load(self) -> StoredRollout | None:
        """The newest rollout in the record; None when there was none."""
        ...

    def save(self, rollout: Rollout, *, revision: int) -> int:
        """Record how a rollout stands; the new revision. ``revision`` 0: there is none yet.

        Raises FailedPreconditionError ROLLOUT_CONFLICT when the record is not at ``revision`` any more.
        """
        ...

    def record(self, decision: RecordedDecision) -> None:
        """Add a decision to the record; once, also when it is repeated."""
        ...

    def decisions(self) -> Sequence[RecordedDecision]:
        """The newest decisions, oldest first."""
        ...
