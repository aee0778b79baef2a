"""Plants faults into the built-in loop and counts what the guards see: ``python -m benchmarks.guards``.

Finished runs are kept as lines in ``build/guards``; a benchmark that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.guards.plan import PlannedRun, planned_runs
from benchmarks.guards.report import write_report

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "guards"
LINES = WORK / "runs.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the results, the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="worlds: seeds 0, 1, ...")
    parser.add_argument("--healthy", type=int, default=60, help="healthy runs of varied configuration")
    parser.add_argument("--faults", nargs="*", help="only these; all when left out")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--again", action="store_true", help="forget the runs that were finished before")
    parser.add_argument("--report-only", action="store_true", help="write the results of what is finished")
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)  # child: make one world
    parser.add_argument("--run", help=argparse.SUPPRESS)  # child: one run, by its key
    options = parser.parse_args(arguments)
    seeds = list(range(options.seeds))
    runs = planned_runs(seeds=seeds, faults=options.faults, healthy=options.healthy)
    if options.world is not None:
        return _make_world(options.world)
    if options.run is not None:
        return _do_run(next(run for run in runs if run.key == options.run))
    WORK.mkdir(parents=True, exist_ok=True)
    if options.again:
        LINES.unlink(missing_ok=True)
    if not options.report_only:
        _do_all(runs, seeds, jobs=options.jobs, same=_same_plan(options))
    write_report(_finished(), runs, root=ROOT)
    return 0


def _same_plan(options: argparse.Namespace) -> list[str]:
    same = ["--seeds", str(options.seeds), "--healthy", str(options.healthy)]
    return [*same, "--faults", *options.faults] if options.faults is not None else same


def _finished() -> dict[str, dict[str, Any]]:
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {line["key"]: line for line in lines}


def _do_all(runs: Sequence[PlannedRun], seeds: Sequence[int], *, jobs: int, same: list[str]) -> None:
    console = Console(stderr=True)
    finished = _finished()
    waiting = [run for run in runs if run.key not in finished]
    worlds = [seed for seed in seeds if not (WORK / f"world-{seed}" / "world.json").exists()]
    with (
        ThreadPoolExecutor(max_workers=jobs) as pool,
        LINES.open("a", encoding="utf-8") as lines,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as progress,
    ):
        task = progress.add_task("worlds", total=len(worlds))
        for future in as_completed([pool.submit(_child, ["--world", str(seed)], same) for seed in worlds]):
            future.result()
            progress.advance(task)
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
        futures = {pool.submit(_child, ["--run", run.key], same): run for run in waiting}
        for future in as_completed(futures):
            line = {"key": futures[future].key, **json.loads(future.result())}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            progress.advance(task)
            progress.console.print(_in_words(line), highlight=False, markup=False)


def _in_words(line: dict[str, Any]) -> str:
    if line["held_by"]:
        return f"{line['key']}: held at update {line['at_update']} by {', '.join(line['held_by'])}"
    return f"{line['key']}: {line['ended_as'].partition(':')[0]} after {line['updates']} updates"


def _child(arguments: list[str], same: list[str]) -> str:
    """A process of its own, with one thread; what it prints last."""
    command = [sys.executable, "-m", "benchmarks.guards", *same, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{ended.stderr[-4000:]}")
    return ended.stdout.splitlines()[-1] if ended.stdout.strip() else ""


def _make_world(seed: int) -> int:
    from benchmarks.guards.world import open_world  # late: the parent needs no torch

    open_world(WORK, seed, tell=lambda message: print(message, file=sys.stderr))
    return 0


def _do_run(run: PlannedRun) -> int:
    import torch

    from benchmarks.guards.loop import run_loop
    from benchmarks.guards.world import open_world

    torch.set_num_threads(1)
    world = open_world(WORK, run.seed, tell=lambda message: print(message, file=sys.stderr))
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=WORK))
    try:
        outcome = run_loop(world, folder, config=_with_labels(run, world.held_out), fault=run.fault)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(outcome.to_json()))
    return 0


def _with_labels(run: PlannedRun, held_out: Path) -> dict[str, Any]:
    guards = dict(run.config.get("guards", {}))
    guards["preflight"] = {"comparisons": str(held_out), **guards.get("preflight", {})}
    guards["witness"] = {"model": "witness@latest", **guards.get("witness", {})}
    return {**run.config, "guards": guards}


if __name__ == "__main__":
    sys.exit(main())
