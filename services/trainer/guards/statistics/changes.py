"""Whether a series of numbers jumped or drifts.

Each detector is a value. ``after`` takes the next number and gives the detector that has seen it;
``statistic`` is what a guard compares with its threshold; ``dataclasses.asdict`` gives what a checkpoint
needs, and the class takes it back as its arguments. A number that is infinite or none makes the statistic
infinite or none, which guards take for an alarm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

MAD_OF_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal: its third quartile

Side = Literal["rise", "fall", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustZ:
    """The distance of the newest number from the ones before, in robust standard deviations.

    z = (x - median) / max(MAD / 0.6745, floor), signed, positive for a rise (Iglewicz and Hoaglin 1993, who
    flag ``|z| > 3.5``). Median and median absolute deviation (MAD) are those of the last ``window`` numbers
    before x, so a jump does not hide itself, and up to half of the history may be outliers. ``floor`` is the
    smallest scale, in the unit of the numbers: without it the smallest change of a constant series would be
    infinitely far. Numbers that are infinite or none do not enter the history.

    The MAD of few numbers is itself noisy, which makes large z values far more frequent than a normal
    distribution has them: against 10 independent normal numbers ``|z| > 6`` comes by chance once in 200,
    against 5 once in 20. A floor of the numbers' known standard deviation makes ``|z| > 5`` rarer than once
    in 20,000.
    """

    window: int
    min_history: int  # numbers before the first statistic
    floor: float
    history: tuple[float, ...] = ()
    statistic: float | None = None  # None while the history is too short

    def __post_init__(self) -> None:
        if not 1 <= self.min_history <= self.window:
            raise ValueError(f"min_history must be in 1..window ({self.window}), is {self.min_history}")
        if not self.floor > 0:
            raise ValueError(f"floor must be positive, is {self.floor}")
        object.__setattr__(self, "history", tuple(self.history))  # a list, when it comes from JSON

    def after(self, x: float) -> Self:
        """The detector that has seen ``x`` too."""
        statistic = None
        if len(self.history) >= self.min_history:
            history = np.array(self.history)
            median = float(np.median(history))
            deviation = float(np.median(np.abs(history - median))) / MAD_OF_NORMAL
            statistic = (x - median) / max(deviation, self.floor)
        history_after = (*self.history, x)[-self.window :] if math.isfinite(x) else self.history
        return replace(self, history=history_after, statistic=statistic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cusum:
    """Cumulated sums of what exceeds the baseline: sees small shifts that last (Page 1954).

    With z = (x - mean) / deviation: rise = max(0, rise + z - reference), fall = max(0, fall - z - reference).
    ``statistic`` is the sum of the watched side, or the larger of both. The decision interval, usually called
    h, is the guard's threshold. A reference of half the shift that matters detects that shift soonest. For
    independent normal numbers of known mean and deviation, a reference of 0.5 and h = 5 alarm without a cause
    once in 465 numbers (both sides; 930 for one), and 10.4 numbers after a shift of one deviation (Lucas
    and Crosier 1982; Montgomery, Statistical Quality Control, table 9.3).

    Mean and deviation are either given or learned from the first ``learn_from`` numbers, none of which is
    tested. A learned baseline errs by chance, so false alarms come sooner than in the table.
    """

    reference: float  # deviations; usually called k
    side: Side = "both"
    learn_from: int = 0
    floor: float = 0.0  # smallest learned deviation
    mean: float | None = None
    deviation: float | None = None
    learned: tuple[float, ...] = ()
    rise: float = 0.0
    fall: float = 0.0

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("give both mean and deviation, or neither")
        if self.mean is None and (self.learn_from < 2 or not self.floor > 0):
            raise ValueError("a baseline is learned from two numbers at least, with a positive floor")
        if self.deviation is not None and not self.deviation > 0:
            raise ValueError(f"deviation must be positive, is {self.deviation}")
        object.__setattr__(self, "learned", tuple(self.learned))  # a list, when it comes from JSON

    @property
    def statistic(self) -> float:
        """Deviations, cumulated; 0 while the baseline is learned."""
        return {"rise": self.rise, "fall": self.fall, "both": max(self.rise, self.fall)}[
            self.side
        ]  # nan: both

    def after(self, x: float) -> Self:
        """The detector that has seen ``x`` too. After a number that is none its statistic stays none."""
        if self.mean is None or self.deviation is None:
            if not math.isfinite(x):
                return replace(self, rise=math.nan, fall=math.nan)
            learned = (*self.learned, x)
            if len(learned) < self.learn_from:
                return replace(self, learned=learned)
            deviation = max(float(np.std(learned, ddof=1)), self.floor)
            return replace(self, learned=(), mean=float(np.mean(learned)), deviation=deviation)
        z = (x - self.mean) / self.deviation
        if not math.isfinite(z) or math.isnan(self.rise):
            return replace(self, rise=math.nan, fall=math.nan)
        return replace(
            self,
            rise=max(0.0, self.rise + z - self.reference),
            fall=max(0.0, self.fall - z - self.reference),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageHinkley:
    """How far the cumulated sum of (x - running mean - delta) has risen from its lowest point.

    The test of Page (1954) and Hinkley (1971) for a rise of the mean, which knows no baseline: the running
    mean includes the newest number. ``delta`` is the rise per number that is let pass. For a fall give it -x.
    The limit, usually called lambda, is the guard's threshold. ``tests/unit/guards`` measures how often it
    is passed by chance.
    """

    delta: float
    count: int = 0
    mean: float = 0.0
    total: float = 0.0
    lowest: float = 0.0

    @property
    def statistic(self) -> float:
        """In the unit of the numbers; at least 0."""
        return self.total - self.lowest

    def after(self, x: float) -> Self:
        """The detector that has seen ``x`` too. After a number that is none its statistic stays none."""
        count = self.count + 1
        mean = self.mean + (x - self.mean) / count
        total = self.total + (x - mean - self.delta)
        if not math.isfinite(total):
            return replace(self, count=count, mean=math.nan, total=math.nan)
        return replace(self, count=count, mean=mean, total=total, lowest=min(self.lowest, total))
