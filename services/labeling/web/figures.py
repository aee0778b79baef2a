"""How figures are written for people: percentages, coefficients, seconds, each with its 95 % interval.

Pages register these as filters of their templates. A figure that does not exist is a dash, never a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.labeling.quality.intervals import Estimate

NOTHING = "\u2013"
_NARROW_SPACE = "\u202f"
_DASH = "\u2013"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{_NARROW_SPACE}%"


def coefficient(value: float | None, digits: int = 2) -> str:
    """A chance-corrected or rank coefficient, -1..1, with a true minus sign."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def seconds(value: float | None) -> str:
    """A time an item took, in its own unit."""
    if value is None:
        return NOTHING
    if value < 99.95:
        return f"{value:.1f}{_NARROW_SPACE}s"
    minutes = value / 60
    return f"{minutes:.1f}{_NARROW_SPACE}min" if minutes < 99.95 else hours(value / 3600)


def hours(value: float | None) -> str:
    """A span of hours or days."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{max(1, round(value * 60)) if value > 0 else 0}{_NARROW_SPACE}min"
    return f"{value:.1f}{_NARROW_SPACE}h" if value < 48 else f"{value / 24:.1f}{_NARROW_SPACE}days"


def count(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}"


def rate(value: float) -> str:
    """So many an hour."""
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def percent_interval(estimate: Estimate) -> str:
    """The ends of a share's interval."""
    if estimate.low is None or estimate.high is None:
        return NOTHING
    return f"{100 * estimate.low:.1f}{_DASH}{100 * estimate.high:.1f}{_NARROW_SPACE}%"


def coefficient_interval(estimate: Estimate) -> str:
    """The ends of a coefficient's interval."""
    if estimate.low is None or estimate.high is None:
        return NOTHING
    return f"{coefficient(estimate.low)} to {coefficient(estimate.high)}"


def seconds_interval(estimate: Estimate) -> str:
    """The ends of a median's interval."""
    if estimate.low is None or estimate.high is None:
        return NOTHING
    return f"{seconds(estimate.low)}{_DASH}{seconds(estimate.high)}"


def probability(value: float | None) -> str:
    """A p-value."""
    if value is None:
        return NOTHING
    return "<\u202f0.001" if value < 0.001 else f"{value:.3f}"


def ago(then_us: int, now_us: int) -> str:
    """How long something is over."""
    span_s = max(0, now_us - then_us) / 1e6
    if span_s < 60:
        return "just now"
    if span_s < 3600:
        return f"{span_s // 60:.0f}{_NARROW_SPACE}min ago"
    if span_s < 48 * 3600:
        return f"{span_s // 3600:.0f}{_NARROW_SPACE}h ago"
    return f"{span_s // 86400:.0f}{_NARROW_SPACE}days ago"


def excerpt(text: str, max_chars: int = 120) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * max_chars].split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "\u2026"


FILTERS: Mapping[str, Callable[..., str]] = {
    "percent": percent,
    "coefficient": coefficient,
    "seconds": seconds,
    "hours": hours,
    "count": count,
    "rate": rate,
    "percent_interval": percent_interval,
    "coefficient_interval": coefficient_interval,
    "seconds_interval": seconds_interval,
    "probability": probability,
    "ago": ago,
    "excerpt": excerpt,
}
