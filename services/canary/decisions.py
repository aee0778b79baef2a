"""Decides what a rollout does next, from what was seen and how long it took. Pure: the controller acts on it.

Where several things hold at once the safer one wins: a person's abort, the cord or an alert, a failed gate,
a person's promotion, and only then the evidence. What is missing is never good news: it holds a rollout where
it is, and at the longest time of a step rolls it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from services.canary.gates.gate import Gate, Verdict
from services.canary.rollout import Phase, Rollout


class Kind(StrEnum):
    """What is to be done."""

    CONTINUE = "continue"  # look on
    ADVANCE = "advance"  # to the next share of the traffic
    HOLD = "hold"  # good enough and not better: a person decides
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    ABORT = "abort"  # roll back because a person said so


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done, why, and on what numbers."""

    kind: Kind
    reason: str
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)  # by gate


def decide(rollout: Rollout, *, now_s: float, emergency: str | None = None) -> Decision:
    """The next step of a rollout that is observed or held.

    ``emergency`` says why the line must stop at once: the cord, an alert, a canary that lies about itself.
    """
    if rollout.phase not in (Phase.OBSERVING, Phase.HELD):
        raise ValueError(f"nothing is to be decided about a rollout that is {rollout.phase.value}")
    numbers = {gate.rule.name: gate.numbers() for gate in rollout.gates}

    def decision(kind: Kind, reason: str) -> Decision:
        return Decision(kind=kind, reason=reason, numbers=numbers)

    if rollout.asked == "abort":
        return decision(Kind.ABORT, _said(rollout))
    if emergency is not None:
        return decision(Kind.ROLL_BACK, emergency)
    failed = _with_verdict(rollout.gates, Verdict.FAILED)
    if failed:
        return decision(Kind.ROLL_BACK, f"worse than allowed: {_means(failed)}")
    if rollout.asked == "promote":
        return decision(Kind.PROMOTE, _said(rollout))
    if rollout.phase is Phase.HELD:
        return decision(Kind.CONTINUE, rollout.reason)
    return decision(*_by_evidence(rollout, elapsed_s=now_s - rollout.phase_began_s))


def _by_evidence(rollout: Rollout, *, elapsed_s: float) -> tuple[Kind, str]:
    spec = rollout.spec
    share = f"{spec.steps[rollout.step]} % of the traffic"
    is_late = elapsed_s >= spec.longest_s
    unseen = [
        gate.rule.name
        for gate, before in zip(rollout.gates, rollout.seen_before_step, strict=True)
        if gate.count - before < gate.rule.least
    ]
    if unseen:
        what = f"too little was seen of {', '.join(unseen)} at {share}"
        return (Kind.ROLL_BACK, f"{what} in {elapsed_s:.0f} s") if is_late else (Kind.CONTINUE, what)
    if elapsed_s < spec.least_s:
        return Kind.CONTINUE, f"a step lasts at least {spec.least_s:g} s"
    if rollout.step + 1 < len(spec.steps):
        doubtful = [gate for gate in rollout.gates if gate.mean is None or gate.mean < gate.rule.boundary]
        if not doubtful:
            return Kind.ADVANCE, f"nothing looks worse than allowed at {share}"
        what = f"may be worse than allowed: {_means(doubtful)}"
        return (Kind.ROLL_BACK, f"{what} after {elapsed_s:.0f} s") if is_late else (Kind.CONTINUE, what)
    undecided = [gate for gate in rollout.gates if gate.verdict is not Verdict.PASSED]
    if undecided:
        what = f"not shown to be good enough: {_means(undecided)}"
        return (Kind.ROLL_BACK, f"{what} in {elapsed_s:.0f} s") if is_late else (Kind.CONTINUE, what)
    better = [gate for gate in rollout.gates if gate.is_better]
    if better:
        return Kind.PROMOTE, f"good enough at every gate and better: {_means(better)}"
    if spec.when_equal == "promote":
        return Kind.PROMOTE, "good enough at every gate"
    what = "good enough at every gate, and not shown to be better"
    return (Kind.HOLD, what) if is_late else (Kind.CONTINUE, what)


def _with_verdict(gates: Sequence[Gate], verdict: Verdict) -> list[Gate]:
    return [gate for gate in gates if gate.verdict is verdict]


def _means(gates: Sequence[Gate]) -> str:
    return ", ".join(
        f"{gate.rule.name} {gate.mean:+.3g} (boundary {gate.rule.boundary:+.3g}, {gate.count} seen)"
        if gate.mean is not None
        else f"{gate.rule.name} (nothing seen)"
        for gate in gates
    )


def _said(rollout: Rollout) -> str:
    return f"{rollout.asked_by} said so: {rollout.asked_reason}" if rollout.asked_reason else rollout.asked_by
