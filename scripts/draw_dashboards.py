"""Draws a Grafana dashboard's panels from series, with matplotlib: what a page of it looks like in the docs.

Knows as much of Grafana's format as the dashboards in ``deploy/k8s/components/monitoring`` use: rows, stat
and time series panels on a grid of 24 columns, legend formats, units. ``make dashboards`` gives it the series
that a real Prometheus has of a real run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

# (expression) -> series, each {"metric": labels, "values": [[time, text], ...]}
Query = Callable[[str], Sequence[Mapping[str, Any]]]

COLUMNS = 24
INCHES_PER_COLUMN, INCHES_PER_ROW = 0.62, 0.38
MOST_LEGENDS = 8  # more would cover the lines
LINES = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]


def draw(dashboard: Mapping[str, Any], query: Query, path: Path) -> None:
    """Write one picture of all panels."""
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    size = (COLUMNS * INCHES_PER_COLUMN, height * INCHES_PER_ROW + 0.5)
    figure = pyplot.figure(figsize=size, facecolor="white")
    figure.text(0.01, 1 - 0.12 / size[1], dashboard["title"], va="top", fontsize=15, weight="bold")
    for panel in panels:
        place = panel["gridPos"]
        top = 1 - (place["y"] * INCHES_PER_ROW + 0.5) / size[1]
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        if panel["type"] == "row":
            figure.text(0.01, top - 0.1 / size[1], panel["title"], va="top", fontsize=11, weight="bold")
            continue
        box = [
            left + 0.05,
            top - (place["h"] * INCHES_PER_ROW - 0.35) / size[1],
            width - 0.06,
            (place["h"] * INCHES_PER_ROW - 0.75) / size[1],
        ]
        axes = figure.add_axes((box[0], box[1], box[2], box[3]))
        axes.set_title(panel["title"], fontsize=9, loc="left")
        drawn = _draw_stat if panel["type"] == "stat" else _draw_lines
        drawn(axes, panel, query)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def legend_of(format_text: str, labels: Mapping[str, str]) -> str:
    """A legend format with its labels filled in; a label that is not there is empty, as in Grafana."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), format_text)


def in_unit(value: float, unit: str) -> str:
    """A number as Grafana shows it in a unit, near enough."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    suffix = unit.removeprefix("suffix:").strip() if unit.startswith("suffix:") else {"s": "s"}.get(unit, "")
    return f"{value:.4g} {suffix}".strip()


def _all_series(panel: Mapping[str, Any], query: Query) -> list[tuple[str, list[float], list[float]]]:
    found = []
    for target in panel["targets"]:
        for series in query(target["expr"]):
            times = [float(time) for time, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            found.append((legend_of(target["legendFormat"], series["metric"]), times, values))
    return found


def _draw_stat(axes: Axes, panel: Mapping[str, Any], query: Query) -> None:
    axes.set_axis_off()
    unit = panel["fieldConfig"]["defaults"]["unit"]
    newest = max(_all_series(panel, query), key=lambda series: series[1][-1])
    text = newest[0] if panel.get("options", {}).get("textMode") == "name" else in_unit(newest[2][-1], unit)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=15, weight="bold", color="tab:blue")


def _draw_lines(axes: Axes, panel: Mapping[str, Any], query: Query) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    series = _all_series(panel, query)
    begin = min(times[0] for _, times, _ in series)
    for number, (name, times, values) in enumerate(series):
        minutes = [(time - begin) / 60 for time in times]
        label = name if number < MOST_LEGENDS else None
        axes.plot(minutes, values, linewidth=1.2, label=label, color=LINES[(2 * number + number // 10) % 20])
    axes.tick_params(labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _position: in_unit(value, unit))
    axes.grid(color="0.92")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=6, loc="best", frameon=False)
    axes.set_xlabel("minutes", fontsize=6, labelpad=1)
