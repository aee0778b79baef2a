"""Decides whether a new labeler is admitted: the screening's answers against the researcher's thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.labeling.quality.gold import share_right
from services.labeling.quality.records import JudgedAnswer, Purpose


class Outcome(StrEnum):
    """What the screening says."""

    ADMITTED = "admitted"
    MAY_RETRY = "may_retry"  # failed, attempts are left
    FAILED = "failed"  # failed, and no attempt is left


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionThresholds:
    """What the researcher asks of a new labeler."""

    min_share_right: float  # 0..1
    max_mean_s: float | None  # active seconds an item; None is no limit
    max_attempts: int  # at least 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_share_right <= 1:
            raise ValueError(f"min_share_right {self.min_share_right} is outside 0..1")
        if self.max_mean_s is not None and self.max_mean_s <= 0:
            raise ValueError(f"max_mean_s {self.max_mean_s} is not positive")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts {self.max_attempts} is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The decision with its numbers, so that it can be explained to the labeler."""

    outcome: Outcome
    share_right: float
    right_enough: bool
    mean_s: float | None  # None when nothing was timed
    fast_enough: bool
    num_items: int
    attempts_left: int


def decide_admission(
    answers: Sequence[JudgedAnswer], *, thresholds: AdmissionThresholds, attempt: int
) -> Admission:
    """Judge one complete attempt at the screening; ``attempt`` counts from 1.

    ``answers`` are this attempt's, one for each item. How right an answer is says
    :func:`~services.labeling.quality.gold.share_right`; all items weigh the same. When there is a limit of
    time, an untimed answer counts as too slow, or reporting no time would be a way around it: where a page
    without JavaScript reports none, give the time since it was served. Raises ValueError without answers, on
    answers that are not to screening items with a right answer, on two answers to one task, and on an attempt
    below 1.
    """
    if not answers or attempt < 1:
        raise ValueError(f"{len(answers)} answers in attempt {attempt}")
    if len({answer.task_id for answer in answers}) != len(answers):
        raise ValueError("two answers to one screening item")
    rights = []
    for answer in answers:
        right = share_right(answer)
        if answer.purpose is not Purpose.SCREENING or right is None:
            raise ValueError(f"answer {answer.comparison_id} is not to a screening item with a right answer")
        rights.append(right)
    share = math.fsum(rights) / len(rights)
    seconds = [answer.active_s for answer in answers if answer.active_s is not None]
    mean_s = math.fsum(seconds) / len(seconds) if seconds else None
    right_enough = share >= thresholds.min_share_right - 1e-12  # 0.7 of 10 items is 7 items
    fast_enough = thresholds.max_mean_s is None or (
        len(seconds) == len(answers) and mean_s is not None and mean_s <= thresholds.max_mean_s
    )
    attempts_left = max(0, thresholds.max_attempts - attempt)
    if right_enough and fast_enough:
        outcome = Outcome.ADMITTED
    else:
        outcome = Outcome.MAY_RETRY if attempts_left else Outcome.FAILED
    return Admission(
        outcome=outcome,
        share_right=share,
        right_enough=right_enough,
        mean_s=mean_s,
        fast_enough=fast_enough,
        num_items=len(answers),
        attempts_left=attempts_left,
    )
