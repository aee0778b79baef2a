"""Decides how a summary is spoiled in exactly one way: the edit test of the report.

The report asks a reward model to choose between a summary and its edited version; labeling tasks may show
such
pairs to people. Each edit changes one thing only, so the gold judge always scores the edited text lower. An
edit
that a summary offers no place for (nothing to drop from an empty one) is None.
"""

from __future__ import annotations

import random
from enum import StrEnum

from andon.corpus.builtin.facts import FACT_WORDS
from andon.corpus.builtin.generate import Post, wrong_word
from andon.corpus.builtin.grammar import DIGRESSIONS, EVENT_CLAUSE, RAMBLES, SENTENCE_END_MARKS
from andon.corpus.builtin.judge import GoldJudge, ReadClause, read_clause


class Edit(StrEnum):
    """One way of spoiling a summary."""

    DROP = "drop"  # a stated fact is left out, with its clause
    SWAP = (
        "swap"  # a fact is replaced by a wrong one, half of the time by one that the post mentions as a decoy
    )
    REPEAT = "repeat"  # a sentence is said twice
    RAMBLE = "ramble"  # a sentence that says nothing about the post is added


def edit_summary(post: Post, summary_text: str, edit: Edit, seed: int) -> str | None:
    """``summary_text`` with one ``edit``; the same arguments always give the same text."""
    rng = random.Random(f"andon-edit/{seed}/{edit.value}/{post.post_id}/{summary_text}")
    words = summary_text.split()
    match edit:
        case Edit.DROP:
            edited = _drop(rng, post, words)
        case Edit.SWAP:
            edited = _swap(rng, post, words)
        case Edit.REPEAT:
            edited = _repeat(rng, words)
        case Edit.RAMBLE:
            edited = _ramble(rng, words)
    if edited is None:
        return None
    edited_text = " ".join(edited)
    # In a summary that is spoiled already an edit can mend something: leaving out what was said twice, say.
    return edited_text if GoldJudge().prefer(post, summary_text, edited_text) == 1.0 else None


def _drop(rng: random.Random, post: Post, words: list[str]) -> list[str] | None:
    places = [
        (start, read)
        for start, read in _clauses(words)
        if read.clause is not EVENT_CLAUSE and _holds(post, read)
    ]
    if not places:
        return None
    start, read = rng.choice(places)
    end = start + read.length
    stands_alone = (start == 0 or words[start - 1] in SENTENCE_END_MARKS) and words[end : end + 1] == [
        read.clause.end_mark
    ]
    return words[:start] + words[end + stands_alone :]


def _swap(rng: random.Random, post: Post, words: list[str]) -> list[str] | None:
    places = [
        position
        for start, read in _clauses(words)
        for position in range(start, start + read.length)
        if words[position] in FACT_WORDS
        and post.facts[FACT_WORDS[words[position]][0]] == FACT_WORDS[words[position]][1]
    ]
    if not places:
        return None
    position = rng.choice(places)
    right_word = words[position]
    wrong = wrong_word(rng, FACT_WORDS[right_word][0], right_word, post.decoys)
    return [*words[:position], wrong, *words[position + 1 :]]


def _repeat(rng: random.Random, words: list[str]) -> list[str] | None:
    ends = _sentence_ends(words)
    if not ends:
        return None
    index = rng.randrange(len(ends))
    sentence = words[ends[index - 1] if index else 0 : ends[index]]
    insert_at = rng.choice((ends[index], ends[-1]))
    return words[:insert_at] + sentence + words[insert_at:]


def _ramble(rng: random.Random, words: list[str]) -> list[str]:
    ends = _sentence_ends(words)
    insert_at = rng.choice(ends) if ends else len(words)
    ramble = rng.choice((rng.choice(RAMBLES), rng.choice(DIGRESSIONS))).split()
    return words[:insert_at] + ramble + words[insert_at:]


def _clauses(words: list[str]) -> list[tuple[int, ReadClause]]:
    found: list[tuple[int, ReadClause]] = []
    position = 0
    while position < len(words):
        read = read_clause(words, position)
        if read is not None:
            found.append((position, read))
        position += read.length if read is not None else 1
    return found


def _holds(post: Post, read: ReadClause) -> bool:
    return all(post.facts[name] == value for name, value in read.values.items())


def _sentence_ends(words: list[str]) -> list[int]:
    """Positions just after each closing mark."""
    return [position + 1 for position, word in enumerate(words) if word in SENTENCE_END_MARKS]
