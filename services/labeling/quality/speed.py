"""Decides how long items take and which answers came too fast to have been read.

Active time counts (the page visible and not idle); answers without it, such as imported ones, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from services.labeling.quality.intervals import Estimate, median_of_values, quantile
from services.labeling.quality.records import JudgedAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRule:
    """When an answer is implausibly fast: below a floor, or below the time to skim the candidates."""

    min_s: float = 1.0  # nobody reads and decides faster
    max_chars_per_s: float = 100.0  # of all candidates together; about 1,000 words a minute, fast skimming

    def is_implausible(self, answer: JudgedAnswer) -> bool:
        """Whether the answer came faster than its candidates can be skimmed."""
        if answer.active_s is None:
            return False
        return answer.active_s < max(self.min_s, sum(answer.candidate_chars) / self.max_chars_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Active seconds an item; None where nothing was timed. Units are timed answers."""

    median_s: Estimate
    mean_s: float | None
    p10_s: float | None
    p90_s: float | None
    num_implausible: int


def speed_of(answers: Iterable[JudgedAnswer], *, rule: SpeedRule) -> Speed:
    """The time items took, repeats too. The median's interval takes answers as independent."""
    timed = [answer for answer in answers if answer.active_s is not None]
    seconds = sorted(answer.active_s for answer in timed if answer.active_s is not None)
    return Speed(
        median_s=median_of_values(seconds),
        mean_s=math.fsum(seconds) / len(seconds) if seconds else None,
        p10_s=quantile(seconds, 0.1) if seconds else None,
        p90_s=quantile(seconds, 0.9) if seconds else None,
        num_implausible=sum(rule.is_implausible(answer) for answer in timed),
    )
