"""A platform in memory, whose controller may be killed at any of its calls, and evidence by a script."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from andon.errors import FailedPreconditionError
from services.canary.observing import Observations
from services.canary.platform import Readiness, RecordedDecision, Replica, StoredRollout, Track
from services.canary.rollout import Rollout


class Killed(BaseException):
    """The controller's process ends here."""


@dataclass
class MemoryPlatform:
    """Two sides whose replicas need ``slow`` looks until they are ready, and the record of rollouts."""

    stable: str = "policy/11"
    canary: str | None = None
    percent: int = 0
    slow: int = 1
    never_ready: bool = False
    stored: StoredRollout | None = None
    recorded: dict[tuple[Any, ...], RecordedDecision] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)  # of what changes something
    kill_at: int | None = None  # which call, and before or after it took effect
    kill_before: bool = True
    alias: str = "policy/11"
    percents: list[int] = field(default_factory=list)  # all shares the canary ever had
    _looks: dict[Track, int] = field(default_factory=dict)
    _count: int = 0

    def _did(self, act: Callable[[], Any], *what: Any) -> Any:
        self._count += 1
        dies = self.kill_at == self._count
        if dies and self.kill_before:
            raise Killed
        found = act()
        self.calls.append(what)
        if dies:
            raise Killed
        return found

    def _set(self, **fields: Any) -> Any:
        for name, value in fields.items():
            setattr(self, name, value)

    def stable_version(self) -> str:
        return self.stable

    def deploy(self, version: str) -> None:
        def act() -> None:
            if self.canary != version:
                self._looks[Track.CANARY] = 0
            self.canary = version

        self._did(act, "deploy", version)

    def readiness(self, track: Track) -> Readiness:
        wanted = 2 if track is Track.STABLE or self.canary else 0
        looks = self._looks.get(track, self.slow)
        self._looks[track] = looks + 1
        broken = self.never_ready and track is Track.CANARY
        ready = wanted if looks >= self.slow and not broken else 0
        return Readiness(wanted=wanted, ready=ready, problem="CrashLoopBackOff" if broken else "")

    def replicas(self, track: Track) -> Sequence[Replica]:
        version = self.stable if track is Track.STABLE else self.canary
        if version is None or (self.never_ready and track is Track.CANARY):
            return []
        return [Replica(name=f"{track.value}-{number}", target=version, metrics_url="") for number in (0, 1)]

    def route(self, canary_percent: int) -> None:
        def act() -> None:
            self.percent = canary_percent
            self.percents.append(canary_percent)

        if canary_percent != self.percent:
            self._did(act, "route", canary_percent)

    def routed(self) -> int:
        return self.percent

    def set_stable(self, version: str) -> None:
        def act() -> None:
            if self.stable != version:
                self._looks[Track.STABLE] = 0
            self.stable = self.alias = version

        self._did(act, "set_stable", version)

    def remove(self) -> None:
        self._did(lambda: self._set(canary=None), "remove")

    def load(self) -> StoredRollout | None:
        return self.stored

    def save(self, rollout: Rollout, *, revision: int) -> int:
        present = 0 if self.stored is None else self.stored.revision
        if present != revision:
            raise FailedPreconditionError("somebody else stored it", reason="ROLLOUT_CONFLICT")
        new = StoredRollout(rollout=rollout, revision=revision + 1)
        self._did(lambda: self._set(stored=new), "save", rollout.phase.value, rollout.step)
        return revision + 1

    def record(self, decision: RecordedDecision) -> None:
        key = (decision.rollout_id, decision.phase, decision.step, decision.decision.kind)
        self._did(lambda: self.recorded.setdefault(key, decision), "record", decision.decision.kind.value)

    def decisions(self) -> Sequence[RecordedDecision]:
        return list(self.recorded.values())


@dataclass
class ScriptedEvidence:
    """The same observations at every tick; replicas whose version is in ``liars`` serve something else."""

    values: Mapping[str, Sequence[float]]
    counts: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    liars: frozenset[str] = frozenset()

    def lie_of(self, version: str, replicas: Sequence[Replica]) -> str | None:
        lying = [replica.name for replica in replicas if replica.target != version or version in self.liars]
        return f"{lying[0]} does not serve {version}" if lying else None

    def gather(
        self, rollout: Rollout, *, stable: Sequence[Replica], canary: Sequence[Replica]
    ) -> Observations:
        if not canary:
            return Observations(counts={"calls": {0.0: 4}})
        return Observations(values=self.values, counts=self.counts)
