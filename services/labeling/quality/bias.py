"""Decides whether answers follow what should not matter: the place on the screen and the length of the text.

Everything is counted over pairs of candidates of which one was called better, as units of agreement are; ties
only count in the tie rate. Without a bias the first-side rate is near one half when sides are drawn at
random. A longer-wins rate above one half need not be a bias, since longer summaries often say more: compare
people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from services.labeling.quality.intervals import Estimate, share_of_clusters
from services.labeling.quality.rankings import FIRST, TIE, candidate_pairs
from services.labeling.quality.records import JudgedAnswer
from services.labeling.quality.units import labels_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceShare:
    """How often the best candidate stood at this place; tied best candidates share one answer."""

    num_candidates: int
    place: int  # 0 is the first on the screen
    share: Estimate  # 1 / num_candidates without a bias; units are answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """What answers follow besides the text. Units are pairs of candidates unless said otherwise."""

    first_side_rate: Estimate  # of pairs with a better one: it stood before the other
    longer_wins_rate: Estimate  # of pairs with a better one and different lengths: it was the longer
    tie_rate: Estimate  # of labeled pairs: neither was better
    places: tuple[PlaceShare, ...]  # by number of candidates and place


def bias_of(answers: Iterable[JudgedAnswer]) -> Bias:
    """The rates over all comparisons, repeats too (each was shown anew); verdicts say nothing here.

    Intervals take tasks as independent.
    """
    first_side: defaultdict[int, _Tally] = defaultdict(_Tally)
    longer: defaultdict[int, _Tally] = defaultdict(_Tally)
    ties: defaultdict[int, _Tally] = defaultdict(_Tally)
    places: defaultdict[tuple[int, int], defaultdict[int, _Tally]] = defaultdict(lambda: defaultdict(_Tally))
    for answer in answers:
        if answer.verdict is not None or answer.num_candidates < 2:
            continue
        place = {candidate: place for place, candidate in enumerate(answer.shown_order)}
        for (i, j), label in zip(candidate_pairs(answer.num_candidates), labels_of(answer), strict=True):
            if label is None:
                continue
            ties[answer.task_id].add(label == TIE)
            if label == TIE:
                continue
            better, worse = (i, j) if label == FIRST else (j, i)
            first_side[answer.task_id].add(place[better] < place[worse])
            chars, other_chars = answer.candidate_chars[better], answer.candidate_chars[worse]
            if chars != other_chars:
                longer[answer.task_id].add(chars > other_chars)
        best = answer.tiers[0] if answer.tiers is not None else (answer.best_index,)
        for candidate in range(answer.num_candidates):
            share = 1 / len(best) if candidate in best else 0.0
            places[answer.num_candidates, place[candidate]][answer.task_id].add(share)
    return Bias(
        first_side_rate=_share(first_side),
        longer_wins_rate=_share(longer),
        tie_rate=_share(ties),
        places=tuple(
            PlaceShare(num_candidates=num_candidates, place=place, share=_share(tallies))
            for (num_candidates, place), tallies in sorted(places.items())
        ),
    )


@dataclass(slots=True)
class _Tally:
    total: float = 0.0
    number: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.number += 1


def _share(tallies: dict[int, _Tally]) -> Estimate:
    return share_of_clusters((tally.total, tally.number) for tally in tallies.values())
