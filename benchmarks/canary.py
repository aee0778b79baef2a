"""How often rollouts end wrongly: many simulated ones, with the gates and the decisions of the real service.

Servers are left out; what they would show is drawn: paired differences with normal noise of the size that
samples of one prompt have, and calls that fail at some rate. Each scenario says what is true of the
candidate. A promotion is wrong where some gate's mean lies at its boundary or below. The boundary itself is
the worst case of what is still wrong, and there the share of promotions must stay under the stated rate.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import stats

from benchmarks.labeling_processes import ROOT, write_results
from services.canary.decisions import Decision, Kind, decide
from services.canary.gates import standard
from services.canary.judge_config import JudgeConfig
from services.canary.rollout import Phase, Rollout, RolloutSpec

PAIRS_PER_TICK = 8  # probed prompts
CALLS_PER_TICK = 40  # of users to the canary
TICK_S = 10.0
LEAST_S, LONGEST_S = 60.0, 3600.0  # of a step
STEPS = cast("tuple[int, ...]", RolloutSpec.__dataclass_fields__["steps"].default)
NOISE = {  # standard deviations of one pair
    standard.SCORE: 1.0,
    standard.KL: 6.0,
    standard.LONGER: 0.35,
    standard.REPETITION: 0.1,
    standard.LATENCY: 0.3,
}
DOCUMENT = ROOT / "docs" / "canary.md"
END = "<!-- end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is true of a candidate: means of the gates' values, 0 where none is given."""

    name: str
    what: str
    means: Mapping[str, float] = field(default_factory=dict)
    failing: float = 0.001  # share of its calls
    preferred: float = 0.5  # by people, in a pair

    @property
    def is_bad(self) -> bool:
        """Whether promoting it is wrong."""
        means = {**dict.fromkeys(NOISE, 0.0), **self.means}
        means[standard.SHORTER] = -means[standard.LONGER]
        means[standard.CALLS] = 1.0 - self.failing
        means[standard.PEOPLE] = self.preferred
        return any(means[gate.name] <= gate.boundary for gate in standard.standard_gates(with_people=True))


BOUNDARIES = {gate.name: gate.boundary for gate in standard.standard_gates(with_people=True)}
SCENARIOS = (
    Scenario(name="better", what="half a standard deviation better", means={"score": 0.5}, preferred=0.62),
    Scenario(name="a little better", what="0.15 standard deviations better", means={"score": 0.15}),
    Scenario(name="equal", what="the same"),
    Scenario(
        name="at the boundary",
        what="worse by exactly what the gate for the score forbids",
        means={"score": BOUNDARIES["score"]},
    ),
    Scenario(name="worse", what="half a standard deviation worse", means={"score": -0.5}),
    Scenario(name="sign-flipped", what="two standard deviations worse", means={"score": -2.0}, preferred=0.1),
    Scenario(
        name="over-optimised",
        what="the reward model loves it, people do not; far from the reference",
        means={"score": 1.0, "kl": -20.0, "longer": -0.3, "repetition": -0.1},
        preferred=0.3,
    ),
    Scenario(
        name="over-optimised, near",
        what="only people notice: they prefer it in exactly 40 % of pairs",
        means={"score": 1.0},
        preferred=BOUNDARIES["people"],
    ),
    Scenario(name="long-winded", what="1.8 times as long", means={"longer": -math.log(1.8)}),
    Scenario(name="slow", what="twice as slow", means={"latency": -math.log(2.0)}),
    Scenario(name="failing", what="3 % of its calls fail", failing=0.03),
    Scenario(name="failing, rarely", what="exactly 1 % of its calls fail", failing=0.01),
)


def simulate(scenario: Scenario, *, number: int, with_people: bool = True) -> dict[str, Any]:
    """One rollout by the controller: how it ended, and after how many pairs."""
    random = np.random.default_rng([number, *scenario.name.encode()])
    spec = RolloutSpec(
        candidate="policy/12",
        gates=standard.standard_gates(with_people=with_people),
        least_s=LEAST_S,
        longest_s=LONGEST_S,
    )
    rollout = Rollout.begin(spec, rollout_id="simulated", stable="policy/11", now_s=0.0)
    rollout = rollout.at_step(0, reason="begins", now_s=0.0)
    ticks, most_percent = 0, 0
    while True:
        most_percent = max(most_percent, rollout.canary_percent)
        rollout, decision, looked = _until_decided(rollout, random, scenario)
        ticks += looked
        if decision.kind is not Kind.ADVANCE:
            return _ended(rollout, decision, ticks=ticks, most_percent=most_percent)
        rollout = rollout.at_step(rollout.step + 1, reason=decision.reason, now_s=ticks * TICK_S)


def simulate_judges(scenario: Scenario, *, number: int, **settings: Any) -> dict[str, Any]:
    """One rollout by another hand, with a judge at each step: how it ended, and after how many pairs.

    ``settings`` are of ``JudgeConfig``.
    """
    random = np.random.default_rng([number, *scenario.name.encode()])
    ticks, most_percent = 0, 0
    for step in range(1, len(STEPS) + 1):
        judge = JudgeConfig(
            **{
                "prompts": "simulated",
                "steps": list(STEPS),
                "step": step,
                "ask_people": True,
                "least_s": LEAST_S,
                "longest_s": LONGEST_S,
                **settings,
            }
        )
        rollout = Rollout.begin(
            judge.spec("policy/12"), rollout_id="simulated", stable="policy/11", now_s=0.0
        ).at_step(step - 1, reason="begins", now_s=0.0)
        most_percent = max(most_percent, rollout.canary_percent)
        rollout, decision, looked = _until_decided(rollout, random, scenario)
        ticks += looked
        if decision.kind is not Kind.ADVANCE:
            break
    return _ended(rollout, decision, ticks=ticks, most_percent=most_percent)


def _until_decided(
    rollout: Rollout, random: np.random.Generator, scenario: Scenario
) -> tuple[Rollout, Decision, int]:
    """The rollout when its present step is decided, the decision, and after how many looks."""
    names = {gate.rule.name for gate in rollout.gates}
    ticks = 0
    while True:
        ticks += 1
        values = {
            name: random.normal(scenario.means.get(name, 0.0), noise, PAIRS_PER_TICK)
            for name, noise in NOISE.items()
        }
        values[standard.SHORTER] = -values[standard.LONGER]
        if standard.PEOPLE in names:
            values[standard.PEOPLE] = (random.random(PAIRS_PER_TICK) < scenario.preferred).astype(float)
        failed = int(random.binomial(CALLS_PER_TICK, scenario.failing))
        counts = {standard.CALLS: {1.0: CALLS_PER_TICK - failed, 0.0: failed}}
        rollout = rollout.after({name: seen.tolist() for name, seen in values.items() if name in names})
        rollout = rollout.after_counts({name: seen for name, seen in counts.items() if name in names})
        decision = decide(rollout, now_s=rollout.phase_began_s + ticks * TICK_S)
        if decision.kind is not Kind.CONTINUE:
            return rollout, decision, ticks


def _ended(rollout: Rollout, decision: Decision, *, ticks: int, most_percent: int) -> dict[str, Any]:
    is_promoted = decision.kind is Kind.PROMOTE
    return {
        "end": (Phase.PROMOTED if is_promoted else Phase.ROLLED_BACK).value,
        "failed": [gate.rule.name for gate in rollout.gates if gate.failed],
        "pairs": ticks * PAIRS_PER_TICK,
        "seconds": ticks * TICK_S,
        "most_percent": most_percent,
    }


def measure(way: str, scenario: Scenario, *, rollouts: int, jobs: int) -> dict[str, Any]:
    """Many rollouts of one scenario, in one of ``WAYS``."""
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        ends = list(pool.map(_one, [(way, scenario, number) for number in range(rollouts)], chunksize=20))
    promoted = [end for end in ends if end["end"] == Phase.PROMOTED.value]
    failed = [end for end in ends if end["failed"]]
    interval = stats.binomtest(len(promoted), rollouts).proportion_ci(method="exact")
    return {
        "scenario": scenario.name,
        "what": scenario.what,
        "is_bad": scenario.is_bad,
        "rollouts": rollouts,
        "promoted": len(promoted),
        "promoted_low": round(float(interval.low), 5),
        "promoted_high": round(float(interval.high), 5),
        "rolled_back_by_a_gate": len(failed),
        "rolled_back_undecided": rollouts - len(promoted) - len(failed),
        "median_pairs": statistics.median(end["pairs"] for end in ends),
        "median_seconds": statistics.median(end["seconds"] for end in ends),
        "median_most_percent": statistics.median(end["most_percent"] for end in ends),
    }


WAYS: Mapping[str, Callable[..., dict[str, Any]]] = {  # by the name of their results
    "canary": simulate,
    "canary_judges": simulate_judges,
}


def _one(what: tuple[str, Scenario, int]) -> dict[str, Any]:
    way, scenario, number = what
    return WAYS[way](scenario, number=number)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as the document shows it."""
    lines = [
        "| candidate | what is true of it | promoted | 95 % interval | rolled back by a gate "
        "| undecided in time | pairs until the end | largest share of traffic |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        share = [row[name] / row["rollouts"] for name in ("promoted", "rolled_back_by_a_gate")]
        undecided = row["rolled_back_undecided"] / row["rollouts"]
        name = f"**{row['scenario']}**" if row["is_bad"] else row["scenario"]
        lines.append(
            f"| {name} | {row['what']} | {share[0]:.1%} | {row['promoted_low']:.1%} to "
            f"{row['promoted_high']:.1%} | {share[1]:.1%} | {undecided:.1%} | {row['median_pairs']:.0f} "
            f"| {row['median_most_percent']:.0f} % |"
        )
    lines += [
        "",
        f"{rows[0]['rollouts']:,} simulated rollouts each. Bold: promoting it would be wrong; the stated "
        "rate is 5 %. Pairs and share of traffic are medians.",
    ]
    return "\n".join(lines)


def with_table(document: str, way: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The document with what was measured between the marks of one of ``WAYS``."""
    mark = f"<!-- measured: benchmarks/results/{way}.json -->"
    before, begin, rest = document.partition(mark)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no marks {mark} and {END}")
    return f"{before}{mark}\n{table(rows)}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, write results and the tables in ``docs/canary.md``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rollouts", type=int, default=1000, help="of each scenario")
    flags.add_argument("--jobs", type=int, default=2)
    flags.add_argument("--way", choices=WAYS, action="append", help="by the controller, by judges; both")
    flags.add_argument("--no-results", action="store_true", help="write nothing")
    arguments = flags.parse_args(argv)
    for way in arguments.way or WAYS:
        rows = []
        for scenario in SCENARIOS:
            rows.append(measure(way, scenario, rollouts=arguments.rollouts, jobs=arguments.jobs))
            print(json.dumps(rows[-1]), flush=True)
        if not arguments.no_results:
            path: Path = write_results(way, rows)
            DOCUMENT.write_text(with_table(DOCUMENT.read_text(), way, rows))
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
