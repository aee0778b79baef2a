"""Runs ours and the peers in turn and prints how many times faster ours is: ``python -m benchmarks.run``.

In every round each script runs once, in its own process with one thread, so that a machine whose speed
drifts slows both sides. A ratio is taken per round; the median and the range over rounds are reported. Both
sides get the same allocator settings. What is compared stands in ``contests``, what the ratios mean in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contests import CONTESTS, Contest, Facts
from benchmarks.measuring import LINE_PREFIX

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENT = {
    # Memory stays with the process, so that neither side pays for asking the kernel again and again.
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONDONTWRITEBYTECODE": "1",
}
NOTHING_TO_COMPARE = 2  # exit code

HOW_TO_MAKE_PEERS = """\
The peers need a virtual environment of their own, torch first:

    python3 -m venv peers-venv
    peers-venv/bin/pip install "$(grep '^torch==' {peers}/requirements-peers.txt)"
    peers-venv/bin/pip install -r {peers}/requirements-peers.txt
    make bench PEERS_PYTHON=$PWD/peers-venv/bin/python
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of a contest gave."""

    theirs: Facts
    ours: Mapping[str, Facts]  # by work


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: how many times faster ours is."""

    work: str
    peer: str
    ratio: float  # median over rounds
    low: float
    high: float
    bar: float | None


class ScriptFailedError(Exception):
    """A script ended without the line that was wanted."""

    def __init__(self, *, command: Sequence[str], exit_code: int, errors: str) -> None:
        super().__init__(f"{' '.join(command)} gave no result (exit code {exit_code}):\n{errors[-3000:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the contests, print the table, write ``results/latest.json``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("ANDON_PEERS", ROOT.parent / "shared" / "peers"),
        help="folder of the peers' scripts (ANDON_PEERS)",
    )
    flags.add_argument(
        "--peers-python",
        default=os.environ.get("PEERS_PYTHON"),
        help="interpreter of the environment that has the peers (PEERS_PYTHON)",
    )
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument(
        "--only", default="", help="run only works whose name contains this; nothing is written"
    )
    arguments = flags.parse_args(argv)
    problem = peers_problem(arguments.peers, arguments.peers_python)
    if problem is not None:
        print(f"{problem}\n\n{HOW_TO_MAKE_PEERS.format(peers=arguments.peers)}", file=sys.stderr)
        return NOTHING_TO_COMPARE

    load = os.getloadavg()[0]
    chosen = {
        contest.peer_bench: [work for work in contest.ours if arguments.only in work] for contest in CONTESTS
    }
    rows: list[Row] = []
    for contest in CONTESTS:
        works = chosen[contest.peer_bench]
        rounds: list[Round] = []
        for number in range(1, arguments.rounds + 1 if works else 1):
            rounds.append(compete(contest, works, arguments.peers, arguments.peers_python))
            for row in rows_of(contest, rounds[-1:]):
                line = f"round {number} of {arguments.rounds}: {row.work}: {row.ratio:.2f} x {row.peer}"
                print(line, file=sys.stderr, flush=True)
        rows += rows_of(contest, rounds) if rounds else []
    print(table(rows))
    if not arguments.only:
        path = write(rows, rounds=arguments.rounds, load=load)
        print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


def peers_problem(peers: Path, peers_python: str | None) -> str | None:
    """Why the peers cannot run; None when they can."""
    if not (peers / "peerlib.py").is_file():
        return f"there are no peers' scripts in {peers}: name their folder with --peers or ANDON_PEERS"
    if not peers_python:
        return "PEERS_PYTHON is not set"
    if not Path(peers_python).is_file():
        return f"PEERS_PYTHON: there is no {peers_python}"
    probe = subprocess.run(
        [peers_python, "-c", "import torch, transformers, trl"], capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        return f"PEERS_PYTHON: {peers_python} has not all peers: {probe.stderr.strip().splitlines()[-1]}"
    return None


def compete(contest: Contest, works: Sequence[str], peers: Path, peers_python: str) -> Round:
    """Run the peer's script and ours, once each."""
    return Round(
        theirs=run_script([peers_python, *contest.peer_command], peers, contest.peer_bench),
        ours={work: run_script([sys.executable, "-m", *contest.ours[work]], ROOT, None) for work in works},
    )


def run_script(command: Sequence[str], folder: Path, bench: str | None) -> Facts:
    """Run a script; raises ScriptFailedError."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    facts = facts_of(done.stdout, bench)
    if done.returncode != 0 or facts is None:
        raise ScriptFailedError(command=command, exit_code=done.returncode, errors=done.stderr)
    return facts


def facts_of(output: str, bench: str | None) -> Facts | None:
    """The JSON line of a script's output that is about ``bench``, or the first one."""
    for line in output.splitlines():
        if line.startswith(LINE_PREFIX):
            facts: Facts = json.loads(line.removeprefix(LINE_PREFIX))
            if bench is None or facts.get("bench") == bench:
                return facts
    return None


def rows_of(contest: Contest, rounds: Sequence[Round]) -> list[Row]:
    """Each work of ours against each peer, over the rounds."""
    rows = []
    for work in rounds[0].ours:
        for peer in contest.peers:
            ratios = [played.ours[work]["rate"] / peer.rate(played.theirs) for played in rounds]
            rows.append(
                Row(
                    work=work,
                    peer=peer.name,
                    ratio=round(statistics.median(ratios), 2),
                    low=round(min(ratios), 2),
                    high=round(max(ratios), 2),
                    bar=peer.bar,
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows for people to read, as Markdown."""
    lines = [
        f"| {'work':40} | {'against':32} | ratio | range         | bar         |",
        f"|{'-' * 42}|{'-' * 34}|------:|---------------|-------------|",
    ]
    for row in rows:
        spread = f"{row.low:.2f} to {row.high:.2f}"
        bar = "" if row.bar is None else f"{row.bar:.1f} {'reached' if row.ratio >= row.bar else 'MISSED'}"
        lines.append(f"| {row.work:40} | {row.peer:32} | {row.ratio:5.2f} | {spread:13} | {bar:11} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], *, rounds: int, load: float) -> Path:
    """Write ``results/latest.json`` and return its path."""
    result = {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_at_start": round(load, 2),  # above 0.5 others were at work, and ratios are less certain
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "unit": "rate of ours / rate of the peer, per CPU second of processes with one thread",
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
