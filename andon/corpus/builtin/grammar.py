"""Decides how facts are worded: the clauses of posts and of summaries, and everything that is not a fact.

``generate`` writes posts and references with these tables, ``edits`` changes summaries with them and
``judge``
reads summaries back. All text is lower case with blanks between words and punctuation marks, so that
splitting
at blanks is a complete tokenizer. A word in capitals is a place for the value of the slot of that name.

Facts of a post always follow a definite word ("my", "the", "on", "feel"); decoys, which are fact words that
do
not hold for the post, follow an indefinite one ("another", "some", "until", "never").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from andon.corpus.builtin.facts import FACT_WORDS, SLOT_BY_NAME

SENTENCE_END_MARKS: frozenset[str] = frozenset({".", "?"})

# --- posts
# ---------------------------------------------------------------------------------------------------

PREAMBLES: tuple[str, ...] = (
    "hi all ,",
    "hello everyone ,",
    "hey folks ,",
    "okay so ,",
    "long time reader here ,",
    "sorry for any typos ,",
    "throwaway account today ,",
)

# Each entry tells who, act, object, where and when, in one or several sentences.
EVENT_WORDINGS: tuple[str, ...] = (
    "my WHO ACT my OBJECT in the WHERE on WHEN .",
    "on WHEN my WHO ACT my OBJECT in the WHERE .",
    "in the WHERE my WHO ACT my OBJECT on WHEN .",
    "my WHO ACT my OBJECT . it happened in the WHERE on WHEN .",
    "so my WHO ACT my OBJECT on WHEN . we were in the WHERE .",
)
CAUSE_WORDINGS: tuple[str, ...] = (
    "it was because of the CAUSE .",
    "i blame the CAUSE .",
    "it all started with the CAUSE .",
)
OUTCOME_WORDINGS: tuple[str, ...] = (
    "now i feel OUTCOME .",
    "honestly i feel OUTCOME .",
    "it made me feel OUTCOME .",
)
QUESTION_WORDINGS: tuple[str, ...] = (
    "should i QUESTION ?",
    "what do you think , should i QUESTION ?",
    "would you say i should QUESTION ?",
)

DECOY_WORDINGS: tuple[str, ...] = (
    "another WHO once had some OBJECT .",
    "another WHO talked about some WHERE .",
    "i was busy until WHEN .",
    "there was no CAUSE for once .",
    "nobody else seemed OUTCOME .",
    "some people would never QUESTION .",
    "i once saw some OBJECT near some WHERE .",
)

DIGRESSIONS: tuple[str, ...] = (
    "the weather was lovely .",
    "we had pizza for lunch .",
    "my football club won again .",
    "traffic has been terrible lately .",
    "i am learning spanish these days .",
    "my cat sleeps all day .",
    "coffee is getting expensive .",
    "we watched a long movie .",
    "the bus came late as usual .",
    "i still have a small cold .",
    "summer feels very short here .",
    "they play loud music upstairs .",
)

# --- summaries
# -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryClause:
    """One statement of a summary: its slots and the wordings a judge accepts, the usual one first."""

    name: str
    slot_names: tuple[str, ...]
    wordings: tuple[str, ...]
    end_mark: str  # mark that closes the sentence this clause stands in


EVENT_CLAUSE = SummaryClause(
    name="event",
    slot_names=("who", "act", "object"),
    wordings=("my WHO ACT my OBJECT", "my WHO ACT the OBJECT"),
    end_mark=".",
)
WHERE_CLAUSE = SummaryClause(
    name="where", slot_names=("where",), wordings=("in the WHERE", "at the WHERE"), end_mark="."
)
WHEN_CLAUSE = SummaryClause(
    name="when", slot_names=("when",), wordings=("on WHEN", "last WHEN"), end_mark="."
)
CAUSE_CLAUSE = SummaryClause(
    name="cause", slot_names=("cause",), wordings=("because of the CAUSE", "due to the CAUSE"), end_mark="."
)
OUTCOME_CLAUSE = SummaryClause(
    name="outcome", slot_names=("outcome",), wordings=("i feel OUTCOME", "i am OUTCOME"), end_mark="."
)
QUESTION_CLAUSE = SummaryClause(
    name="question", slot_names=("question",), wordings=("should i QUESTION", "do i QUESTION"), end_mark="?"
)

# In the order in which references state them; the first four share one sentence.
SUMMARY_CLAUSES: tuple[SummaryClause, ...] = (
    EVENT_CLAUSE,
    WHERE_CLAUSE,
    WHEN_CLAUSE,
    CAUSE_CLAUSE,
    OUTCOME_CLAUSE,
    QUESTION_CLAUSE,
)
FIRST_SENTENCE_CLAUSES: tuple[SummaryClause, ...] = SUMMARY_CLAUSES[:4]

RAMBLES: tuple[str, ...] = (
    "anyway that is my story .",
    "it is a long story .",
    "thanks for reading all of this .",
    "life is strange sometimes .",
    "i could write much more .",
    "you know how it goes .",
)


def fill(wording: str, words_by_slot: Mapping[str, str]) -> str:
    """Puts the words of ``words_by_slot`` in the places of ``wording``."""
    return " ".join(words_by_slot[word.lower()] if word.isupper() else word for word in wording.split())


def places(wording: str) -> tuple[str, ...]:
    """Names of the slots that ``wording`` has places for, in order."""
    return tuple(word.lower() for word in wording.split() if word.isupper())


def vocabulary() -> list[str]:
    """Every word and mark that posts, references and edited summaries can contain, sorted."""
    wordings = [
        *PREAMBLES,
        *EVENT_WORDINGS,
        *CAUSE_WORDINGS,
        *OUTCOME_WORDINGS,
        *QUESTION_WORDINGS,
        *DECOY_WORDINGS,
        *DIGRESSIONS,
        *RAMBLES,
        *(wording for clause in SUMMARY_CLAUSES for wording in clause.wordings),
    ]
    words = {word for wording in wordings for word in wording.split() if not word.isupper()}
    unknown_places = {name for wording in wordings for name in places(wording)} - set(SLOT_BY_NAME)
    if unknown_places:
        raise ValueError(f"wordings name unknown slots: {sorted(unknown_places)}")
    return sorted(words | set(FACT_WORDS))
