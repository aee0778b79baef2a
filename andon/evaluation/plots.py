"""Draws the report's figures as SVG text, to stand inside one page that needs no network."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display is needed or wanted

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from andon.evaluation.summary import Curve
from andon.evaluation.win_rate import WinRate

INK = "#1d2733"
BLUE = "#1f6fb2"
ORANGE = "#c8641b"
_STYLE: Any = {  # Any: matplotlib types the keys as one enormous literal
    "svg.fonttype": "none",  # text stays text: searchable and small
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e3e7eb",
    "svg.hashsalt": "andon",  # the same data give the same bytes
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small plot: lines of metrics that share a unit."""

    title: str
    unit: str
    metrics: Sequence[str]  # names in Curve.metrics; those that a curve lacks are left out
    percent: bool = False


def curve_panels(curve: Curve, panels: Sequence[Panel]) -> str | None:
    """The panels that the curve has data for, three in a row, as SVG; None when it has none."""
    drawable = [panel for panel in panels if any(name in curve.metrics for name in panel.metrics)]
    if not drawable:
        return None
    columns = min(3, len(drawable))
    rows = math.ceil(len(drawable) / columns)
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.4 * rows), squeeze=False)
        axes = [axis for line in grid for axis in line]
        for axis, panel in zip(axes, drawable, strict=False):
            _draw_panel(axis, curve, panel)
        for axis in axes[len(drawable) :]:
            axis.set_visible(False)
        figure.tight_layout()
        return _svg(figure)


def win_rate_bars(win_rates: Sequence[WinRate]) -> str:
    """Win rates as points with 95 % intervals and a line at one half, as SVG."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(win_rates) + 0.9))
        places = range(len(win_rates))
        for place, item in zip(places, win_rates, strict=True):
            colour = BLUE if item.judge == win_rates[0].judge else ORANGE
            axis.plot([item.low * 100, item.high * 100], [place, place], color=colour, linewidth=2)
            axis.plot(item.rate * 100, place, "o", color=colour)
        axis.axvline(50, color=INK, linewidth=0.8, linestyle=":")
        axis.set_yticks(
            list(places), [f"{item.policy} against {item.against}, {item.judge}" for item in win_rates]
        )
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_xlabel("win rate, %")
        figure.tight_layout()
        return _svg(figure)


def _draw_panel(axis: Axes, curve: Curve, panel: Panel) -> None:
    colours = (BLUE, ORANGE, "#5a7d2a", "#8a3ea8")
    names = [name for name in panel.metrics if name in curve.metrics]
    for name, colour in zip(names, colours, strict=False):
        points = [
            (step, value * 100 if panel.percent else value)
            for step, value in zip(curve.steps, curve.metrics[name], strict=True)
            if math.isfinite(value)
        ]
        axis.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=colour,
            linewidth=1.4,
            marker="." if len(points) < 40 else None,
            label=name,
        )
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.set_ylabel("%" if panel.percent else panel.unit)
    if len(names) > 1:
        axis.legend(fontsize=7, frameon=False)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
