"""What a rollout is: what was asked for, how far it has come, and what was seen. Pure; JSON in the record.

``decisions`` says what comes next, ``controller`` does it, a ``platform`` keeps the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal, Self

from services.canary.gates.gate import ErrorRates, Gate, GateRule

MOST_S = 366 * 86400.0  # of anything that a rollout waits for


class Phase(StrEnum):
    """How far a rollout has come."""

    DEPLOYING = "deploying"  # the canary's replicas are being made
    VERIFYING = "verifying"  # they are ready; does each serve what it claims?
    OBSERVING = "observing"  # a share of the traffic is theirs
    HELD = "held"  # shown to be good enough, not to be better: a person decides
    PROMOTING = "promoting"  # stable moves to the version
    ROLLING_BACK = "rolling back"  # all traffic is stable's again; the canary goes
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"  # rolled back because a person said so

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to be done."""
        return self in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """What was asked for."""

    candidate: str
    """The version to ship, such as policy/12."""
    steps: tuple[int, ...] = (5, 25, 50)
    """The canary's share of the traffic, in percent, step by step."""
    gates: tuple[GateRule, ...]
    """All of them have to pass."""
    rates: ErrorRates = field(default_factory=ErrorRates)
    least_s: float = 60.0
    """Each step lasts at least so long."""
    longest_s: float = 1800.0
    """And at most so long: what has not been shown by then is not promoted."""
    ready_s: float = 600.0
    """How long the canary's replicas, and later stable's, may take until they are ready."""
    when_equal: Literal["promote", "hold"] = "promote"
    """What becomes of a version that is shown to be good enough and not to be better."""

    def __post_init__(self) -> None:
        for name in ("steps", "gates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, when they come from JSON
        if not self.candidate:
            raise ValueError("a rollout needs a candidate")
        shares = (0, *self.steps, 101)
        if not self.steps or any(later <= earlier for earlier, later in pairwise(shares)):
            raise ValueError(f"steps must rise within 1..100 percent: {list(self.steps)}")
        names = [rule.name for rule in self.gates]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a rollout needs gates of different names: {names}")
        if not 0 <= self.least_s < self.longest_s or self.ready_s <= 0:
            raise ValueError("least_s must be below longest_s, and both and ready_s positive")
        if max(self.longest_s, self.ready_s) > MOST_S:
            raise ValueError(f"longest_s and ready_s are at most {MOST_S:.0f}, which is a year")
        if self.when_equal not in ("promote", "hold"):
            raise ValueError(f"when_equal must be promote or hold: {self.when_equal!r}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` gave, through JSON."""
        gates = tuple(GateRule(**rule) for rule in values["gates"])
        return cls(**{**values, "gates": gates, "rates": ErrorRates(**values["rates"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout, as it stands. Times are seconds since 1970."""

    rollout_id: str
    spec: RolloutSpec
    stable: str
    """The version that was stable when it began, and is again after a roll-back."""
    phase: Phase = Phase.DEPLOYING
    step: int = 0
    """Which of the spec's steps is observed."""
    gates: tuple[Gate, ...] = ()
    seen_before_step: tuple[int, ...] = ()
    """By gate, the observations before the present step: each step wants some of its own."""
    began_s: float = 0.0
    phase_began_s: float = 0.0
    """When the present phase began or, while observing, the present step."""
    reason: str = ""
    """Why it is in this phase, or at this step."""
    status: str = ""
    """What it waits for there."""
    request_id: str = ""
    """Of the call that started it, so that the call may be repeated."""
    asked: Literal["promote", "abort"] | None = None
    """What a person asked for, and the controller has not done yet."""
    asked_by: str = ""
    asked_reason: str = ""

    @classmethod
    def begin(
        cls, spec: RolloutSpec, *, rollout_id: str, stable: str, now_s: float, request_id: str = ""
    ) -> Self:
        """A rollout of which nothing has been done."""
        return cls(
            rollout_id=rollout_id,
            request_id=request_id,
            spec=spec,
            stable=stable,
            gates=tuple(Gate.of(rule) for rule in spec.gates),
            seen_before_step=(0,) * len(spec.gates),
            began_s=now_s,
            phase_began_s=now_s,
            reason=f"{spec.candidate} is to take the place of {stable}",
        )

    def into(self, phase: Phase, *, reason: str, now_s: float) -> Self:
        """The rollout in another phase."""
        return replace(self, phase=phase, reason=reason, status="", phase_began_s=now_s)

    def waiting(self, status: str) -> Self:
        """The rollout where it is, waiting for something."""
        return replace(self, status=status)

    def at_step(self, step: int, *, reason: str, now_s: float) -> Self:
        """The rollout at a step of its traffic's way."""
        seen = tuple(gate.count for gate in self.gates)
        return replace(
            self.into(Phase.OBSERVING, reason=reason, now_s=now_s), step=step, seen_before_step=seen
        )

    def after(self, observations: Mapping[str, Sequence[float]]) -> Self:
        """The rollout that has seen these values, by gate. A name that is no gate raises ValueError."""
        self._check(observations)
        gates = tuple(
            gate.after(observations.get(gate.rule.name, ()), rates=self.spec.rates, num_gates=len(self.gates))
            for gate in self.gates
        )
        return replace(self, gates=gates)

    def after_counts(self, counts: Mapping[str, Mapping[float, int]]) -> Self:
        """The same for values that came many times: gate -> value -> times."""
        self._check(counts)
        gates = []
        for gate in self.gates:
            for value, times in counts.get(gate.rule.name, {}).items():
                gate = gate.after([value], times=times, rates=self.spec.rates, num_gates=len(self.gates))
            gates.append(gate)
        return replace(self, gates=tuple(gates))

    def _check(self, names: Mapping[str, Any]) -> None:
        unknown = set(names) - {gate.rule.name for gate in self.gates}
        if unknown:
            raise ValueError(f"this rollout has no gate {sorted(unknown)}")

    @property
    def canary_percent(self) -> int:
        """What the canary's share of the traffic should be now."""
        return (
            self.spec.steps[self.step] if self.phase in (Phase.OBSERVING, Phase.HELD, Phase.PROMOTING) else 0
        )

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "phase": self.phase.value}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From what ``to_values`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            **{
                **values,
                "spec": RolloutSpec.from_values(values["spec"]),
                "phase": Phase(values["phase"]),
                "gates": tuple(Gate.from_values(gate) for gate in values["gates"]),
                "seen_before_step": tuple(values["seen_before_step"]),
            }
        )
