"""Decides which posts exist: draws facts, writes the post and an imagined person's reference summary.

The loaders, the demo and the tests call ``generate_posts``. A post depends only on (split, seed, index), so a
longer list starts with the shorter one. Which split a combination of facts belongs to is fixed by a hash of
the
facts themselves, so two splits share no post whatever their seeds. Tokenization and prompts are made
elsewhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from andon.corpus.builtin.facts import FACT_WORDS, SLOT_BY_NAME, SLOTS
from andon.corpus.builtin.grammar import (
    CAUSE_WORDINGS,
    DECOY_WORDINGS,
    DIGRESSIONS,
    EVENT_CLAUSE,
    EVENT_WORDINGS,
    FIRST_SENTENCE_CLAUSES,
    OUTCOME_WORDINGS,
    PREAMBLES,
    QUESTION_WORDINGS,
    RAMBLES,
    SUMMARY_CLAUSES,
    fill,
    places,
)

# Share of all combinations of facts that belongs to each split, in parts of 20.
SPLIT_PARTS: Mapping[str, range] = {"train": range(16), "valid": range(16, 18), "test": range(18, 20)}

PREAMBLE_CHANCE = 0.5
USUAL_WORDING_CHANCE = 0.85


class WriterQuality(StrEnum):
    """How well the imagined writer of a reference summarises."""

    GOOD = "good"
    MIDDLING = "middling"
    POOR = "poor"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterHabits:
    """Chances (0..1) of what one quality of writer does in one reference."""

    share: float  # of all references
    clause_chances: Mapping[str, float]  # clause name -> chance that it is written; the event always is
    ramble_chance: float
    wrong_fact_chance: float  # chance that one stated fact is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One simulated forum post, what is true of it, and what an imagined person wrote as its summary."""

    post_id: str
    document: str
    facts: Mapping[str, str]  # slot name -> canonical value
    words: Mapping[str, str]  # slot name -> the word that the post itself uses for the fact
    decoys: Mapping[str, str]  # slot name -> canonical value that the post mentions and that does not hold
    reference: str
    reference_writer: WriterQuality


# No clause is written by between 40 and 60 % of all writers: near one half a summary at temperature 0 would
# flip between leaving the clause out and putting it in from one training run to the next.
WRITERS: Mapping[WriterQuality, WriterHabits] = {
    WriterQuality.GOOD: WriterHabits(
        share=0.15,
        clause_chances={"where": 0.97, "when": 0.70, "cause": 0.75, "outcome": 0.95, "question": 0.70},
        ramble_chance=0.02,
        wrong_fact_chance=0.02,
    ),
    WriterQuality.MIDDLING: WriterHabits(
        share=0.50,
        clause_chances={"where": 0.90, "when": 0.18, "cause": 0.20, "outcome": 0.80, "question": 0.18},
        ramble_chance=0.15,
        wrong_fact_chance=0.12,
    ),
    WriterQuality.POOR: WriterHabits(
        share=0.35,
        clause_chances={"where": 0.70, "when": 0.10, "cause": 0.10, "outcome": 0.60, "question": 0.10},
        ramble_chance=0.45,
        wrong_fact_chance=0.30,
    ),
}


def generate_posts(count: int, seed: int, split: str = "train") -> list[Post]:
    """The first ``count`` posts of ``split`` for ``seed``, all different."""
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if split not in SPLIT_PARTS:
        raise ValueError(f"split must be one of {sorted(SPLIT_PARTS)}, got {split!r}")
    posts: list[Post] = []
    seen: set[tuple[str, ...]] = set()
    index = 0
    while len(posts) < count:
        rng = random.Random(f"andon-builtin/{split}/{seed}/{index}")
        facts = _draw_facts(rng, split)
        key = tuple(facts.values())
        if key not in seen:
            seen.add(key)
            posts.append(_write_post(rng, facts, post_id=f"builtin-{split}-{seed}-{index:06d}"))
        index += 1
    return posts


def split_of(facts: Mapping[str, str]) -> str:
    """The only split in which a post with these facts can appear."""
    text = " ".join(facts[slot.name] for slot in SLOTS)
    part = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 20
    return next(split for split, parts in SPLIT_PARTS.items() if part in parts)


def draw_quality(rng: random.Random) -> WriterQuality:
    """A writer's quality, by the shares in ``WRITERS``."""
    qualities = list(WRITERS)
    return rng.choices(qualities, weights=[WRITERS[quality].share for quality in qualities])[0]


def write_summary(rng: random.Random, post: Post, quality: WriterQuality) -> str:
    """What another imagined person of ``quality`` might write about ``post``."""
    return _summarise(rng, post.words, post.decoys, WRITERS[quality])


def _draw_facts(rng: random.Random, split: str) -> dict[str, str]:
    while True:
        facts = {slot.name: rng.choice(slot.values) for slot in SLOTS}
        if split_of(facts) == split:
            return facts


def _write_post(rng: random.Random, facts: Mapping[str, str], post_id: str) -> Post:
    words = {name: rng.choice(SLOT_BY_NAME[name].surfaces(value)) for name, value in facts.items()}
    sentences = [
        fill(rng.choice(EVENT_WORDINGS), words),
        *rng.sample(
            [fill(rng.choice(CAUSE_WORDINGS), words), fill(rng.choice(OUTCOME_WORDINGS), words)], k=2
        ),
        fill(rng.choice(QUESTION_WORDINGS), words),
    ]
    decoys: dict[str, str] = {}
    for wording in rng.sample(DECOY_WORDINGS, k=rng.choice((1, 1, 2))):
        decoy_words: dict[str, str] = {}
        for name in places(wording):
            others = [value for value in SLOT_BY_NAME[name].values if value != facts[name]]
            # A second decoy of the same kind repeats the first, so that ``decoys`` tells all there are.
            value = decoys.setdefault(name, rng.choice(others))
            decoy_words[name] = rng.choice(SLOT_BY_NAME[name].surfaces(value))
        sentences.insert(rng.randrange(len(sentences)), fill(wording, decoy_words))
    for digression in rng.sample(DIGRESSIONS, k=rng.choice((0, 1, 1, 2))):
        sentences.insert(rng.randrange(len(sentences)), digression)
    if rng.random() < PREAMBLE_CHANCE:
        sentences.insert(0, rng.choice(PREAMBLES))
    quality = draw_quality(rng)
    return Post(
        post_id=post_id,
        document=" ".join(sentences),
        facts=MappingProxyType(dict(facts)),
        words=MappingProxyType(words),
        decoys=MappingProxyType(decoys),
        reference=_summarise(rng, words, decoys, WRITERS[quality]),
        reference_writer=quality,
    )


def _summarise(
    rng: random.Random, words: Mapping[str, str], decoys: Mapping[str, str], habits: WriterHabits
) -> str:
    chosen = [
        clause
        for clause in SUMMARY_CLAUSES
        if clause is EVENT_CLAUSE or rng.random() < habits.clause_chances[clause.name]
    ]
    stated = {name: words[name] for clause in chosen for name in clause.slot_names}
    if rng.random() < habits.wrong_fact_chance:
        name = rng.choice(sorted(stated))
        stated[name] = wrong_word(rng, name, words[name], decoys)
    # The usual wording leads by far, for the same reason as the clause chances stay away from one half.
    wordings = {
        clause.name: fill(clause.wordings[0 if rng.random() < USUAL_WORDING_CHANCE else 1], stated)
        for clause in chosen
    }
    sentences: list[str] = [
        " ".join(wordings[clause.name] for clause in chosen if clause in FIRST_SENTENCE_CLAUSES) + " .",
        *(
            f"{wordings[clause.name]} {clause.end_mark}"
            for clause in chosen
            if clause not in FIRST_SENTENCE_CLAUSES
        ),
    ]
    if rng.random() < habits.ramble_chance:
        sentences.append(rng.choice(RAMBLES))
    return " ".join(sentences)


def wrong_word(rng: random.Random, slot_name: str, right_word: str, decoys: Mapping[str, str]) -> str:
    """A word of the slot that does not hold: half of the time the post's decoy, where it has one."""
    right_value = FACT_WORDS[right_word][1]
    decoy = decoys.get(slot_name)
    if decoy is not None and rng.random() < 0.5:
        return decoy
    return rng.choice(
        [value for value in SLOT_BY_NAME[slot_name].values if value not in (right_value, decoy)]
    )
