"""Decides how a decision about many candidates becomes decisions about two.

A ranking of K states an order for each of its untied pairs; a best-of-K choice only for the pairs with the
best one in them. Pairs keep their candidates in the item's order, so which one is better says nothing about
where it stands. All pairs of one item share a group id: who trains or splits must keep them together (Ouyang
et al. 2022, section 3.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from andon.corpus.records import ComparisonRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two candidates of an item and what was decided about them; or one, and a verdict on it."""

    record: ComparisonRecord  # the first candidate is the earlier one in the item
    group_id: str  # of the item
    candidate_indices: tuple[int, ...]  # where they stand in the item
    votes: tuple[int, int, int] | None = None  # for the first, for the second, tied; None for one labeler


def decided_pairs(record: ComparisonRecord) -> Iterator[Pair]:
    """All pairs that the record decides, ties included; none for a single candidate."""
    group_id = record.task_key()
    rank = {index: place for place, tier in enumerate(record.tiers) for index in tier}
    for first, second in combinations(range(len(record.candidates)), 2):
        if record.only_best_known and rank[first] == rank[second]:
            continue
        yield Pair(
            record=pair_of(record, first, second, tiers=_tiers(rank[first], rank[second])),
            group_id=group_id,
            candidate_indices=(first, second),
        )


def count_undecided_pairs(record: ComparisonRecord) -> int:
    """How many pairs a best-of-K choice says nothing about."""
    rest = len(record.candidates) - 1
    return rest * (rest - 1) // 2 if record.only_best_known else 0


def pair_of(
    record: ComparisonRecord, first: int, second: int, *, tiers: tuple[tuple[int, ...], ...]
) -> ComparisonRecord:
    """The record about two of its candidates only; a record of two stays as it is but for the tiers."""
    if len(record.candidates) == 2:
        return record if record.tiers == tiers else replace(record, tiers=tiers)
    both = (first, second)
    name = f"/{first}-{second}"
    return replace(
        record,
        candidates=tuple(record.candidates[index] for index in both),
        tiers=tiers,
        only_best_known=False,
        comparison_id=record.comparison_id and record.comparison_id + name,
        task_id=record.task_id and record.task_id + name,
        ratings=tuple(record.ratings[index] for index in both) if record.ratings else (),
        shown_order=tuple(both.index(index) for index in record.shown_order if index in both),
    )


def _tiers(first_rank: int, second_rank: int) -> tuple[tuple[int, ...], ...]:
    if first_rank == second_rank:
        return ((0, 1),)
    return ((0,), (1,)) if first_rank < second_rank else ((1,), (0,))
