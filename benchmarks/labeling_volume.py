"""How fast many comparisons go into the labeling service and out again, and in how much memory.

Each size runs on an empty database with a service of its own. The comparisons go in and come back through
``andon.client.labeling``, as `andon label import` and `andon label export` send and read them; every one is
counted on its way out. The peak of memory of service and client must not grow with the number of comparisons.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from andon.client.labeling import LabelingClient
from andon.corpus.records import CandidateRecord, ComparisonRecord
from benchmarks.labeling_processes import (
    ENGINES,
    SERVICE_TOKEN_NAME,
    LabelingProcess,
    forget_peak_memory,
    labeling_process,
    peak_memory_bytes,
    print_table,
    write_results,
)

BATCH = "import"
PROJECT = "default"
DOCUMENT_CHARS = 1_200  # of a TL;DR post, about
SUMMARY_CHARS = 130
MIB = 1024 * 1024

_PROSE = "the quick brown fox jumps over the lazy dog and thinks about what it has seen there, "


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What it took to move all comparisons one way."""

    seconds: float
    cpu_seconds: Mapping[str, float]  # by process
    service_peak_bytes: int
    client_peak_bytes: int


def comparison(number: int, *, answers_per_task: int) -> ComparisonRecord:
    """A made-up answer the size of those about TL;DR posts."""
    task, best = number // answers_per_task, number % 2
    prose = _PROSE * (DOCUMENT_CHARS // len(_PROSE) + 1)
    turned = prose[task % len(_PROSE) :] + prose[: task % len(_PROSE)]
    return ComparisonRecord(
        document_id=f"t3_{task}",
        document=f"{task} {turned[:DOCUMENT_CHARS]}",
        candidates=tuple(
            CandidateRecord(text=f"{task} {source} {turned[:SUMMARY_CHARS]}", source=source)
            for source in ("sup1", "sup2")
        ),
        tiers=((best,), (1 - best,)),
        only_best_known=True,
        labeler_id=f"labeler-{number % 97}",
        confidence=number % 9 + 1,
        note=str(number),
    )


def bring_in(client: LabelingClient, count: int, *, answers_per_task: int) -> None:
    """Import; raises ValueError unless every comparison was recorded."""
    report = client.import_comparisons(
        ((number, comparison(number, answers_per_task=answers_per_task)) for number in range(count)),
        project=PROJECT,
        batch=BATCH,
    )
    if report.recorded_count != count or report.refused_count:
        raise ValueError(f"{report.recorded_count:,} of {count:,} recorded, {report.refused_count:,} refused")


def bring_out(client: LabelingClient, count: int) -> None:
    """Export; raises ValueError unless every comparison came exactly once, with what was said of it."""
    seen = bytearray(count)
    for record in client.export_comparisons(batch=BATCH, timeout_s=None):
        number = int(record.note)
        seen[number] += 1
        if record.tiers[0] != (number % 2,) or record.labeler_id != f"labeler-{number % 97}":
            raise ValueError(f"comparison {number} came back as something else")
    if seen.count(1) != count:
        raise ValueError(f"{seen.count(1):,} of {count:,} comparisons came back exactly once")


def watched(running: LabelingProcess, work: Callable[[], None]) -> Passage:
    """Do the work and say what it took."""
    pids = {"service": running.pid, "client": os.getpid()}
    for pid in pids.values():
        forget_peak_memory(pid)
    begin_s, cpu_begin = time.monotonic(), {**running.cpu_seconds(), "client": time.process_time()}
    work()
    seconds, cpu_end = time.monotonic() - begin_s, {**running.cpu_seconds(), "client": time.process_time()}
    return Passage(
        seconds=seconds,
        cpu_seconds={part: cpu_end[part] - cpu_begin[part] for part in cpu_end},
        service_peak_bytes=peak_memory_bytes(pids["service"]),
        client_peak_bytes=peak_memory_bytes(pids["client"]),
    )


def measure(engine: str, count: int, *, answers_per_task: int) -> list[dict[str, object]]:
    """Import and export ``count`` comparisons: a row for each way."""
    with (
        labeling_process(engine, flags=["--log-level=WARNING"]) as running,
        LabelingClient(running.target, token=running.holders[SERVICE_TOKEN_NAME].token) as client,
    ):
        passages = {
            "import": watched(running, lambda: bring_in(client, count, answers_per_task=answers_per_task)),
            "export": watched(running, lambda: bring_out(client, count)),
        }
    return [
        {
            "engine": engine,
            "way": way,
            "comparisons": count,
            "seconds": round(passage.seconds, 1),
            "rows/s": round(count / passage.seconds),
            "service MiB": round(passage.service_peak_bytes / MIB),
            "client MiB": round(passage.client_peak_bytes / MIB),
            **{
                f"{part} CPU us/row": round(passage.cpu_seconds.get(part, 0.0) / count * 1e6)
                for part in ("service", "database", "client")
            },
        }
        for way, passage in passages.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write ``results/labeling_volume.json``."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--engine", choices=ENGINES, action="append", help="default: all")
    flags.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    flags.add_argument("--answers-per-task", type=int, default=1)
    flags.add_argument("--no-results", action="store_true", help="write no file")
    arguments = flags.parse_args(argv)
    rows: list[dict[str, object]] = []
    for engine in arguments.engine or ENGINES:
        for count in arguments.rows:
            rows += measure(engine, count, answers_per_task=arguments.answers_per_task)
            print(*rows[-2:], sep="\n", flush=True)
    print_table(rows)
    if not arguments.no_results:
        print(write_results("labeling_volume", rows))


if __name__ == "__main__":
    main()
