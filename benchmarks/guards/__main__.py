"""Plants faults into the built-in loop and counts what the guards see: ``python -m benchmarks.guards``.

Worker processes do one run after the other, so that torch is imported once. Finished runs are kept as lines
in ``build/guards``; a benchmark that was cut off goes on where it was, and repeats what has another
configuration now. What was changed in the guards themselves it cannot know: ``--again``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.guards.plan import HEALTHY_RUNS, SEEDS, PlannedRun, planned_runs
from benchmarks.guards.report import write_report

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "guards"
LINES = WORK / "runs.jsonl"
ANSWER = "ANSWER "  # before what a worker answers, among whatever else is printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the results, the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="seeds")
    parser.add_argument("--healthy", type=int, default=HEALTHY_RUNS, help="healthy runs")
    parser.add_argument("--faults", nargs="*", help="only these; all when left out")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--again", action="store_true", help="repeat these runs, finished or not")
    parser.add_argument("--report-only", action="store_true", help="write the results of what is finished")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    everything = planned_runs(faults=None, healthy=max(options.healthy, HEALTHY_RUNS))
    if options.worker:
        return _work({run.key: run for run in everything})
    WORK.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    if not options.report_only:
        wanted = planned_runs(faults=options.faults, healthy=options.healthy)
        chosen = [run for run in wanted if run.seed in options.seeds]
        failed = _do_all(chosen, jobs=options.jobs, again=options.again)
    write_report(_finished(everything), everything, root=ROOT)
    for key in failed:
        print(f"{key} broke off: see {WORK}/worker-*.log", file=sys.stderr)
    return 1 if failed else 0


def _finished(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """The newest line of each run that was done with the configuration it has now."""
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    newest = {line["key"]: line for line in lines}
    return {
        run.key: newest[run.key]
        for run in runs
        if run.key in newest and newest[run.key]["config"] == json.loads(json.dumps(run.full_config))
    }


def _do_all(runs: Sequence[PlannedRun], *, jobs: int, again: bool) -> list[str]:
    """Do what is not finished; the keys of what broke off."""
    finished = {} if again else _finished(runs)
    waiting = [run for run in runs if run.key not in finished]
    worlds = sorted(
        {run.world for run in waiting if not (WORK / f"world-{run.world}" / "world.json").exists()}
    )
    failed = []
    workers = [Worker(number) for number in range(jobs)]
    idle: queue.Queue[Worker] = queue.Queue()
    for worker in workers:
        idle.put(worker)

    def do(request: str) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.do(request)
        finally:
            idle.put(worker)

    with (
        ThreadPoolExecutor(max_workers=jobs) as pool,
        LINES.open("a", encoding="utf-8") as lines,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as progress,
    ):
        if worlds:
            task = progress.add_task("worlds", total=len(worlds))
            for future in as_completed([pool.submit(do, f"world/{seed}") for seed in worlds]):
                future.result()
                progress.advance(task)
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
        futures = {pool.submit(do, run.key): run for run in waiting}
        for future in as_completed(futures):
            run = futures[future]
            progress.advance(task)
            try:
                line = {"key": run.key, "config": run.full_config, **future.result()}
            except WorkerError as error:
                failed.append(run.key)
                progress.console.print(f"{run.key}: {error}", highlight=False, markup=False)
                continue
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            progress.console.print(_in_words(line), highlight=False, markup=False)
    for worker in workers:
        worker.end()
    return failed


def _in_words(line: Mapping[str, Any]) -> str:
    how = f"{line['seconds']:.0f} s, bad {line['bad_published']}"
    if line["held_by"]:
        return f"{line['key']}: held at update {line['at_update']} by {', '.join(line['held_by'])} ({how})"
    return f"{line['key']}: {line['ended_as'].partition(':')[0]} after {line['updates']} updates ({how})"


class WorkerError(Exception):
    """A run broke off."""


class Worker:
    """A process with one thread of torch that does what it is asked, one after the other."""

    def __init__(self, number: int) -> None:
        self._log = WORK / f"worker-{number}.log"
        self._process: subprocess.Popen[str] | None = None

    def do(self, request: str) -> dict[str, Any]:
        """Give it a run's key, or "world/<seed>", and wait for the answer."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith(ANSWER):
                return dict(json.loads(line.removeprefix(ANSWER)))
        process.wait()
        self._process = None
        raise WorkerError(f"the worker ended with {process.returncode}: {self._log}")

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with self._log.open("a") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.guards", "--worker"],
                cwd=ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def end(self) -> None:
        """Let it go home."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def _work(runs: Mapping[str, PlannedRun]) -> int:
    import torch

    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for line in sys.stdin:
        request = line.strip()
        if request.startswith("world/"):
            answer: dict[str, Any] = _make_world(int(request.removeprefix("world/")))
        else:
            answer = _do_run(runs[request])
        print(ANSWER + json.dumps(answer), flush=True)
    return 0


def _make_world(seed: int) -> dict[str, Any]:
    from benchmarks.guards.world import open_world

    return open_world(WORK, seed, tell=lambda message: print(message, file=sys.stderr)).facts


def _do_run(run: PlannedRun) -> dict[str, Any]:
    from benchmarks.guards.loop import run_loop
    from benchmarks.guards.world import open_world

    world = open_world(WORK, run.world, tell=lambda message: print(message, file=sys.stderr))
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=WORK))
    try:
        config = with_labels(run.full_config, world.held_out)
        return run_loop(world, folder, config=config, fault=run.fault).to_json()
    finally:
        shutil.rmtree(folder)


def with_labels(config: Mapping[str, Any], held_out: Path) -> dict[str, Any]:
    """The configuration with what a careful researcher gives the guards: labels, and a witness."""
    guards = dict(config.get("guards", {}))
    guards["preflight"] = {"comparisons": str(held_out), **guards.get("preflight", {})}
    guards["witness"] = {"model": "witness@latest", **guards.get("witness", {})}
    return {**config, "guards": guards}


if __name__ == "__main__":
    sys.exit(main())
