"""Decides how often people say the same: labelers among each other, with researchers, with the majority.

Reads a :data:`~services.labeling.quality.units.LabelTable`. All sums are built from how often each label was
given to a unit, so work grows with the number of labels, never with its square, also on items that everybody
answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from services.labeling.quality.intervals import Estimate, share_of_clusters
from services.labeling.quality.kappa import unit_counts
from services.labeling.quality.units import Label, LabelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLabels:
    """What one person's labels of one task met: of so many other labels, so many were the same."""

    with_labelers: int
    same_as_labelers: int
    with_researchers: int
    same_as_researchers: int
    with_majority: int  # units on which the others have a majority
    same_as_majority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementShares:
    """Shares of pairs of labels on one unit that are the same; units are such pairs."""

    labeler_labeler: Estimate
    labeler_researcher: Estimate
    researcher_researcher: Estimate
    labeler_majority: Estimate  # units are a labeler's labels of units on which the others have a majority


def shared_labels(
    table: LabelTable[Label], *, researchers: Collection[str]
) -> dict[int, dict[str, SharedLabels]]:
    """For each task and person, how their labels meet those of the others.

    The majority of the others is the label given most often by all other people, researchers too; a unit
    counts when at least two others labeled it and no other label was given as often.
    """
    return {task: _shared_labels_of_task(by_person, researchers) for task, by_person in table.items()}


def agreement_shares(
    shared: dict[int, dict[str, SharedLabels]], *, researchers: Collection[str]
) -> AgreementShares:
    """The pooled shares over all people. Intervals take tasks as independent."""
    tasks = [
        (
            [labels for person, labels in by_person.items() if person not in researchers],
            [labels for person, labels in by_person.items() if person in researchers],
        )
        for by_person in shared.values()
    ]
    # Among equals every pair is met from both sides.
    return AgreementShares(
        labeler_labeler=share_of_clusters(
            (sum(x.same_as_labelers for x in labelers) // 2, sum(x.with_labelers for x in labelers) // 2)
            for labelers, _ in tasks
        ),
        labeler_researcher=with_researchers(labelers for labelers, _ in tasks),
        researcher_researcher=share_of_clusters(
            (sum(x.same_as_researchers for x in own) // 2, sum(x.with_researchers for x in own) // 2)
            for _, own in tasks
        ),
        labeler_majority=with_majority(labelers for labelers, _ in tasks),
    )


def with_labelers(tasks: Iterable[Collection[SharedLabels]]) -> Estimate:
    """The share of met labels of labelers that are the same; one collection for each task."""
    return share_of_clusters(
        (sum(x.same_as_labelers for x in task), sum(x.with_labelers for x in task)) for task in tasks
    )


def with_researchers(tasks: Iterable[Collection[SharedLabels]]) -> Estimate:
    """The share of met labels of researchers that are the same; one collection for each task."""
    return share_of_clusters(
        (sum(x.same_as_researchers for x in task), sum(x.with_researchers for x in task)) for task in tasks
    )


def with_majority(tasks: Iterable[Collection[SharedLabels]]) -> Estimate:
    """The share of units on which the majority of the others is met; one collection for each task."""
    return share_of_clusters(
        (sum(x.same_as_majority for x in task), sum(x.with_majority for x in task)) for task in tasks
    )


def _shared_labels_of_task(
    by_person: Mapping[str, tuple[Label | None, ...]], researchers: Collection[str]
) -> dict[str, SharedLabels]:
    of_labelers = unit_counts(labels for person, labels in by_person.items() if person not in researchers)
    of_researchers = unit_counts(labels for person, labels in by_person.items() if person in researchers)
    num_units = max(len(of_labelers), len(of_researchers))
    # Where one side is empty its units are, too.
    of_labelers = of_labelers or [Counter() for _ in range(num_units)]
    of_researchers = of_researchers or [Counter() for _ in range(num_units)]
    everyone = [a + b for a, b in zip(of_labelers, of_researchers, strict=True)]
    majorities: dict[tuple[int, Label], Label | None] = {}
    shared = {}
    for person, labels in by_person.items():
        is_researcher = person in researchers
        labelers = same_labelers = met_researchers = same_researchers = majority = same_majority = 0
        for unit, label in enumerate(labels):
            if label is None:
                continue
            labelers += of_labelers[unit].total() - (not is_researcher)
            same_labelers += of_labelers[unit][label] - (not is_researcher)
            met_researchers += of_researchers[unit].total() - is_researcher
            same_researchers += of_researchers[unit][label] - is_researcher
            if (unit, label) not in majorities:
                majorities[unit, label] = _majority_without(everyone[unit], label)
            winner = majorities[unit, label]
            majority += winner is not None
            same_majority += winner == label
        shared[person] = SharedLabels(
            with_labelers=labelers,
            same_as_labelers=same_labelers,
            with_researchers=met_researchers,
            same_as_researchers=same_researchers,
            with_majority=majority,
            same_as_majority=same_majority,
        )
    return shared


def _majority_without(counts: Counter[Label], own: Label) -> Label | None:
    """The label given most often besides one ``own``; None without two others or a single winner."""
    others = most = 0
    winner: Label | None = None
    for label, number_with_own in counts.items():
        number = number_with_own - (label == own)
        others += number
        if number > most:
            most, winner = number, label
        elif number == most:
            winner = None
    return winner if others >= 2 else None
