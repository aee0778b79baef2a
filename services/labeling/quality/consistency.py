"""Decides how far a person agrees with themself: planned repeats against the first answer."""

from __future__ import annotations

from collections.abc import Iterable

from services.labeling.quality.intervals import Estimate, share_of_clusters
from services.labeling.quality.records import JudgedAnswer
from services.labeling.quality.units import first_answers, labels_of


def self_agreement(answers: Iterable[JudgedAnswer]) -> Estimate:
    """The share of labels in repeats that are as in the same person's first answer to the task.

    Units are pairs of labels of one unit of agreement; every repeat is compared to the first answer, and what
    has no first answer is not compared. The interval takes tasks as independent.
    """
    kept = list(answers)
    first = {(answer.task_id, answer.labeler_id): labels_of(answer) for answer in first_answers(kept)}
    clusters: dict[int, tuple[int, int]] = {}
    for answer in kept:
        labels = first.get((answer.task_id, answer.labeler_id))
        if answer.round == 0 or labels is None:
            continue
        met = [
            earlier == later
            for earlier, later in zip(labels, labels_of(answer), strict=True)
            if earlier is not None and later is not None
        ]
        same, number = clusters.get(answer.task_id, (0, 0))
        clusters[answer.task_id] = (same + sum(met), number + len(met))
    return share_of_clusters(clusters.values())
