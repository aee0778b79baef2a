"""Decides what people agree or disagree about: the units of agreement.

A unit is a pair of a task's candidates or, for a verdict, its one candidate. Its identity is the task's id
and its place in the task's labels, so that two people's labels of one unit meet. Agreement functions read a
:data:`LabelTable` and know nothing of answers, so they serve ratings on a scale as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from services.labeling.quality.rankings import Labels, best_labels, ranking_labels
from services.labeling.quality.records import JudgedAnswer, Tiers

YES = "yes"
NO = "no"

Label = TypeVar("Label", str, int, bool)
LabelTable = Mapping[int, Mapping[str, tuple[Label | None, ...]]]
"""Per task, per person, one label for each of the task's units; None where nothing was said.

All people of a task have the same number of units. Labels are text, or numbers where their order matters.
"""

_VERDICTS: dict[bool, Labels] = {True: (YES,), False: (NO,)}


def labels_of(answer: JudgedAnswer) -> Labels:
    """The answer's label for each unit of its task."""
    if answer.tiers is not None:
        return ranking_labels(answer.tiers)
    if answer.best_index is not None:
        return best_labels(answer.best_index, answer.num_candidates)
    assert answer.verdict is not None  # one of the three, by construction
    return _VERDICTS[answer.verdict]


def first_answers(answers: Iterable[JudgedAnswer]) -> list[JudgedAnswer]:
    """Each person's answer of round 0 to each task, by time; of several the latest, as a correction."""
    latest: dict[tuple[int, str], JudgedAnswer] = {}
    for answer in answers:
        if answer.round:
            continue
        key = (answer.task_id, answer.labeler_id)
        known = latest.get(key)
        if known is None or _moment(known) < _moment(answer):
            latest[key] = answer
    return sorted(latest.values(), key=_moment)


def label_table(answers: Iterable[JudgedAnswer]) -> dict[int, dict[str, Labels]]:
    """The labels of first answers, by task and person.

    Raises ValueError when the answers to one task disagree about what its units are.
    """
    table: dict[int, dict[str, Labels]] = {}
    for answer in first_answers(answers):
        by_person = table.setdefault(answer.task_id, {})
        labels = labels_of(answer)
        if by_person and len(next(iter(by_person.values()))) != len(labels):
            raise ValueError(f"answers to task {answer.task_id} differ in the number of units")
        by_person[answer.labeler_id] = labels
    return table


def ranking_table(answers: Iterable[JudgedAnswer]) -> dict[int, dict[str, Tiers]]:
    """The full rankings of three and more candidates among first answers, by task and person."""
    table: dict[int, dict[str, Tiers]] = {}
    for answer in first_answers(answers):
        if answer.tiers is not None and answer.num_candidates > 2:
            table.setdefault(answer.task_id, {})[answer.labeler_id] = answer.tiers
    return table


def _moment(answer: JudgedAnswer) -> tuple[int, int]:
    return answer.answer_us, answer.comparison_id
