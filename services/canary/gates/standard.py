"""The gates a rollout has unless its caller names others, and what the values on them mean.

All values are the larger, the better. But for the calls each is a comparison of two samples, one by the
canary and one by stable, of the same prompt: what prompts differ in cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from services.canary.gates.gate import GateRule

SCORE = "score"  # reward model: canary's score less stable's
KL = "kl"  # nats per response from the reference model: stable's less the canary's
LONGER = "longer"  # natural logarithm of stable's tokens over the canary's
SHORTER = "shorter"  # the reverse
REPETITION = "repetition"  # share of 3-grams that occurred before: stable's less the canary's
LATENCY = "latency"  # natural logarithm of stable's seconds over the canary's
CALLS = "calls"  # 1 for a call to the canary that was answered, 0 for one that failed
PEOPLE = "people"  # 1 where a labeler prefers the canary's sample, 0 for stable's, 1/2 for neither

_TIMES_1_5 = math.log(1.5)


def standard_gates(*, with_people: bool) -> tuple[GateRule, ...]:
    """The standard gates; ``with_people`` where labelers are asked."""
    gates = (
        # Normalised scores have a standard deviation of about 1 over the corpus.
        GateRule(name=SCORE, boundary=-0.25, lowest=-4.0, highest=4.0, equal=0.0),
        GateRule(name=KL, boundary=-10.0, lowest=-50.0, highest=50.0),
        GateRule(name=LONGER, boundary=-_TIMES_1_5, lowest=-2.0, highest=2.0),
        GateRule(name=SHORTER, boundary=-_TIMES_1_5, lowest=-2.0, highest=2.0),
        GateRule(name=REPETITION, boundary=-0.05, lowest=-1.0, highest=1.0),
        GateRule(name=LATENCY, boundary=-_TIMES_1_5, lowest=-3.0, highest=3.0),
        GateRule(name=CALLS, boundary=0.99, lowest=0.0, highest=1.0, least=100),
    )
    if not with_people:
        return gates
    return (*gates, GateRule(name=PEOPLE, boundary=0.4, lowest=0.0, highest=1.0, equal=0.5, least=20))


def chosen_gates(
    *, with_people: bool, boundaries: Mapping[str, float], left_out: Iterable[str]
) -> tuple[GateRule, ...]:
    """The standard gates with other boundaries, without some. Raises ValueError for what makes no gate."""
    gates = {rule.name: rule for rule in standard_gates(with_people=with_people)}
    left_out = list(left_out)
    if ignored := [name for name in boundaries if name in left_out]:
        raise ValueError(f"{', '.join(ignored)}: a gate that is left out has no boundary")
    for name, boundary in boundaries.items():
        if name not in gates:
            raise ValueError(f"no gate {name!r}; there are {', '.join(gates)}")
        if not math.isfinite(boundary):
            raise ValueError("a boundary must be a finite number")
        gates[name] = replace(gates[name], boundary=boundary)
    for name in left_out:
        if gates.pop(name, None) is None:
            raise ValueError(f"no gate {name!r}; there are {', '.join(gates)}")
    return tuple(gates.values())
