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
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.labeling_processes import ROOT, write_results
from services.canary.decisions import Kind, decide
from services.canary.gates import standard
from services.canary.rollout import Phase, Rollout, RolloutSpec

PAIRS_PER_TICK = 8  # probed prompts
CALLS_PER_TICK = 40  # of users to the canary
TICK_S = 10.0
NOISE = {  # standard deviations of one pair
    standard.SCORE: 1.0,
    standard.KL: 6.0,
    standard.LONGER: 0.35,
    standard.REPETITION: 0.1,
    standard.LATENCY: 0.3,
}
DOCUMENT = ROOT / "docs" / "canary.md"
BEGIN, END = "<!-- measured: benchmarks/results/canary.json -->", "<!-- end -->"


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
    """One rollout: how it ended, and after how many pairs."""
    random = np.random.default_rng([number, *scenario.name.encode()])
    spec = RolloutSpec(
        candidate="policy/12",
        gates=standard.standard_gates(with_people=with_people),
        least_s=60.0,
        longest_s=3600.0,
    )
    rollout = Rollout.begin(spec, rollout_id="simulated", stable="policy/11", now_s=0.0)
    rollout = rollout.at_step(0, reason="begins", now_s=0.0)
    now_s, pairs, most_percent = 0.0, 0, 0
    while True:
        now_s += TICK_S
        pairs += PAIRS_PER_TICK
        most_percent = max(most_percent, rollout.canary_percent)
        values = {
            name: random.normal(scenario.means.get(name, 0.0), noise, PAIRS_PER_TICK)
            for name, noise in NOISE.items()
        }
        values[standard.SHORTER] = -values[standard.LONGER]
        if with_people:
            values[standard.PEOPLE] = (random.random(PAIRS_PER_TICK) < scenario.preferred).astype(float)
        failed = int(random.binomial(CALLS_PER_TICK, scenario.failing))
        calls = {1.0: CALLS_PER_TICK - failed, 0.0: failed}
        rollout = rollout.after(values).after_counts({standard.CALLS: calls})
        decision = decide(rollout, now_s=now_s)
        match decision.kind:
            case Kind.ADVANCE:
                rollout = rollout.at_step(rollout.step + 1, reason=decision.reason, now_s=now_s)
            case Kind.PROMOTE | Kind.ROLL_BACK:
                break
    by_gate = [gate.rule.name for gate in rollout.gates if gate.failed]
    return {
        "end": (Phase.PROMOTED if decision.kind is Kind.PROMOTE else Phase.ROLLED_BACK).value,
        "failed": by_gate,
        "pairs": pairs,
        "seconds": now_s,
        "most_percent": most_percent,
    }


def measure(scenario: Scenario, *, rollouts: int, jobs: int) -> dict[str, Any]:
    """Many rollouts of one scenario."""
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        ends = list(pool.map(_one, [(scenario, number) for number in range(rollouts)], chunksize=20))
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


def _one(what: tuple[Scenario, int]) -> dict[str, Any]:
    scenario, number = what
    return simulate(scenario, number=number)


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


def with_table(document: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The document with what was measured between its marks."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, write ``results/canary.json`` and the table in ``docs/canary.md``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rollouts", type=int, default=1000, help="of each scenario")
    flags.add_argument("--jobs", type=int, default=2)
    flags.add_argument("--no-results", action="store_true", help="write nothing")
    arguments = flags.parse_args(argv)
    rows = []
    for scenario in SCENARIOS:
        rows.append(measure(scenario, rollouts=arguments.rollouts, jobs=arguments.jobs))
        print(json.dumps(rows[-1]), flush=True)
    if not arguments.no_results:
        path: Path = write_results("canary", rows)
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), rows))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
