"""How soon commands have answered and services are ready: ``make bench-startup``.

Every command runs as a person runs it, in a process of its own, and every service as an operator starts it,
by itself, on a small model. Seconds are on the clock, because that is what a person waits; CPU seconds stand
beside them and tell whether the machine was busy with other things. The first run of each is a warm-up: files
are in the machine's cache, Python's bytecode is written.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from andon.cli.tokens import make_tokens, tokens_path
from andon.modeling.store import ModelStore
from benchmarks.cord_parts import end_process, start_process
from benchmarks.measuring import cpu_seconds_of_process, emit
from benchmarks.ppo_update import publish_models
from benchmarks.shapes import SHAPES, codec

ANDON = Path(sys.executable).with_name("andon")
DOCUMENT = "t1 t2 t3 t4 t5 t6 t7 t8"
SUMMARY = "t1 t3"
# Python starts no faster than this; what a command takes beyond it is Andon's.
BARE_PYTHON = "python -c pass"
SERVICES = ("labeling", "reference", "reward", "policy", "trainer", "canary")
MODELS = {"policy": "sft/1", "reference": "sft/1", "reward": "reward/1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """How long something took, over several runs."""

    seconds: float  # median
    low: float
    high: float
    cpu_seconds: float  # median


class CommandFailedError(Exception):
    """A command that is timed did not do its work."""


def median_of(measure: Callable[[], tuple[float, float]], *, repetitions: int) -> Wait:
    """Call ``measure``, which returns seconds and CPU seconds, after one call that does not count."""
    measure()
    runs = [measure() for _ in range(repetitions)]
    seconds = [run[0] for run in runs]
    return Wait(
        seconds=round(statistics.median(seconds), 3),
        low=round(min(seconds), 3),
        high=round(max(seconds), 3),
        cpu_seconds=round(statistics.median(run[1] for run in runs), 3),
    )


def time_command(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and CPU seconds until the command has ended. Raises CommandFailedError."""
    before, begin_s = _cpu_of_ended_children(), time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin_s
    if done.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, _cpu_of_ended_children() - before


def time_service(service: str, folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds until the service says that it is ready; it is ended afterwards."""
    begin_s = time.perf_counter()
    process, _ = start_process(service_command(service, folder), folder / f"{service}.log")
    try:
        return time.perf_counter() - begin_s, cpu_seconds_of_process(process.pid)
    finally:
        end_process(process, signal.SIGTERM)


def service_command(service: str, folder: Path) -> list[str]:
    """How the service is started, on free ports, with everything it writes below ``folder``."""
    flags = ["--port=0", "--metrics-port=0"]
    if service == "labeling":
        flags += ["--web-port=0", f"--database=sqlite:///{folder / 'labeling.sqlite3'}"]
        flags += [f"--tokens-file={tokens_path(folder)}"]
    else:
        flags += [f"--store={folder / 'store'}"]
    if service in MODELS:
        flags += [f"--model={MODELS[service]}"]
    if service == "trainer":
        flags += [f"--runs={folder / 'runs'}"]
    if service == "canary":
        flags += [f"--routes-folder={folder / 'envoy'}", f"--record-folder={folder / 'rollouts'}"]
    return [sys.executable, "-m", f"services.{service}", *flags]


def commands() -> dict[str, list[str]]:
    """What is timed against running services, by what a person would type."""
    andon = str(ANDON)
    return {
        BARE_PYTHON: [sys.executable, "-c", "pass"],
        "andon --help": [andon, "--help"],
        "andon score": [andon, "score", DOCUMENT, SUMMARY],
        "andon sample": [andon, "sample", DOCUMENT, "--max-new-tokens", "2"],
        "andon status": [andon, "status"],
        "andon cord status": [andon, "cord", "status"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--shape", default="tiny", choices=SHAPES)
    flags.add_argument("--repetitions", type=int, default=10, help="of each command")
    flags.add_argument("--starts", type=int, default=3, help="of each service; 0 times none")
    arguments = flags.parse_args(argv)
    shape = SHAPES[arguments.shape]
    with TemporaryDirectory(prefix="andon-startup-") as name:
        folder = Path(name)
        make_tokens(folder)
        publish_models(ModelStore(folder / "store"), shape, codec(shape))
        waits = {
            f"{service} service": median_of(
                partial(time_service, service, folder), repetitions=arguments.starts
            )
            for service in SERVICES
            if arguments.starts
        }
        with ExitStack() as running:
            environment = {"ANDON_HOME": str(folder)}
            for service in SERVICES:
                process, facts = start_process(service_command(service, folder), folder / f"{service}.log")
                running.callback(end_process, process)
                environment[f"ANDON_{service.upper()}_TARGET"] = f"127.0.0.1:{facts['port']}"
            for what, command in commands().items():
                waits[what] = median_of(
                    partial(time_command, command, environment), repetitions=arguments.repetitions
                )
    print("| what | seconds | range | CPU seconds |\n|---|---:|---|---:|")
    for what, wait in waits.items():
        print(f"| {what} | {wait.seconds:.2f} | {wait.low:.2f} to {wait.high:.2f} | {wait.cpu_seconds:.2f} |")
    emit(
        bench="andon_startup",
        load=round(os.getloadavg()[0], 2),
        seconds={what: wait.seconds for what, wait in waits.items()},
        cpu_s={what: wait.cpu_seconds for what, wait in waits.items()},
    )


def _cpu_of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
