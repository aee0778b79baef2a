"""Decides what one look at both sides comes to: gather, test, decide; and stop when the line must stop.

The controller looks so at each tick of a rollout, the judge until its one step is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.canary.decisions import Decision, decide
from services.canary.platform import Replica
from services.canary.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What was seen since the last tick, by gate."""

    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[float, int]] = field(default_factory=dict)  # value -> times


class Evidence(Protocol):
    """Looks at the two sides. What cannot be asked now gives no values: a rollout must not hang on it."""

    def lie_of(self, version: str, replicas: Sequence[Replica]) -> str | None:
        """What is wrong with replicas that claim to serve ``version``; None where each does serve it.

        One that cannot be reached tells no lie: its failed calls count in ``gather``.
        """
        ...

    def gather(
        self, rollout: Rollout, *, stable: Sequence[Replica], canary: Sequence[Replica]
    ) -> Observations:
        """Probe both sides once more. A side without a replica fails its calls."""
        ...


def observe(
    rollout: Rollout,
    evidence: Evidence,
    *,
    stable: Sequence[Replica],
    canary: Sequence[Replica],
    emergency: Callable[[], str | None],
    clock: Callable[[], float],
) -> tuple[Rollout, Decision]:
    """The rollout that has seen one round more, and what is to be done with it.

    ``emergency`` says why the line must stop now. ``clock``: s since 1970. Raises AndonError where nothing
    could be seen.
    """
    stop = emergency() or evidence.lie_of(rollout.spec.candidate, canary)
    if stop is None:
        seen = evidence.gather(rollout, stable=stable, canary=canary)
        rollout = rollout.after(seen.values).after_counts(seen.counts)
        stop = emergency()  # the probes took their time
    return rollout, decide(rollout, now_s=clock(), emergency=stop)
