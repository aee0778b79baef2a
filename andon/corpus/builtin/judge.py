"""Decides exactly how good a summary of a simulated post is: the ground truth of the built-in corpus.

The evaluation calls it as the gold judge; simulated labelers add noise to it. It reads any text from left to
right as clauses of the grammar, in any order, and counts

- coverage: the weights of the slots whose fact is stated, each once;
- wrong facts: slots stated with a value that does not hold, each time;
- repetition: slots stated again with the value they were already stated with;
- rambling: words that belong to no clause (a fact word without its clause is one of them);
- form: faults in how the clauses are put into sentences.

Listing several values of a slot costs more than the right one among them earns, and a bag of fact words earns
nothing. Whether real people would agree with these weights is not claimed: the judge is always called
simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from andon.corpus.builtin.facts import FACT_WORDS, SLOT_BY_NAME
from andon.corpus.builtin.generate import Post
from andon.corpus.builtin.grammar import SENTENCE_END_MARKS, SUMMARY_CLAUSES, SummaryClause

# Costs in units of coverage (a complete summary earns 1). A wrong fact costs about twice what it could earn.
WRONG_FACT_COST = 0.25
REPETITION_COST = 0.10
RAMBLING_WORD_COST = 0.03
FORM_FAULT_COST = 0.05

PUNCTUATION: frozenset[str] = SENTENCE_END_MARKS | {","}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeScore:
    """What the judge found in one summary."""

    total: float  # coverage minus all costs; at most 1, no lower bound
    coverage: float  # 0..1
    covered_slots: tuple[str, ...]
    wrong_facts: int
    repetition: int  # facts stated again
    rambling: int  # words outside every clause
    form: int  # faults in form


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadClause:
    """A clause found in a text."""

    clause: SummaryClause
    values: dict[str, str]  # slot name -> canonical value
    length: int  # words


class GoldJudge:
    """Scores summaries of simulated posts; stateless."""

    def score(self, post: Post, summary_text: str) -> JudgeScore:
        """Reads ``summary_text``, which may be anything, the empty string included."""
        words = summary_text.split()
        covered: list[str] = []
        wrong_facts = repetition = rambling = form = 0
        sentence: list[SummaryClause] = []  # clauses of the sentence being read
        sentence_length = 0  # words of it, punctuation not counted
        is_first_sentence = True
        position = 0
        while position < len(words):
            word = words[position]
            if word in SENTENCE_END_MARKS:
                form += _sentence_faults(sentence, sentence_length, word, is_first_sentence)
                sentence, sentence_length, is_first_sentence = [], 0, False
                position += 1
                continue
            read = read_clause(words, position)
            if read is None:
                form += word in PUNCTUATION
                rambling += word not in PUNCTUATION
                sentence_length += 1
                position += 1
                continue
            for slot_name, value in read.values.items():
                if value != post.facts[slot_name]:
                    wrong_facts += 1
                elif slot_name in covered:
                    repetition += 1
                else:
                    covered.append(slot_name)
            sentence.append(read.clause)
            sentence_length += read.length
            position += read.length
        if sentence_length or not words:  # an open sentence, or no sentence at all
            form += 1
        coverage = sum(SLOT_BY_NAME[slot_name].weight for slot_name in covered)
        total = (
            coverage
            - WRONG_FACT_COST * wrong_facts
            - REPETITION_COST * repetition
            - RAMBLING_WORD_COST * rambling
            - FORM_FAULT_COST * form
        )
        return JudgeScore(
            total=total,
            coverage=coverage,
            covered_slots=tuple(covered),
            wrong_facts=wrong_facts,
            repetition=repetition,
            rambling=rambling,
            form=form,
        )

    def prefer(self, post: Post, first_text: str, second_text: str) -> float:
        """1.0 where the first summary is better, 0.0 where the second is, 0.5 where they are equally good."""
        first, second = self.score(post, first_text).total, self.score(post, second_text).total
        if abs(first - second) < 1e-9:
            return 0.5
        return 1.0 if first > second else 0.0


def read_clause(words: list[str], start: int) -> ReadClause | None:
    """The clause that starts at ``start``, or None. No wording is the beginning of another, so at most one
    fits."""
    for clause in SUMMARY_CLAUSES:
        for wording in clause.wordings:
            pattern = wording.split()
            candidate = words[start : start + len(pattern)]
            if len(candidate) < len(pattern):
                continue
            values: dict[str, str] = {}
            for expected, word in zip(pattern, candidate, strict=True):
                if not expected.isupper():
                    if word != expected:
                        break
                    continue
                slot_name, value = FACT_WORDS.get(word, ("", ""))
                if slot_name != expected.lower():
                    break
                values[slot_name] = value
            else:
                return ReadClause(clause=clause, values=values, length=len(pattern))
    return None


def _sentence_faults(
    sentence: list[SummaryClause], sentence_length: int, end_mark: str, is_first_sentence: bool
) -> int:
    """Faults of one closed sentence: empty, the wrong mark, or a first sentence that names no event."""
    faults = 0
    if sentence_length == 0 or (sentence and any(clause.end_mark != end_mark for clause in sentence)):
        faults += 1
    if is_first_sentence and (not sentence or sentence[0].name != "event"):
        faults += 1
    return faults
