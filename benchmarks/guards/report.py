"""Puts finished runs together: benchmarks/results/guards.json, the table in docs/guards.md and its plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.guards.plan import PlannedRun

MARK = "## Measured\n"
PLOT = Path("docs/images/guards.png")
GUARDS_SHOWN = 4  # per fault, in the table


def write_report(lines: Mapping[str, Mapping[str, Any]], runs: Sequence[PlannedRun], *, root: Path) -> None:
    """From the finished lines among the planned runs."""
    results = summarize(lines, runs)
    path = root / "benchmarks" / "results" / "guards.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, root / PLOT)
    document = root / "docs" / "guards.md"
    before, _, _ = document.read_text(encoding="utf-8").partition(MARK)
    document.write_text(before + MARK + "\n" + in_markdown(results), encoding="utf-8")


def summarize(lines: Mapping[str, Mapping[str, Any]], runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """What the runs say, as JSON values."""
    healthy = [lines[run.key] for run in runs if run.fault is None and run.key in lines]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    what: dict[str, str] = {}
    for run in runs:
        if run.fault is not None and run.key in lines:
            groups.setdefault((run.fault.name, run.arm), []).append(lines[run.key])
            what[run.fault.name] = run.fault.what
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread per run",
        "faults": [_fault(name, arm, what[name], entries) for (name, arm), entries in groups.items()],
        "healthy": _healthy(healthy),
    }


def _fault(name: str, arm: str, what: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    caught = [entry for entry in entries if entry["held_by"]]
    by = Counter(guard for entry in caught for guard in entry["held_by"])
    return {
        "fault": name,
        "what": what,
        "arm": arm,
        "runs": len(entries),
        "caught": len(caught),
        "median_updates": statistics.median(entry["at_update"] for entry in caught) if caught else None,
        "bad_versions_published": sum(entry["bad_published"] for entry in entries),
        "by": dict(by.most_common()),
    }


def _healthy(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pulls = sum("cord" in entry["actions"] for entry in entries)
    holds = sum(bool(entry["held_by"]) for entry in entries)
    low, high = clopper_pearson(pulls, len(entries))
    by_guard: dict[str, list[float]] = {}
    for entry in entries:
        for guard, peak in entry["peaks"].items():
            by_guard.setdefault(guard, []).append(peak)
    return {
        "runs": len(entries),
        "updates": sum(entry["updates"] for entry in entries),
        "cord_pulls": pulls,
        "cord_pulls_low": low,
        "cord_pulls_high": high,
        "holds": holds,
        "held_by": dict(Counter(guard for entry in entries for guard in entry["held_by"])),
        "warned_by": dict(Counter(guard for entry in entries for guard in entry["warned"])),
        "median_score_gain": _median([entry["score_gain"] for entry in entries]),
        "median_share_of_update_time": _median([entry["guard_share"] for entry in entries]),
        "largest_statistic_over_threshold": {guard: max(peaks) for guard, peaks in sorted(by_guard.items())},
        "median_statistic_over_threshold": {
            guard: round(statistics.median(peaks), 4) for guard, peaks in sorted(by_guard.items())
        },
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 4) if known else None


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934); (0, 1) without a trial."""
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    return round(float(interval.low), 5), round(float(interval.high), 5)


def in_markdown(results: Mapping[str, Any]) -> str:
    """The section of docs/guards.md; written by the benchmark, never by hand."""
    healthy = results["healthy"]
    rows = [
        "| fault | what is wrong | guards | runs | caught | median update | bad versions published | by |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for entry in results["faults"]:
        by = ", ".join(f"`{guard}` {count}" for guard, count in list(entry["by"].items())[:GUARDS_SHOWN])
        median = "" if entry["median_updates"] is None else f"{entry['median_updates']:g}"
        rows.append(
            f"| `{entry['fault']}` | {entry['what']} | {entry['arm']} | {entry['runs']} | {entry['caught']} "
            f"| {median} | {entry['bad_versions_published']} | {by} |"
        )
    share = healthy["median_share_of_update_time"] or 0.0
    pulls = (
        f"{healthy['cord_pulls_low']:.1%} to {healthy['cord_pulls_high']:.1%} of runs, 95 % Clopper-Pearson"
    )
    paragraphs = [
        "`make bench-guards` writes this section, the plot and `benchmarks/results/guards.json`. Every run is "
        "a whole PPO run over real services, on models that the real stages trained on the built-in corpus, "
        f"one world per seed ({results['machine']}). A fault is planted by patching the source or a running "
        "object. Update 0 is before the first. A *bad version* is one that was published although its weights "
        "had been computed from faulty data; for the hackable reward model, one that the gold judge finds "
        "significantly worse than the supervised model (paired t test, p < 0.01).",
        "\n".join(rows),
        f"Healthy runs: {healthy['runs']} of varied configuration (learning rate, KL penalty, epochs, "
        "minibatches, samples per prompt, temperature, schedule, value function, whitening), "
        f"{healthy['updates']} updates. The cord was pulled in {healthy['cord_pulls']} of them ({pulls}); "
        f"guards held {healthy['holds']} in all. The guards took {share:.0%} of an update's time.",
        "![Largest statistic of each guard in healthy runs, in units of its threshold](images/guards.png)",
    ]
    return "\n\n".join(paragraphs) + "\n"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """How far every guard stayed from its threshold in healthy runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    largest = results["healthy"]["largest_statistic_over_threshold"]
    median = results["healthy"]["median_statistic_over_threshold"]
    names = sorted(largest, key=lambda name: largest[name])
    figure, axes = pyplot.subplots(figsize=(8, 0.32 * max(len(names), 4) + 1.2), layout="constrained")
    places = range(len(names))
    axes.hlines(
        places, [max(median[name], -1.2) for name in names], [largest[name] for name in names], color="0.75"
    )
    axes.plot([max(median[name], -1.2) for name in names], places, "o", color="tab:blue", label="median run")
    axes.plot([largest[name] for name in names], places, "o", color="tab:orange", label="worst run")
    axes.axvline(1.0, color="tab:red", label="threshold: alarm above")
    axes.set_yticks(list(places), names, fontsize=8)
    axes.set_xlim(-1.25, max(1.25, 1.05 * max(largest.values(), default=1.0)))
    axes.set_xlabel("largest statistic of a healthy run, in units of the threshold (cut off at -1.2)")
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
