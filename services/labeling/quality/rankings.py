"""What a ranking says about pairs of candidates, and how alike two rankings are.

A pair of candidates (i, j), i < j in the task's order, gets the label FIRST when i is better, SECOND when j
is, TIE when neither. A choice of the best labels the pairs that hold the best one and leaves the others open
(None).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations

from services.labeling.quality.intervals import Estimate, mean_of_clusters
from services.labeling.quality.records import Tiers

FIRST = "first"
SECOND = "second"
TIE = "tie"

_KEPT_RANKINGS = 20_000  # all of up to 6 candidates, and what recurs of the 7 million of 9

Labels = tuple[str | None, ...]
"""One label for each unit of a task, None where the answer says nothing."""


@cache
def candidate_pairs(num_candidates: int) -> tuple[tuple[int, int], ...]:
    """The pairs (i, j), i < j: the order in which labels of pairs stand."""
    return tuple(combinations(range(num_candidates), 2))


def levels(tiers: Tiers) -> dict[int, int]:
    """The tier of each candidate; 0 is the best."""
    return {candidate: level for level, tier in enumerate(tiers) for candidate in tier}


@lru_cache(maxsize=_KEPT_RANKINGS)
def ranking_labels(tiers: Tiers) -> Labels:
    """The labels of all pairs of a ranking."""
    level = levels(tiers)
    return tuple(
        FIRST if level[i] < level[j] else SECOND if level[i] > level[j] else TIE
        for i, j in candidate_pairs(len(level))
    )


@cache
def best_labels(best_index: int, num_candidates: int) -> Labels:
    """The labels of the pairs that hold the best candidate; None for the others."""
    return tuple(
        FIRST if i == best_index else SECOND if j == best_index else None
        for i, j in candidate_pairs(num_candidates)
    )


def kendall_tau_b(one: Tiers, other: Tiers) -> float | None:
    """Kendall's tau-b (1945) of two rankings of the same candidates, ties allowed: 1 alike, -1 reversed.

    None when a ranking ties everything, for then it has no order.
    """
    directions = [_direction(ranking) for ranking in (one, other)]
    if directions[0] is None or directions[1] is None:
        return None
    product = math.fsum(a * b for a, b in zip(directions[0], directions[1], strict=True))
    return max(-1.0, min(1.0, product))  # rounding must not carry it out of range


@lru_cache(maxsize=_KEPT_RANKINGS)
def _direction(tiers: Tiers) -> tuple[float, ...] | None:
    """The ranking as a unit vector over pairs: tau-b of two rankings is the product of their vectors."""
    signs = [{FIRST: 1.0, SECOND: -1.0}.get(label or TIE, 0.0) for label in ranking_labels(tiers)]
    num_untied = sum(sign != 0 for sign in signs)
    if num_untied == 0:
        return None
    return tuple(sign / math.sqrt(num_untied) for sign in signs)


def mean_tau_b(rankings: Iterable[Mapping[str, Tiers]], *, subject: str | None = None) -> Estimate:
    """The mean tau-b over pairs of people who ranked the same task; units are pairs of rankings.

    ``rankings`` holds, per task, each person's ranking of its candidates. With a ``subject`` only pairs with
    that person count. Rankings that tie everything are left out. The interval takes tasks as independent
    (:func:`~services.labeling.quality.intervals.mean_of_clusters`). Linear in the number of rankings: the
    rankings' unit vectors are summed, not compared two by two.
    """
    clusters = []
    for by_person in rankings:
        own = _direction(by_person[subject]) if subject is not None and subject in by_person else None
        if subject is not None and own is None:
            continue
        vectors = [vector for tiers in by_person.values() if (vector := _direction(tiers)) is not None]
        if len(vectors) < 2:
            continue
        total = _sum(vectors)
        if own is not None:
            product = math.fsum(a * b for a, b in zip(own, total, strict=True))
            clusters.append((product - 1.0, len(vectors) - 1))
        else:
            num_pairs = len(vectors) * (len(vectors) - 1) // 2
            clusters.append(((math.fsum(a * a for a in total) - len(vectors)) / 2, num_pairs))
    return mean_of_clusters(clusters, lowest=-1.0, highest=1.0)


def _sum(vectors: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) for column in zip(*vectors, strict=True))
