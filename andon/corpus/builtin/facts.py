"""Decides what a simulated post can be about: eight fact slots and the words each may hold.

The grammar, the judge and the edits read these tables; nothing else names a fact value. Every word belongs
to one slot only, so a summary word can be read back without guessing. Wording and sentence order live in
``grammar``; which facts a post gets is drawn in ``generate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One thing a post tells, for example where it happened."""

    name: str
    values: tuple[str, ...]  # canonical words
    synonyms: Mapping[str, str]  # other word -> canonical word
    weight: float  # share of a complete summary's coverage; the weights of all slots sum to 1

    def surfaces(self, value: str) -> tuple[str, ...]:
        """All words that state ``value``, the canonical one first."""
        return (value, *(word for word, canonical in self.synonyms.items() if canonical == value))


def _slot(name: str, weight: float, words: str) -> Slot:
    """Reads ``words``: blank-separated values, a synonym written after its value as ``value/synonym``."""
    values: list[str] = []
    synonyms: dict[str, str] = {}
    for entry in words.split():
        value, *others = entry.split("/")
        values.append(value)
        synonyms.update(dict.fromkeys(others, value))
    return Slot(name=name, values=tuple(values), synonyms=MappingProxyType(synonyms), weight=weight)


SLOTS: tuple[Slot, ...] = (
    _slot(
        "who",
        0.14,
        "sister brother mother/mum father/dad cousin uncle aunt grandmother boss/manager neighbour flatmate "
        "landlord teacher coach dentist plumber colleague girlfriend boyfriend nephew niece tenant",
    ),
    _slot(
        "act",
        0.14,
        "broke/smashed sold lost/misplaced hid borrowed painted stole/pinched burned dropped returned bought "
        "repaired/fixed washed threw scratched found",
    ),
    _slot(
        "object",
        0.14,
        "lamp bicycle/bike piano camera laptop guitar suitcase ladder teapot carpet mirror sofa kettle "
        "umbrella "
        "phone telescope tent drill scarf violin wallet necklace printer rug drone vase blanket helmet",
    ),
    _slot(
        "where",
        0.12,
        "kitchen garage library station park museum attic cellar office bakery garden gym airport harbour "
        "church school hotel market",
    ),
    _slot(
        "when",
        0.10,
        "monday tuesday wednesday thursday friday saturday sunday christmas easter midsummer halloween "
        "newyear",
    ),
    _slot(
        "cause",
        0.14,
        "storm party argument flood fire strike move divorce blackout wedding bet hangover snow heatwave "
        "mistake joke deadline rent",
    ),
    _slot(
        "outcome",
        0.12,
        "angry/furious sad ashamed relieved worried/anxious confused proud lonely tired/exhausted jealous "
        "grateful disappointed bored scared hopeful nervous",
    ),
    _slot(
        "question",
        0.10,
        "apologise sue leave complain forgive pay resign wait confess celebrate insist negotiate report "
        "refuse "
        "relax emigrate",
    ),
)

SLOT_NAMES: tuple[str, ...] = tuple(slot.name for slot in SLOTS)
SLOT_BY_NAME: Mapping[str, Slot] = MappingProxyType({slot.name: slot for slot in SLOTS})


def _index_words() -> dict[str, tuple[str, str]]:
    index: dict[str, tuple[str, str]] = {}
    for slot in SLOTS:
        for value in slot.values:
            for word in slot.surfaces(value):
                index[word] = (slot.name, value)
    return index


# word -> (slot name, canonical value)
FACT_WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(_index_words())
