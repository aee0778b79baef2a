"""Agreement beyond chance for labels without an order: Cohen's kappa of two people, Fleiss' of many.

Both read a :data:`~services.labeling.quality.units.LabelTable`; a tie is a label like the others. Work grows
with the pairs of people who share a task (Cohen) or with the labels (Fleiss), never with the square of the
answers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product

from services.labeling.quality.intervals import Estimate, chance_corrected, no_estimate, share_of_clusters
from services.labeling.quality.units import Label, LabelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAgreement:
    """How far two people agree; units are those both labeled."""

    a: str  # a < b
    b: str
    agreement: Estimate
    cohen_kappa: Estimate


def pair_agreements(table: LabelTable[Label]) -> tuple[PairAgreement, ...]:
    """Agreement and Cohen's kappa (1960) of all pairs of people with at least one unit in common, by name.

    Intervals take tasks as independent. Kappa is None where both gave one and the same label throughout. A
    thousand people who all share tasks make half a million pairs: ask for this only where somebody reads it.
    """
    # Pairs with little in common are many and often look the same.
    known: dict[frozenset[tuple[tuple[tuple[Label, Label], ...], int]], tuple[Estimate, Estimate]] = {}
    pairs = []
    for (a, b), patterns in sorted(_shared_tasks(table).items()):
        key = frozenset(patterns.items())
        if key not in known:
            known[key] = _observed_agreement(patterns), _cohen_kappa(patterns)
        agreement, cohen_kappa = known[key]
        pairs.append(PairAgreement(a=a, b=b, agreement=agreement, cohen_kappa=cohen_kappa))
    return tuple(pairs)


_Patterns = Counter[tuple[tuple[Label, Label], ...]]
"""How many tasks gave these (label of a, label of b) to their units."""


def _shared_tasks(table: LabelTable[Label]) -> dict[tuple[str, str], _Patterns[Label]]:
    # People of one task who labeled it alike are treated together, and tasks on which a pair gave the same
    # labels are counted, not kept: Counter.update over products of names is the inner loop and runs in C.
    counts: defaultdict[tuple[tuple[Label, Label], ...], Counter[tuple[str, str]]] = defaultdict(Counter)
    for by_person in table.values():
        alike: dict[tuple[Label | None, ...], list[str]] = {}
        for person in sorted(by_person):
            alike.setdefault(by_person[person], []).append(person)
        groups = list(alike.items())
        for place, (labels, people) in enumerate(groups):
            if cells := _cells(labels, labels):
                counts[cells].update(combinations(people, 2))
            for other_labels, others in groups[place + 1 :]:
                if cells := _cells(labels, other_labels):
                    counts[cells].update(product(people, others))
    shared: defaultdict[tuple[str, str], _Patterns[Label]] = defaultdict(Counter)
    for cells, number_by_pair in counts.items():
        turned = tuple((second, first) for first, second in cells)
        for (one, other), number in number_by_pair.items():
            if one < other:
                shared[one, other][cells] += number
            else:
                shared[other, one][turned] += number
    return shared


def _cells(
    labels: tuple[Label | None, ...], others: tuple[Label | None, ...]
) -> tuple[tuple[Label, Label], ...]:
    return tuple(
        (one, other)
        for one, other in zip(labels, others, strict=True)
        if one is not None and other is not None
    )


def _observed_agreement(patterns: _Patterns[Label]) -> Estimate:
    return share_of_clusters(
        cluster
        for cells, number in patterns.items()
        for cluster in [(sum(one == other for one, other in cells), len(cells))] * number
    )


def _cohen_kappa(patterns: _Patterns[Label]) -> Estimate:
    confusion: Counter[tuple[Label, Label]] = Counter()
    for cells, number in patterns.items():
        for cell in cells:
            confusion[cell] += number
    num_units = confusion.total()
    rows: Counter[Label] = Counter()
    columns: Counter[Label] = Counter()
    for (one, other), number in confusion.items():
        rows[one] += number
        columns[other] += number
    observed = sum(number for (one, other), number in confusion.items() if one == other) / num_units
    expected = sum(number * columns[label] for label, number in rows.items()) / num_units**2
    if 1 - expected < 1e-12:
        return no_estimate(num_units)
    disagreement = (1 - observed) / (1 - expected)  # 1 - kappa
    # d kappa = (d observed - (1 - kappa) d expected) / (1 - expected), for one unit's share of the weight
    influence = {
        (one, other): (
            (one == other)
            - observed
            - disagreement * ((columns[one] + rows[other]) / num_units - 2 * expected)
        )
        / ((1 - expected) * num_units)
        for one, other in confusion
    }
    influences = [
        value
        for cells, number in patterns.items()
        for value in [math.fsum(influence[cell] for cell in cells)] * number
    ]
    return chance_corrected(observed=observed, expected=expected, influences=influences, num_units=num_units)


def fleiss_kappa(table: LabelTable[Label]) -> Estimate:
    """Fleiss' kappa (1971) over the units that have the number of labels which most units have.

    Units with fewer than two labels do not count; of equally frequent numbers of labels the larger is taken.
    None where one label was given throughout. The interval takes tasks as independent.
    """
    tasks = [unit_counts(by_person.values()) for by_person in table.values()]
    sizes = Counter(size for units in tasks for unit in units if (size := unit.total()) >= 2)
    if not sizes:
        return no_estimate()
    raters = max(sizes, key=lambda size: (sizes[size], size))
    kept = [units for task in tasks if (units := [unit for unit in task if unit.total() == raters])]
    num_units = sizes[raters]
    totals: Counter[Label] = Counter()
    for units in kept:
        for unit in units:
            totals.update(unit)
    shares = {label: number / (num_units * raters) for label, number in totals.items()}
    same_pairs = sum(number * (number - 1) for units in kept for unit in units for number in unit.values())
    observed = same_pairs / (num_units * raters * (raters - 1))
    expected = math.fsum(share * share for share in shares.values())
    if 1 - expected < 1e-12:
        return no_estimate(num_units)
    disagreement = (1 - observed) / (1 - expected)
    scale = (1 - expected) * num_units
    influences = []
    for units in kept:
        total = 0.0
        for unit in units:
            own = sum(number * (number - 1) for number in unit.values()) / (raters * (raters - 1))
            by_chance = sum(shares[label] * number for label, number in unit.items()) / raters
            total += own - observed - disagreement * 2 * (by_chance - expected)
        influences.append(total / scale)
    return chance_corrected(observed=observed, expected=expected, influences=influences, num_units=num_units)


def unit_counts(labels_by_person: Iterable[tuple[Label | None, ...]]) -> list[Counter[Label]]:
    """For each unit of one task, how often each label was given."""
    return [
        Counter(label for label in column if label is not None)
        for column in zip(*labels_by_person, strict=True)
    ]
