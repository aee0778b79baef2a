"""Agreement beyond chance for any number of labels a unit: Krippendorff's alpha, nominal and ordinal.

Formulas: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". A unit with m labels gives each of
its ordered pairs of labels the weight 1 / (m - 1); units with one label do not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Generic

from services.labeling.quality.intervals import Estimate, chance_corrected, no_estimate
from services.labeling.quality.kappa import unit_counts
from services.labeling.quality.units import Label, LabelTable


class Level(StrEnum):
    """How far two different labels are apart."""

    NOMINAL = "nominal"  # different is different
    ORDINAL = "ordinal"  # by how many labels lie between them


def krippendorff_alpha(table: LabelTable[Label], *, level: Level = Level.NOMINAL) -> Estimate:
    """Krippendorff's alpha over all units with at least two labels.

    Ordinal labels are ordered by their own order (numbers). None where one label was given throughout. The
    interval takes tasks as independent and counts how a task moves the ordinal distances too.
    """
    tasks: list[list[Counter[Label]]] = []
    for by_person in table.values():
        units = [unit for unit in unit_counts(by_person.values()) if unit.total() >= 2]
        if units:
            tasks.append(units)
    num_units = sum(len(units) for units in tasks)
    counts = [_task_counts(units) for units in tasks]
    totals: Counter[Label] = Counter()
    pair_weights: dict[tuple[Label, Label], float] = {}
    for task in counts:
        totals.update(task.labels)
        for pair, weight in task.pair_weights.items():
            pair_weights[pair] = pair_weights.get(pair, 0.0) + weight
    if len(totals) < 2:
        return no_estimate(num_units)
    distances = _distances(totals, pair_weights, level)
    n = totals.total()
    # alpha = 1 - (n - 1) apart / by_chance
    apart = math.fsum(weight * distances.squared[pair] for pair, weight in pair_weights.items())
    by_chance = math.fsum(
        totals[one] * totals[other] * squared for (one, other), squared in distances.squared.items()
    )
    disagreement = (n - 1) * apart / by_chance
    # Derivatives by each label's total; the distances depend on the totals too.
    chance_slope = {
        label: distances.chance_slope[label]
        + math.fsum(
            totals[other] * distances.squared[min(label, other), max(label, other)]
            for other in totals
            if other != label
        )
        for label in totals
    }
    influences = []
    for task in counts:
        d_apart = math.fsum(weight * distances.squared[pair] for pair, weight in task.pair_weights.items())
        d_apart += math.fsum(distances.apart_slope[label] * number for label, number in task.labels.items())
        d_chance = math.fsum(chance_slope[label] * number for label, number in task.labels.items())
        influences.append(
            -((n - 1) * d_apart + task.labels.total() * apart) / by_chance
            + disagreement * d_chance / by_chance
        )
    # Squared distances grow with the square of n: the influences sum to -d alpha / d log n, not quite 0.
    centre = math.fsum(influences) / len(influences)
    widest = max(distances.squared.values())
    expected_apart = 2 * by_chance / (n * (n - 1)) / widest
    return chance_corrected(
        observed=1 - 2 * apart / n / widest,
        expected=1 - expected_apart,
        influences=[influence - centre for influence in influences],
        num_units=num_units,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskCounts(Generic[Label]):
    labels: Counter[Label]
    pair_weights: Mapping[tuple[Label, Label], float]  # by (smaller, larger) label


def _task_counts(units: list[Counter[Label]]) -> _TaskCounts[Label]:
    labels: Counter[Label] = Counter()
    pair_weights: dict[tuple[Label, Label], float] = {}
    for unit in units:
        labels.update(unit)
        for pair in combinations(sorted(unit), 2):
            weight = unit[pair[0]] * unit[pair[1]] / (unit.total() - 1)
            pair_weights[pair] = pair_weights.get(pair, 0.0) + weight
    return _TaskCounts(labels=labels, pair_weights=pair_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distances(Generic[Label]):
    squared: Mapping[tuple[Label, Label], float]  # by (smaller, larger) label
    # How the sums of weighted squared distances move with a label's total, by way of the distances:
    apart_slope: Mapping[Label, float]  # weights: the pairs found together
    chance_slope: Mapping[Label, float]  # weights: the pairs that chance would bring together


def _distances(
    totals: Counter[Label], pair_weights: Mapping[tuple[Label, Label], float], level: Level
) -> _Distances[Label]:
    ordered = sorted(totals)
    squared: dict[tuple[Label, Label], float] = {}
    apart_slope: dict[Label, float] = dict.fromkeys(ordered, 0.0)
    chance_slope: dict[Label, float] = dict.fromkeys(ordered, 0.0)
    for (low_place, low), (high_place, high) in combinations(enumerate(ordered), 2):
        if level is Level.NOMINAL:
            squared[low, high] = 1.0
            continue
        span = ordered[low_place : high_place + 1]
        distance = sum(totals[label] for label in span) - (totals[low] + totals[high]) / 2
        squared[low, high] = distance**2
        for label in span:
            slope = 2 * distance * (0.5 if label in (low, high) else 1.0)
            apart_slope[label] += pair_weights.get((low, high), 0.0) * slope
            chance_slope[label] += totals[low] * totals[high] * slope
    return _Distances(squared=squared, apart_slope=apart_slope, chance_slope=chance_slope)
