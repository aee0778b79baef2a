"""What the statistics know of an answer.

The store's side builds these; everything else in this package reads them. They hold what the figures need and
no text, so that a million of them fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Tiers = tuple[tuple[int, ...], ...]
"""A ranking: candidates in the task's order, best tier first; candidates of one tier are equally good."""


class Purpose(StrEnum):
    """What the answers to a task are for."""

    ORDINARY = "ordinary"  # data
    CALIBRATION = "calibration"  # everybody answers it, researchers too
    DRIFT = "drift"  # a supervised sample against the reference
    GOLD = "gold"  # the right answer is known
    TRAINING = "training"  # onboarding with feedback
    SCREENING = "screening"  # onboarding without feedback


ONBOARDING = frozenset({Purpose.TRAINING, Purpose.SCREENING})
"""Answers of people who are still learning: no measure of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """One answer that stands (not superseded), in the task's order of candidates.

    Exactly one of ``tiers``, ``best_index`` and ``verdict`` is set.
    """

    comparison_id: int
    task_id: int
    labeler_id: str
    is_researcher: bool
    tiers: Tiers | None  # all candidates ranked
    best_index: int | None  # the best; nothing is said about the others
    verdict: bool | None  # yes or no to one candidate
    num_candidates: int
    shown_order: tuple[int, ...]  # candidate shown_order[i] stood at place i
    candidate_chars: tuple[int, ...]  # per candidate, the length of its text
    candidate_sources: tuple[str, ...]  # per candidate: "policy", "reference", "supervised", ...
    purpose: Purpose
    round: int  # 0 the first answer of this labeler to this task, 1 and more planned repeats
    expected_tiers: Tiers | None  # the right answer, where it is known
    answer_us: int  # when, in microseconds since 1970
    active_s: float | None  # how long the page was visible and not idle
    confidence: int | None

    def __post_init__(self) -> None:
        decisions = (self.tiers, self.best_index, self.verdict)
        if sum(decision is not None for decision in decisions) != 1:
            raise ValueError(f"answer {self.comparison_id}: exactly one of tiers, best_index and verdict")
        if self.tiers is not None:
            _check_covers("tiers", self.tiers, self)
        if self.expected_tiers is not None:
            _check_covers("expected_tiers", self.expected_tiers, self)
        if self.best_index is not None and not 0 <= self.best_index < self.num_candidates:
            raise ValueError(f"answer {self.comparison_id}: best_index {self.best_index} is no candidate")


def _check_covers(name: str, tiers: Tiers, answer: JudgedAnswer) -> None:
    ranked = sorted(index for tier in tiers for index in tier)
    if ranked != list(range(answer.num_candidates)):
        raise ValueError(
            f"answer {answer.comparison_id}: {name} {tiers} "
            f"do not hold each of {answer.num_candidates} candidates once"
        )
