"""Times ours and the peers on one GPU, in one process: ``python -m benchmarks.gpu --device cuda``.

Seconds on the clock, until the device has finished. In every round ours and each peer run once, in turn; the
ratio is taken per round. Beside it stand tokens per second, and the model FLOP utilisation: operations of the
model's passes, padding left out, over what large matrix products reach on the same device in the same number
format. TRL takes part where it is installed beside us. What is compared stands in ``gpu_works``. On the CPU,
at the nano shapes, it shows that everything runs; its numbers then say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.documents import put_between_marks
from benchmarks.gpu_models import ARCHITECTURES, dtype_of, store_models
from benchmarks.gpu_place import SIZES, Place, Way, Work, forget_models, has_trl
from benchmarks.gpu_works import plans
from benchmarks.run import DOCUMENT, RESULTS

NO_SUCH_DEVICE = 2  # exit code
NO_TRL = "(TRL is not installed)"
MATRIX_SIZE = {"cuda": 8192, "cpu": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Ours against one peer."""

    work: str
    shape: str
    dtype: str
    peer: str  # or why there is none
    ratio: float | None  # the peer's seconds over ours, median over rounds
    low: float | None
    high: float | None
    seconds: float  # of ours
    tokens_per_s: float
    flop_utilisation: float  # 0..1
    peer_seconds: float | None
    peer_flop_utilisation: float | None
    extra_mib: float | None  # the most that ours held on the device above what it held before; None on a CPU
    peer_extra_mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One run of one way."""

    seconds: float
    extra_mib: float | None


class Device:
    """Where it is measured."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = torch.device(name).type

    @property
    def hardware(self) -> str:
        """Its name, for the results."""
        if self.kind == "cuda":
            return torch.cuda.get_device_name(self.name)
        return platform.processor() or platform.machine()

    def wait(self) -> None:
        """Until everything that was asked of it is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.name)

    def free(self) -> None:
        """Give back what trainers, which hold themselves, kept."""
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def timed(self, work: Callable[[], object]) -> Timed:
        """Run it once."""
        before = 0
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self.name)
            before = torch.cuda.memory_allocated(self.name)
        self.wait()
        begin_s = time.perf_counter()
        work()
        self.wait()
        seconds = time.perf_counter() - begin_s
        extra = None
        if self.kind == "cuda":
            extra = (torch.cuda.max_memory_allocated(self.name) - before) / 2**20
        return Timed(seconds=seconds, extra_mib=extra)

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """Of large matrix products, the best of several."""
        size = MATRIX_SIZE[self.kind]
        left, right = (torch.randn(size, size, device=self.name).to(dtype) for _ in range(2))
        into = torch.empty_like(left)
        self.timed(lambda: torch.mm(left, right, out=into))
        best = min(self.timed(lambda: torch.mm(left, right, out=into)).seconds for _ in range(5))
        return 2 * size**3 / best


def rows_of(
    name_of_work: str, work: Work, place: Place, shape: str, device: Device, *, rounds: int, peak: float
) -> list[Row]:
    """Run ours and the peers in turn; the first round is a warm-up. A peer for which the memory does not
    suffice is left out.
    """
    ways = {"": work.ours, **work.peers}
    taken: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in list(ways.items()):
            try:
                taken[name].append(device.timed(way.run))
            except torch.OutOfMemoryError:
                if not name:
                    raise
                del ways[name]
    measured = {name: taken[name][1:] for name in ways}

    def seconds(name: str) -> float:
        return statistics.median(run.seconds for run in measured[name])

    def utilisation(name: str, way: Way) -> float:
        return round(way.flops / seconds(name) / peak, 4)

    def extra(name: str) -> float | None:
        held = [run.extra_mib for run in measured[name] if run.extra_mib is not None]
        return round(max(held), 1) if held else None

    rows = []
    for wanted in work.peers or [""]:
        peer = wanted if wanted and wanted in ways else None
        without = f"{wanted}: out of memory" if wanted else NO_TRL
        ratios = []
        if peer is not None:
            pairs = zip(measured[peer], measured[""], strict=True)
            ratios = [theirs.seconds / ours.seconds for theirs, ours in pairs]
        rows.append(
            Row(
                work=name_of_work,
                shape=shape,
                dtype=place.dtype,
                peer=without if peer is None else peer,
                ratio=round(statistics.median(ratios), 3) if ratios else None,
                low=round(min(ratios), 3) if ratios else None,
                high=round(max(ratios), 3) if ratios else None,
                seconds=round(seconds(""), 5),
                tokens_per_s=round(work.ours.tokens / seconds(""), 1),
                flop_utilisation=utilisation("", work.ours),
                peer_seconds=None if peer is None else round(seconds(peer), 5),
                peer_flop_utilisation=None if peer is None else utilisation(peer, work.peers[peer]),
                extra_mib=extra(""),
                peer_extra_mib=None if peer is None else extra(peer),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """For people, as Markdown."""
    names = ("work", "shape", "against", "ratio", "range", "tokens/s")
    pairs = ("FLOP utilisation", "the peer's", "memory, MiB", "the peer's")
    lines = [
        f"| {' | '.join((*names, *pairs))} |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = "" if row.ratio is None else f"{row.low:.2f} to {row.high:.2f}"
        cells = (
            row.work,
            f"{row.shape}, {row.dtype}",
            row.peer,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            spread,
            f"{row.tokens_per_s:,.0f}",
            f"{row.flop_utilisation:.1%}",
            "" if row.peer_flop_utilisation is None else f"{row.peer_flop_utilisation:.1%}",
            "" if row.extra_mib is None else f"{row.extra_mib:,.0f}",
            "" if row.peer_extra_mib is None else f"{row.peer_extra_mib:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def progress(row: Row) -> str:
    """A line for who watches."""
    if row.peer_seconds is None:
        return f"  {row.seconds * 1000:.1f} ms"
    return f"  {row.seconds * 1000:.1f} ms, {row.peer} {row.peer_seconds * 1000:.1f} ms: {row.ratio:.2f}"


def write(rows: Sequence[Row], device: Device, peak: float) -> None:
    """Write ``results/gpu.json`` and the table in docs/performance.md.

    Earlier rows of the same hardware and torch stay where these have no others.
    """
    machine = {"hardware": device.hardware, "torch": torch.__version__, "python": platform.python_version()}
    path = RESULTS / "gpu.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {"machine": None, "rows": []}
    kept = [Row(**row) for row in earlier["rows"]] if earlier["machine"] == machine else []
    measured = {(row.shape, row.dtype, row.work) for row in rows}
    kept = [row for row in kept if (row.shape, row.dtype, row.work) not in measured]
    both = sorted((*kept, *rows), key=_place_in_table)
    result = {"machine": machine, "matmul_flops_per_s": peak, "rows": [asdict(row) for row in both]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    head = f"On one {device.hardware}, torch {torch.__version__}:"
    put_between_marks(DOCUMENT, "gpu", f"{head}\n\n{table(both)}")


def _place_in_table(row: Row) -> tuple[int, str, int]:
    names = [plan.name for plan in plans(SIZES[row.shape])]
    return list(ARCHITECTURES).index(row.shape), row.dtype, names.index(row.work)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write ``results/gpu.json`` and the table in docs/performance.md."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a check at the nano shapes")
    flags.add_argument("--shape", choices=ARCHITECTURES, action="append", help="default: 124m and 1b-llama")
    flags.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--only", action="append", help="only works whose name contains this; may be repeated")
    flags.add_argument("--no-results", action="store_true", help="write nothing")
    arguments = flags.parse_args(argv)
    if arguments.rounds < 1:
        flags.error("there must be at least one round")
    for part in arguments.only or ():
        if not any(part in plan.name for size in SIZES.values() for plan in plans(size)):
            flags.error(f"no work's name contains {part!r}")
    try:
        device = Device(arguments.device)
    except RuntimeError as error:
        flags.error(f"--device {arguments.device}: {error}")
    if device.kind == "cuda" and not torch.cuda.is_available():
        print(
            "torch finds no GPU here; --device cpu --shape nano shows that everything runs", file=sys.stderr
        )
        return NO_SUCH_DEVICE
    if not has_trl():
        print("TRL is not installed here: training is timed without it", file=sys.stderr)
    peak = device.flops_per_second(dtype_of(arguments.dtype))
    rows: list[Row] = []
    for shape in arguments.shape or ("124m", "1b-llama"):
        architecture = ARCHITECTURES[shape]
        with TemporaryDirectory() as folder:
            place = Place(
                architecture=architecture,
                stored=store_models(architecture, Path(folder)),
                size=SIZES[shape],
                device=arguments.device,
                dtype=arguments.dtype,
            )
            for plan in plans(place.size):
                if arguments.only and not any(part in plan.name for part in arguments.only):
                    continue
                print(f"{shape}: {plan.name} ...", file=sys.stderr, flush=True)
                with plan.make(place) as work:
                    measured = rows_of(
                        plan.name, work, place, shape, device, rounds=arguments.rounds, peak=peak
                    )
                del work
                device.free()
                for row in measured:
                    print(progress(row), file=sys.stderr, flush=True)
                rows += measured
                if not arguments.no_results:
                    write(rows, device, peak)  # so that what was measured outlives a run that is broken off
            forget_models()
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
