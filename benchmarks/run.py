"""Runs ours and the peers in turn and prints how many times faster ours is: ``python -m benchmarks.run``.

In every round each script runs once, in its own process with one thread, so that a machine whose speed
drifts slows both sides. A ratio is taken per round; the median and the range over rounds are reported, and
beside them how many times its limit on this machine ours takes. Both sides get the same allocator settings.
A run that was interrupted goes on where it stood. What is compared stands in ``contests``, what the ratios
mean in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contests import CONTESTS, Command, Contest, Facts
from benchmarks.documents import put_between_marks
from benchmarks.limits import limit_seconds
from benchmarks.measuring import LINE_PREFIX
from benchmarks.progress import Measurement, Progress, digest_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LATEST = RESULTS / "latest.json"
DOCUMENT = ROOT / "docs" / "performance.md"
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
# Memory stays with the process, so that neither side pays for asking the kernel again and again.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
LIMITS: Command = ("benchmarks.limits",)
SAME_MATHEMATICS: Command = ("benchmarks.agreement",)
INTERRUPTED = 130  # exit codes
NOTHING_TO_COMPARE = 2
SCRIPT_FAILED = 1

HOW_TO_MAKE_PEERS = """\
The peers need a virtual environment of their own, torch first:

    python3 -m venv peers-venv
    peers-venv/bin/pip install "$(grep '^torch==' {peers}/requirements-peers.txt)"
    peers-venv/bin/pip install -r {peers}/requirements-peers.txt
    make bench PEERS_PYTHON=$PWD/peers-venv/bin/python
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One script in one round."""

    round_number: int
    command: Command
    is_memory: bool

    @property
    def script(self) -> str:
        """What is measured, whatever the round."""
        return " ".join(self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of a contest gave."""

    theirs: Facts
    ours: Mapping[str, Facts]  # by work
    machine: Facts  # of ``benchmarks.limits``


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: how many times better ours is."""

    work: str
    shape: str
    peer: str
    ratio: float  # median over rounds
    low: float
    high: float
    bar: float | None
    times_limit: float | None  # CPU seconds of ours over the least that the machine needs; median


class ScriptFailedError(Exception):
    """A script ended without the line that was wanted."""

    def __init__(self, *, command: Sequence[str], exit_code: int, errors: str) -> None:
        super().__init__(f"{' '.join(command)} gave no result (exit code {exit_code}):\n{errors[-3000:]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Where the peers are."""

    folder: Path  # of their scripts
    python: str  # of their environment

    def problem(self) -> str | None:
        """Why they cannot run; None when they can."""
        if not (self.folder / "peerlib.py").is_file():
            return (
                f"there are no peers' scripts in {self.folder}: name their folder with --peers or ANDON_PEERS"
            )
        if not self.python:
            return "PEERS_PYTHON is not set"
        if not Path(self.python).is_file():
            return f"PEERS_PYTHON: there is no {self.python}"
        probe = subprocess.run(
            [self.python, "-c", "import torch, transformers, trl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if probe.returncode != 0:
            last_line = probe.stderr.strip().splitlines()[-1]
            return f"PEERS_PYTHON: {self.python} has not all peers: {last_line}"
        return None

    def process(self, command: Command) -> tuple[list[str], Path]:
        """The whole command line and the folder to run it in."""
        if command[0].endswith(".py"):
            return [self.python, *command], self.folder
        python = self.python if command[0].startswith("benchmarks.peer_scripts.") else sys.executable
        return [python, "-m", *command], ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the contests, print the table, write it into ``results/latest.json`` and docs/performance.md."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("ANDON_PEERS", ROOT.parent / "shared" / "peers"),
        help="folder of the peers' scripts (ANDON_PEERS)",
    )
    flags.add_argument(
        "--peers-python",
        default=os.environ.get("PEERS_PYTHON", ""),
        help="interpreter of the environment that has the peers (PEERS_PYTHON)",
    )
    flags.add_argument("--rounds", type=int, default=3, help="of the tiny shape")
    flags.add_argument(
        "--small-rounds", type=int, default=1, help="of the small shape, which takes minutes; 0: none"
    )
    flags.add_argument("--shape", choices=("tiny", "small"), help="run this shape alone")
    flags.add_argument("--only", default="", help="run only works whose name contains this")
    flags.add_argument(
        "--update",
        action="store_true",
        help="with --shape or --only: replace what was measured of these works; else nothing is written then",
    )
    flags.add_argument(
        "--fresh", action="store_true", help="begin anew, although an interrupted run could go on"
    )
    arguments = flags.parse_args(argv)
    if arguments.rounds < 1 or arguments.small_rounds < 0:
        flags.error("there must be at least one round")
    rounds = {"tiny": arguments.rounds, "small": arguments.small_rounds}
    peers = Peers(folder=arguments.peers, python=arguments.peers_python)
    problem = peers.problem()
    if problem is not None:
        print(f"{problem}\n\n{HOW_TO_MAKE_PEERS.format(peers=peers.folder)}", file=sys.stderr)
        return NOTHING_TO_COMPARE
    chosen = choose(CONTESTS, shape=arguments.shape, only=arguments.only)
    chosen = [contest for contest in chosen if rounds[contest.shape]]
    if not chosen:
        flags.error(f"no work's name contains {arguments.only!r}")
    is_whole = not arguments.shape and not arguments.only
    progress = Progress(
        RESULTS / ("unfinished.json" if is_whole else "unfinished_part.json"),
        digest=digest_of([ROOT / "andon", ROOT / "services", ROOT / "benchmarks", peers.folder]),
    )
    if arguments.fresh:
        progress.clear()
    if progress.is_outdated:
        print("the code has changed since the run that was interrupted: all anew", file=sys.stderr)
    load = os.getloadavg()[0]
    try:
        carry_out(plan(chosen, rounds), progress, peers)
    except ScriptFailedError as error:
        print(f"{error}\n\nWhat was measured is kept: the next run goes on from here.", file=sys.stderr)
        return SCRIPT_FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is kept, and the next run goes on from here", file=sys.stderr)
        return INTERRUPTED
    rows = [row for contest in chosen for row in rows_of(contest, rounds_of(contest, rounds, progress))]
    print(table(rows))
    if is_whole or arguments.update:
        seconds = progress.seconds_by_script()
        if not is_whole:
            rows, seconds = among_others(rows), seconds_of_latest() | seconds
        write(rows, rounds=rounds, load=load, seconds=seconds)
        put_between_marks(DOCUMENT, "latest", table(rows))
        print(f"\nwritten to {LATEST.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)}")
    progress.clear()
    return 0


def choose(contests: Sequence[Contest], *, shape: str | None, only: str) -> list[Contest]:
    """The contests of this shape (None: of all), with those of their works whose name contains ``only``."""
    chosen = []
    for contest in contests:
        ours = {work: command for work, command in contest.ours.items() if only in work}
        if ours and shape in (None, contest.shape):
            chosen.append(
                Contest(
                    theirs=contest.theirs,
                    peers=contest.peers,
                    ours=ours,
                    shape=contest.shape,
                    is_memory=contest.is_memory,
                )
            )
    return chosen


def plan(contests: Sequence[Contest], rounds: Mapping[str, int]) -> list[Step]:
    """Every script that is wanted, each once per round; first the check that both sides compute the same."""
    steps = [Step(round_number=1, command=SAME_MATHEMATICS, is_memory=False)]
    for number in range(1, max(rounds.values()) + 1):
        in_round = [contest for contest in contests if number <= _rounds(contest, rounds)]
        if not in_round:
            continue
        steps.append(Step(round_number=number, command=LIMITS, is_memory=False))
        for contest in in_round:
            steps += [
                Step(round_number=number, command=command, is_memory=contest.is_memory)
                for command in (contest.theirs, *contest.ours.values())
            ]
    return list(dict.fromkeys(steps))


def carry_out(steps: Sequence[Step], progress: Progress, peers: Peers) -> None:
    """Run what has not been run; raises ScriptFailedError."""
    left = [step for step in steps if progress.find(step.round_number, step.script) is None]
    if len(left) < len(steps):
        print(f"{len(steps) - len(left)} of {len(steps)} scripts have run before", file=sys.stderr)
    expected = seconds_of_latest()
    for number, step in enumerate(left):
        expected |= progress.seconds_by_script()
        remaining = time_left([later.script for later in left[number:]], expected)
        where = f"[{len(steps) - len(left) + number + 1}/{len(steps)}, round {step.round_number}{remaining}]"
        print(f"{where} {step.script}", file=sys.stderr, flush=True)
        begin_s = time.monotonic()
        command, folder = peers.process(step.command)
        facts = run_script(command, folder, is_memory=step.is_memory, peers=peers)
        taken_s = time.monotonic() - begin_s
        progress.add(step.round_number, step.script, Measurement(facts=facts, seconds=taken_s))


def seconds_of_latest() -> dict[str, float]:
    """How long each script took when the benchmarks last ran; empty when they never did."""
    if not LATEST.is_file():
        return {}
    seconds: dict[str, float] = json.loads(LATEST.read_text()).get("seconds_by_script", {})
    return seconds


def time_left(scripts: Sequence[str], expected: Mapping[str, float]) -> str:
    """For people; a script that was never timed is taken for an average one."""
    known = [expected[script] for script in scripts if script in expected]
    if not known:
        return ""
    seconds = sum(known) + (len(scripts) - len(known)) * statistics.mean(known)
    return f", about {max(1, round(seconds / 60))} min left"


def run_script(command: Sequence[str], folder: Path, *, is_memory: bool, peers: Peers) -> Facts:
    """Run a script in its own process; raises ScriptFailedError."""
    environment = {**os.environ, **ENVIRONMENT, **({} if is_memory else KEPT_MEMORY)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(peers.folder)])
    environment["PEERS_PYTHON"] = peers.python
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    facts = facts_of(done.stdout)
    if done.returncode != 0 or facts is None:
        raise ScriptFailedError(command=command, exit_code=done.returncode, errors=done.stderr)
    return facts


def facts_of(output: str) -> Facts | None:
    """The last JSON line of a script's output."""
    for line in reversed(output.splitlines()):
        if line.startswith(LINE_PREFIX):
            facts: Facts = json.loads(line.removeprefix(LINE_PREFIX))
            return facts
    return None


def rounds_of(contest: Contest, rounds: Mapping[str, int], progress: Progress) -> list[Round]:
    """What a contest gave, round by round."""

    def facts(number: int, command: Command) -> Facts:
        found = progress.find(number, " ".join(command))
        assert found is not None, "every step of the plan was carried out"
        return found.facts

    return [
        Round(
            theirs=facts(number, contest.theirs),
            ours={work: facts(number, command) for work, command in contest.ours.items()},
            machine=facts(number, LIMITS),
        )
        for number in range(1, _rounds(contest, rounds) + 1)
    ]


def rows_of(contest: Contest, rounds: Sequence[Round]) -> list[Row]:
    """Each work of ours against each peer, over the rounds."""
    rows = []
    for work in contest.ours:
        limits = [times_limit(played.ours[work], played.machine) for played in rounds]
        known = [limit for limit in limits if limit is not None]
        for peer in contest.peers:
            ratios = [peer.ratio(played.ours[work], played.theirs) for played in rounds]
            rows.append(
                Row(
                    work=work,
                    shape=contest.shape,
                    peer=peer.name,
                    ratio=round(statistics.median(ratios), 3),
                    low=round(min(ratios), 3),
                    high=round(max(ratios), 3),
                    bar=peer.bar,
                    times_limit=round(statistics.median(known), 2) if known else None,
                )
            )
    return rows


def times_limit(ours: Facts, machine: Facts) -> float | None:
    """None for what is no matter of time."""
    if "needs" not in ours:
        return None
    return float(ours["cpu_s"]) / limit_seconds(ours["needs"], machine)


def table(rows: Sequence[Row]) -> str:
    """The rows for people to read, as Markdown."""
    lines = [
        "| work | shape | against | ratio | range | bar | times its limit |",
        "|---|---|---|---:|---|---|---:|",
    ]
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:g} {'reached' if row.ratio >= row.bar else 'MISSED'}"
        limit = "" if row.times_limit is None else f"{row.times_limit:.1f}"
        spread = f"{row.low:.2f} to {row.high:.2f}"
        cells = (row.work, row.shape, row.peer, f"{row.ratio:.2f}", spread, bar, limit)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def among_others(rows: Sequence[Row]) -> list[Row]:
    """These rows in the place of the same ones in ``results/latest.json``, with the others as they stand
    there, in the order of the contests; what is compared no longer is dropped.
    """
    others = [Row(**row) for row in json.loads(LATEST.read_text())["rows"]] if LATEST.is_file() else []
    by_name = {(row.work, row.shape, row.peer): row for row in (*others, *rows)}
    names = [
        (work, contest.shape, peer.name)
        for contest in CONTESTS
        for work in contest.ours
        for peer in contest.peers
    ]
    return [by_name[name] for name in names if name in by_name]


def write(
    rows: Sequence[Row], *, rounds: Mapping[str, int], load: float, seconds: Mapping[str, float]
) -> None:
    """Write ``results/latest.json``."""
    result = {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_at_start": round(load, 2),  # above 0.5 others were at work, and ratios are less certain
            "python": platform.python_version(),
        },
        "rounds": dict(rounds),
        "unit": "rate of ours / rate of the peer, per CPU second of processes with one thread; of memory, "
        "bytes of the peer / bytes of ours",
        "rows": [asdict(row) for row in rows],
        "seconds_by_script": {script: round(taken, 1) for script, taken in seconds.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps(result, indent=2) + "\n")


def _rounds(contest: Contest, rounds: Mapping[str, int]) -> int:
    return 1 if contest.is_memory else rounds[contest.shape]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
