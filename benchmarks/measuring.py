"""Decides how a benchmark of ours measures: CPU seconds, after a warm-up, printed as one JSON line.

CPU seconds rather than time on the clock, because they leave out what other programs take from the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.flops import Need
from benchmarks.shapes import SHAPES

LINE_PREFIX = "JSON "  # of the line that benchmarks.run looks for, ours and the peers'

_SECONDS_PER_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--shape", default="tiny", choices=SHAPES)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--repetitions", type=int, default=2)
    return flags


def use_threads(count: int) -> None:
    """Threads of torch in this process."""
    torch.set_num_threads(count)


def cpu_seconds(work: Callable[[], object], *, repetitions: int, warm_up: int = 1) -> float:
    """The median CPU seconds of this process, all threads, for one run of ``work``."""
    seconds = []
    for repetition in range(warm_up + repetitions):
        begin_s = time.process_time()
        work()
        if repetition >= warm_up:
            seconds.append(time.process_time() - begin_s)
    return statistics.median(seconds)


def cpu_seconds_of_process(pid: int) -> float:
    """CPU seconds another process has used since its start, all threads; Linux only."""
    # The second field, the program's name in brackets, may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) * _SECONDS_PER_TICK


def emit(**facts: object) -> None:
    """Print what was measured, for ``benchmarks.run`` to read."""
    print(LINE_PREFIX + json.dumps(facts), flush=True)


def emit_rate(*, bench: str, count: float, cpu_s: float, needs: Sequence[Need], **facts: object) -> None:
    """Print how many results a CPU second gave, and what they need at the least."""
    emit(bench=bench, rate=round(count / cpu_s, 3), cpu_s=round(cpu_s, 4), needs=needs, **facts)
