"""Puts finished runs together: benchmarks/results/guards.json, the section of docs/guards.md and its plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.guards.plan import ALL_GUARDS, NO_PREFLIGHT, NUM_WORLDS, PlannedRun

MARK = "## Measured\n"
PLOT = Path("docs/images/guards.png")
GUARDS_SHOWN = 4  # per fault, in the table
FURTHEST_DRAWN = -1.2  # thresholds below zero; a statistic further from alarm says no more

Line = Mapping[str, Any]


def write_report(lines: Mapping[str, Line], runs: Sequence[PlannedRun], *, root: Path) -> None:
    """From the finished lines among the planned runs."""
    results = summarize(lines, runs)
    path = root / "benchmarks" / "results" / "guards.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, root / PLOT)
    document = root / "docs" / "guards.md"
    before, _, _ = document.read_text(encoding="utf-8").partition(MARK)
    document.write_text(before + MARK + "\n" + in_markdown(results), encoding="utf-8")


def summarize(lines: Mapping[str, Line], runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """What the runs say, as JSON values."""
    finished = [(run, lines[run.key]) for run in runs if run.key in lines]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread per run",
        "faults": _faults([item for item in finished if item[0].guards == ALL_GUARDS]),
        "without_preflight": _faults([item for item in finished if item[0].guards == NO_PREFLIGHT]),
        "healthy": _healthy([(run, line) for run, line in finished if run.fault is None]),
    }


def _faults(finished: Iterable[tuple[PlannedRun, Line]]) -> list[dict[str, Any]]:
    groups: dict[str, list[Line]] = {}
    what: dict[str, str] = {}
    for run, line in finished:
        if run.fault is not None:
            groups.setdefault(run.fault.name, []).append(line)
            what[run.fault.name] = run.fault.what
    return [_fault(name, what[name], entries) for name, entries in groups.items()]


def _fault(name: str, what: str, entries: Sequence[Line]) -> dict[str, Any]:
    caught = [entry for entry in entries if entry["held_by"]]
    by = Counter(guard for entry in caught for guard in sorted(set(entry["held_by"])))
    return {
        "fault": name,
        "what": what,
        "runs": len(entries),
        "caught": len(caught),
        # Faulty updates until the alarm, the one that raised it included; 0 is before the first.
        "median_updates": statistics.median(_updates_to_alarm(entry) for entry in caught) if caught else None,
        "updates": [_updates_to_alarm(entry) for entry in caught],
        "bad_versions_published": sum(entry["bad_published"] for entry in entries),
        "by": dict(sorted(by.items(), key=lambda item: (-item[1], item[0]))),
        **({"gold": [entry["gold"] for entry in entries]} if any(entry["gold"] for entry in entries) else {}),
    }


def _updates_to_alarm(entry: Line) -> int:
    return int(max(entry["at_update"] - entry["planted_after"], 0))


def _healthy(finished: Sequence[tuple[PlannedRun, Line]]) -> dict[str, Any]:
    entries = [line for _, line in finished]
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
        "low": low,  # of the share of runs that pull the cord, 95 % Clopper-Pearson
        "high": high,
        "holds": holds,  # of any kind, cord pulls included
        "held_by": dict(Counter(guard for entry in entries for guard in entry["held_by"])),
        "warned_by": dict(Counter(guard for entry in entries for guard in entry["warned"])),
        "score_rose": sum((entry["score_gain"] or 0) > 0 for entry in entries),
        "median_score_gain": _median([entry["score_gain"] for entry in entries]),
        "median_guard_share_of_update_time": _median([entry["guard_share"] for entry in entries]),
        "largest_statistic_over_threshold": {guard: max(peaks) for guard, peaks in sorted(by_guard.items())},
        "median_statistic_over_threshold": {
            guard: round(statistics.median(peaks), 4) for guard, peaks in sorted(by_guard.items())
        },
        "each": [
            {
                "run": run.key,
                "config": dict(run.config),
                "updates": line["updates"],
                "held_by": line["held_by"],
                "score_gain": line["score_gain"],
                "statistic_over_threshold": line["peaks"],
            }
            for run, line in finished
        ],
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
    share = healthy["median_guard_share_of_update_time"] or 0.0
    held = f" (by {_counts(healthy['held_by'])})" if healthy["held_by"] else ""
    warned = _counts(healthy["warned_by"]) or "none"
    paragraphs = [
        "`make bench-guards` writes this section, the plot and `benchmarks/results/guards.json`. Every run "
        "is a whole PPO run over real services, on models that the real stages trained on the built-in "
        f"corpus: five seeds on {NUM_WORLDS} trained worlds ({results['machine']}). A fault is planted by "
        "patching the source or a running object. *Updates* counts from the planting to the alarm; 0 is "
        "before the first. A *bad version* is one that was published although its weights had been computed "
        "from faulty data; for the hackable reward model, one that the gold judge finds significantly worse "
        "than the supervised model (paired t test over 120 documents, p < 0.01). A name in capitals is an "
        "error that ended the run: `PEER_LOST` here means that the sampler refused weights whose checksum "
        "was wrong.",
        "Guards as configured by default, with held-out comparisons for pre-flight and a witness:",
        _table(results["faults"]),
        *_not_mastered(results["faults"]),
        "The same faults with pre-flight off, to see what the guards of an update do alone. A model that "
        "is wrong from the start and stays as it is gives them nothing to compare with: that only pre-flight "
        "sees, or the witness and people in time.",
        _short_table(results["without_preflight"]),
        f"Healthy runs: {healthy['runs']} of varied configuration (learning rate, KL penalty, epochs, "
        "minibatches, batch, samples per prompt, temperature, schedule, value function, whitening), "
        f"{healthy['updates']} updates; the mean score rose in {healthy['score_rose']}. The cord was pulled "
        f"in {healthy['cord_pulls']} of them ({healthy['low']:.1%} to {healthy['high']:.1%} of runs, 95 % "
        f"Clopper-Pearson); {healthy['holds']} were held in all{held}. Warnings: {warned}. "
        f"Guards took {share:.0%} of an update's time with these tiny models.",
        "Thresholds were set while looking at runs with the same faults and with other healthy "
        "configurations; the healthy ones here were drawn afterwards. The models are tiny; their posts, "
        "people and judge are simulated: how rare a false alarm is elsewhere this does not show.",
        "![When each fault raises an alarm, and how far healthy runs stay from each guard's threshold]"
        f"({PLOT.relative_to('docs')})",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _counts(by: Mapping[str, int]) -> str:
    return ", ".join(f"`{guard}` {count}" for guard, count in by.items())


def _table(faults: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| fault | what is wrong | runs | caught | median updates | bad versions published | by |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for entry in faults:
        by = _counts(dict(list(entry["by"].items())[:GUARDS_SHOWN]))
        median = "" if entry["median_updates"] is None else f"{entry['median_updates']:g}"
        rows.append(
            f"| `{entry['fault']}` | {entry['what']} | {entry['runs']} | {entry['caught']} "
            f"| {median} | {entry['bad_versions_published']} | {by} |"
        )
    return "\n".join(rows)


def _not_mastered(faults: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [
        f"`{fault['fault']}` ({fault['caught']} of {fault['runs']} caught, {fault['bad_versions_published']} "
        "bad versions)"
        for fault in faults
        if fault["caught"] < fault["runs"] or fault["bad_versions_published"] > 0
    ]
    if not names:
        return []
    return [f"Not mastered: {', '.join(names)}. There the guards came too late or not at all."]


def _short_table(faults: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| fault | runs | caught | median updates | bad versions published | by |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for entry in faults:
        median = "" if entry["median_updates"] is None else f"{entry['median_updates']:g}"
        rows.append(
            f"| `{entry['fault']}` | {entry['runs']} | {entry['caught']} | {median} "
            f"| {entry['bad_versions_published']} | {_counts(entry['by'])} |"
        )
    return "\n".join(rows)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """When each fault was seen, and how far every guard stayed from its threshold in healthy runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    faults = {entry["fault"]: entry for entry in results["faults"]}
    largest = results["healthy"]["largest_statistic_over_threshold"]
    rows = max(len(faults), len(largest), 4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 0.29 * rows + 1.4), layout="constrained")
    _draw_faults(left, list(faults), results)
    _draw_healthy(right, results["healthy"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_faults(axes: Any, names: Sequence[str], results: Mapping[str, Any]) -> None:
    """One dot per run, side by side where several runs raised the alarm after as many updates."""
    for arm, label, colour, offset in (
        ("faults", "all guards", "tab:blue", -0.16),
        ("without_preflight", "pre-flight off", "tab:orange", 0.16),
    ):
        dots = [
            (updates + 0.09 * number, names.index(entry["fault"]) + offset)
            for entry in results[arm]
            for updates, count in sorted(Counter(entry["updates"]).items())
            for number in range(count)
        ]
        axes.plot(
            [dot[0] for dot in dots],
            [dot[1] for dot in dots],
            linestyle="",
            marker="o",
            markersize=4,
            color=colour,
            label=label,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_title("planted faults", fontsize=10)
    axes.set_xlabel("updates from the planting to the alarm; one dot per run, 0 is before the first")
    axes.legend(loc="lower right", fontsize=8)


def _draw_healthy(axes: Any, healthy: Mapping[str, Any]) -> None:
    largest = healthy["largest_statistic_over_threshold"]
    median = healthy["median_statistic_over_threshold"]
    names = sorted(largest, key=lambda name: largest[name])
    places = range(len(names))
    middle = [max(median[name], FURTHEST_DRAWN) for name in names]
    worst = [max(largest[name], FURTHEST_DRAWN) for name in names]
    axes.hlines(places, middle, worst, color="0.75")
    axes.plot(middle, places, "o", markersize=4, color="tab:blue", label="median run")
    axes.plot(worst, places, "o", markersize=4, color="tab:orange", label="worst run")
    axes.axvline(1.0, color="tab:red", label="threshold: alarm above")
    axes.set_yticks(list(places), names, fontsize=8)
    axes.set_xlim(FURTHEST_DRAWN - 0.05, max(1.25, 1.05 * max(worst, default=1.0)))
    axes.set_title(f"{healthy['runs']} healthy runs", fontsize=10)
    axes.set_xlabel(f"a run's largest statistic, in thresholds (cut off at {FURTHEST_DRAWN})")
    axes.legend(loc="lower right", fontsize=8)
