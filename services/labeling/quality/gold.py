"""Decides how right answers are where the right answer is known.

A right answer is a ranking with ties. A ranking is right to the share of pairs of candidates that it labels
as the right ranking does; a choice of the best is right when nothing is better. So with two candidates an
answer is right or wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from services.labeling.quality.intervals import Estimate, share_of_clusters
from services.labeling.quality.rankings import levels, ranking_labels
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality.units import first_answers, labels_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldAccuracy:
    """How right answers to gold items are."""

    accuracy: Estimate  # the mean of how right each answer is; units are answers
    confusion: Mapping[tuple[str, str], int]  # (right label, given label) of pairs of candidates: how often


def share_right(answer: JudgedAnswer) -> float | None:
    """How right an answer is, 0..1; None where the right answer is unknown or the answer is a verdict."""
    expected = answer.expected_tiers
    if expected is None or answer.num_candidates < 2:
        return None
    if answer.best_index is not None:
        return float(levels(expected)[answer.best_index] == 0)
    if answer.tiers is None:
        return None
    expected_labels = ranking_labels(expected)
    same = sum(own == right for own, right in zip(ranking_labels(answer.tiers), expected_labels, strict=True))
    return same / len(expected_labels)


def gold_accuracy(
    answers: Iterable[JudgedAnswer], *, purposes: frozenset[Purpose] = frozenset({Purpose.GOLD})
) -> GoldAccuracy:
    """Accuracy and confusion over first answers to items of these purposes whose right answer is known.

    The interval takes tasks as independent.
    """
    confusion: Counter[tuple[str, str]] = Counter()
    rated: list[tuple[int, float]] = []
    for answer in first_answers(answers):
        right = share_right(answer) if answer.purpose in purposes else None
        if right is None or answer.expected_tiers is None:
            continue
        rated.append((answer.task_id, right))
        confusion.update(
            (expected, given)
            for expected, given in zip(ranking_labels(answer.expected_tiers), labels_of(answer), strict=True)
            if given is not None and expected is not None
        )
    by_task = groupby(sorted(rated), key=lambda task_and_right: task_and_right[0])
    clusters = [[right for _, right in group] for _, group in by_task]
    return GoldAccuracy(
        accuracy=share_of_clusters((math.fsum(rights), len(rights)) for rights in clusters),
        confusion=dict(confusion),
    )
