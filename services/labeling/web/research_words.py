"""How decisions and places are written for researchers: letters stand for places on the reader's screen."""

from __future__ import annotations

from collections.abc import Sequence

from services.labeling.answers import Choice, Decision, Ranking
from services.labeling.tasks import Tiers

LETTERS = "ABCDEFGHI"


def letters_of(order: Sequence[int]) -> dict[int, str]:
    """The letter of each candidate; ``order[i]`` is the candidate at place i."""
    return {candidate: LETTERS[place] for place, candidate in enumerate(order)}


def tiers_in_letters(tiers: Tiers, order: Sequence[int]) -> str:
    """A ranking such as "C > A = D"."""
    letters = letters_of(order)
    return " > ".join(" = ".join(sorted(letters[candidate] for candidate in tier)) for tier in tiers)


def decision_in_words(decision: Decision, order: Sequence[int], *, preference: int | None = None) -> str:
    """What somebody decided, about candidates that the reader sees in this order."""
    letters = letters_of(order)
    if isinstance(decision, Choice):
        return f"{letters[decision.best_index]} is best"
    if not isinstance(decision, Ranking):
        return "yes" if decision.affirmed else "no"
    if len(order) != 2:
        return tiers_in_letters(decision.tiers, order)
    if len(decision.tiers) == 1:
        return "no difference"
    (best,) = decision.tiers[0]
    how = "" if preference is None else _STRENGTH[abs(preference - 5)]
    return f"{letters[best]} is {how}better"


_STRENGTH = {0: "", 1: "slightly ", 2: "somewhat ", 3: "much ", 4: "far "}
