"""Where the marks of small charts stand: pure geometry, in units of the drawing's own view box.

Templates draw it as SVG with attributes, which needs no styles inside the page. Each mark has its words, so
that the chart can be read aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.labeling.quality.intervals import Estimate

BAR_WIDTH = 120.0
BAR_HEIGHT = 18.0
_BAR_MARGIN = 5.0

CHART_WIDTH = 420.0
CHART_HEIGHT = 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 26.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalBar:
    """A figure with its interval on one line."""

    x: float
    low_x: float
    high_x: float
    known_x: tuple[float, ...]  # what others report


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One figure of a series."""

    x: float
    y: float
    low_y: float | None
    high_y: float | None
    words: str  # what it says, for a tooltip and for reading aloud


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis with its words."""

    at: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesChart:
    """Figures over time with their intervals."""

    marks: tuple[Mark, ...]
    line: str  # the marks' places as SVG writes them
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a series has at one time."""

    label: str  # of the time
    estimate: Estimate


def interval_bar(
    estimate: Estimate, *, low: float = 0.0, high: float = 1.0, known: Sequence[float] = ()
) -> IntervalBar | None:
    """A figure between ``low`` and ``high``; None where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None

    def place(value: float) -> float:
        share = (min(high, max(low, value)) - low) / (high - low)
        return round(_BAR_MARGIN + share * (BAR_WIDTH - 2 * _BAR_MARGIN), 1)

    return IntervalBar(
        x=place(estimate.value),
        low_x=place(estimate.low),
        high_x=place(estimate.high),
        known_x=tuple(place(value) for value in known),
    )


def series_chart(
    points: Sequence[Point],
    *,
    write: Callable[[float], str],
    low: float = 0.0,
    high: float | None = None,
) -> SeriesChart | None:
    """A series from left to right, evenly spaced; ``high`` None takes the largest figure.

    Points without a figure leave a gap. None where fewer than two have one.
    """
    shown = [(index, point) for index, point in enumerate(points) if point.estimate.value is not None]
    if len(shown) < 2:
        return None
    ends = [
        value
        for _, point in shown
        for value in (point.estimate.value, point.estimate.high)
        if value is not None
    ]
    top = high if high is not None else max(max(ends), low + 1e-9)

    def x_of(index: int) -> float:
        return round(_LEFT + (CHART_WIDTH - _LEFT - _RIGHT) * (index + 0.5) / len(points), 1)

    def y_of(value: float) -> float:
        share = (min(top, max(low, value)) - low) / (top - low)
        return round(CHART_HEIGHT - _BOTTOM - share * (CHART_HEIGHT - _TOP - _BOTTOM), 1)

    marks = tuple(_mark(point, x=x_of(index), y_of=y_of, write=write) for index, point in shown)
    named = {0, len(points) - 1} if len(points) > 6 else set(range(len(points)))
    if len(points) > 6:
        named.add((len(points) - 1) // 2)
    return SeriesChart(
        marks=marks,
        line=" ".join(f"{mark.x},{mark.y}" for mark in marks),
        y_ticks=tuple(Tick(at=y_of(value), words=write(value)) for value in (low, (low + top) / 2, top)),
        x_ticks=tuple(Tick(at=x_of(index), words=points[index].label) for index in sorted(named)),
    )


def _mark(point: Point, *, x: float, y_of: Callable[[float], float], write: Callable[[float], str]) -> Mark:
    estimate = point.estimate
    if estimate.value is None:
        raise ValueError("a mark needs a figure")
    words = f"{point.label}: {write(estimate.value)}"
    if estimate.low is not None and estimate.high is not None:
        words += f", 95 % interval {write(estimate.low)} to {write(estimate.high)}"
    return Mark(
        x=x,
        y=y_of(estimate.value),
        low_y=None if estimate.low is None else y_of(estimate.low),
        high_y=None if estimate.high is None else y_of(estimate.high),
        words=f"{words} (n = {estimate.num_units:,})",
    )
