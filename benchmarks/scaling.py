"""How cost grows: with the batch, the length, the summaries per document, and with processes.

    python -m benchmarks.scaling

Ours alone, each point in its own process with one thread. Batch, length and summaries are timed in CPU
seconds and stand beside the machine's limit; processes are timed on the clock, where they are to save time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contests import Command, Facts
from benchmarks.documents import put_between_marks
from benchmarks.labeling_processes import write_results
from benchmarks.limits import limit_seconds
from benchmarks.run import ENVIRONMENT, KEPT_MEMORY, LIMITS, ROOT, facts_of

DOCUMENT = ROOT / "docs" / "performance.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One thing that grows, all else being equal."""

    work: str
    grows: str
    unit: str  # of what is counted per second
    command: Command
    flag: str
    values: Sequence[int]
    processes: bool = False  # whether the value is a number of processes, timed on the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement."""

    work: str
    grows: str
    value: int
    unit: str
    rate: float  # per CPU second, or per second on the clock
    cpu_s: float
    wall_s: float | None
    times_limit: float | None


ALL_SERIES: Sequence[Series] = (
    Series(
        work="reward scores",
        grows="documents in a call",
        unit="summaries",
        command=("benchmarks.scoring",),
        flag="--documents",
        values=(1, 4, 16, 64),
    ),
    Series(
        work="reward scores",
        grows="tokens per document and summary",
        unit="summaries",
        command=("benchmarks.scoring", "--documents", "16"),
        flag="--length",
        values=(64, 128, 256, 512, 960),
    ),
    Series(
        work="reward scores",
        grows="summaries per document",
        unit="summaries",
        command=("benchmarks.scoring", "--documents", "16"),
        flag="--summaries",
        values=(1, 2, 4, 9, 16),
    ),
    Series(
        work="log-probabilities",
        grows="documents in a call",
        unit="responses",
        command=("benchmarks.scoring", "--part", "logprob"),
        flag="--documents",
        values=(1, 4, 16, 64),
    ),
    Series(
        work="reward-model training",
        grows="summaries per ranking",
        unit="comparisons",
        command=("benchmarks.reward_training", "--documents", "8", "--batch", "4"),
        flag="--summaries",
        values=(2, 4, 9),
    ),
    Series(
        work="sampling",
        grows="prompts in a call",
        unit="tokens",
        command=("benchmarks.sampling",),
        flag="--prompts",
        values=(1, 4, 16, 32),
    ),
    Series(
        work="sampling",
        grows="samples of 4 prompts",
        unit="tokens",
        command=("benchmarks.sampling", "--prompts", "4"),
        flag="--samples",
        values=(1, 4, 16),
    ),
    Series(
        work="sampling over gRPC",
        grows="policy processes",
        unit="tokens",
        command=("benchmarks.policy_replicas",),
        flag="--processes",
        values=(1, 2, 4),
        processes=True,
    ),
    Series(
        work="PPO's optimizer steps",
        grows="trainer processes",
        unit="episodes",
        command=("benchmarks.trainer_ranks",),
        flag="--nproc-per-node",
        values=(1, 2),
        processes=True,
    ),
)


def command_line(series: Series, value: int, extra: Sequence[str]) -> list[str]:
    """How a point is measured. Torchrun starts trainer processes; its flag stands before the module."""
    if series.flag == "--nproc-per-node":
        launcher = ("-m", "torch.distributed.run", "--standalone", f"{series.flag}={value}")
        return [sys.executable, *launcher, "-m", *series.command, *extra]
    return [sys.executable, "-m", *series.command, series.flag, str(value), *extra]


def measure(command: Sequence[str]) -> Facts:
    """Run a script; SystemExit with its errors where it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={
            **os.environ,
            **ENVIRONMENT,
            **KEPT_MEMORY,
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    facts = facts_of(done.stdout)
    if done.returncode != 0 or facts is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return facts


def point(series: Series, value: int, facts: Facts, machine: Facts) -> Point:
    """What a script measured, as the results have it."""
    limit = limit_seconds(facts["needs"], machine) if "needs" in facts else None
    return Point(
        work=series.work,
        grows=series.grows,
        value=value,
        unit=series.unit,
        rate=facts["rate"],
        cpu_s=facts["cpu_s"],
        wall_s=facts.get("wall_s"),
        times_limit=None if limit is None else round(facts["cpu_s"] / limit, 2),
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """One line per series, as Markdown; in brackets how many times its limit a point takes."""
    lines = ["| work | what grows | a second gives | measured |", "|---|---|---|---|"]
    by_series: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        by_series.setdefault((row["work"], row["grows"], row["unit"]), []).append(row)
    for (work, grows, unit), points in by_series.items():
        cells = []
        for row in points:
            limit = "" if row["times_limit"] is None else f" ({row['times_limit']:.1f}x)"
            cells.append(f"{row['value']}: {row['rate']:.3g}{limit}")
        clock = "on the clock" if points[0]["wall_s"] is not None else "of CPU time"
        lines.append(f"| {work} | {grows} | {unit}, {clock} | {'; '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write ``results/scaling.json`` and the table in ``docs/performance.md``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--shape", default="tiny")
    flags.add_argument(
        "--only", default="", help="only series whose growth contains this; nothing is written"
    )
    arguments = flags.parse_args(argv)
    chosen = [series for series in ALL_SERIES if arguments.only in series.grows]
    if not chosen:
        flags.error(f"nothing that grows contains {arguments.only!r}")
    machine = measure([sys.executable, "-m", *LIMITS])
    rows: list[dict[str, object]] = []
    for series in chosen:
        for value in series.values:
            facts = measure(command_line(series, value, ["--shape", arguments.shape]))
            rows.append(asdict(point(series, value, facts, machine)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    if not arguments.only:
        path: Path = write_results("scaling", rows)
        put_between_marks(DOCUMENT, "scaling", table(rows))
        print(path)


if __name__ == "__main__":
    main()
