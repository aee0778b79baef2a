"""Measures how much of a summary is the reference's or the source's own words.

ROUGE is that of the ``rouge-score`` package without stemming. The copying figures follow Ziegler et al.
2019: the share of a summary's sentences, and of its bigrams, that do not stand in the source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from rouge_score.rouge_scorer import RougeScorer

_TOKEN = re.compile(r"[a-z0-9]+")
# The built-in corpus stands its punctuation apart, other texts do not; both end a sentence here.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rouge:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, each in 0..1."""

    rouge1: float
    rouge2: float
    rouge_l: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """What part of a summary is not copied from its source, each in 0..1."""

    novel_sentence_share: float
    novel_bigram_share: float


def rouge(summary: str, references: Sequence[str]) -> Rouge:
    """The best F1 over the references, for each ROUGE by itself; zeros without references."""
    scores = [_scorer().score(reference, summary) for reference in references]
    return Rouge(
        rouge1=max((score["rouge1"].fmeasure for score in scores), default=0.0),
        rouge2=max((score["rouge2"].fmeasure for score in scores), default=0.0),
        rouge_l=max((score["rougeL"].fmeasure for score in scores), default=0.0),
    )


def novelty(summary: str, source: str) -> Novelty:
    """The shares of the summary's sentences and bigrams that the source lacks; zeros for an empty summary."""
    sentences = [tuple(tokens(sentence)) for sentence in _SENTENCE_END.split(summary)]
    sentences = [sentence for sentence in sentences if sentence]
    known_sentences = {tuple(tokens(sentence)) for sentence in _SENTENCE_END.split(source)}
    bigrams = _bigrams(summary)
    known_bigrams = set(_bigrams(source))
    return Novelty(
        novel_sentence_share=_share([sentence not in known_sentences for sentence in sentences]),
        novel_bigram_share=_share([bigram not in known_bigrams for bigram in bigrams]),
    )


def lead_sentences(document: str, count: int = 3) -> str:
    """The document's first ``count`` sentences: the lead-3 baseline."""
    return " ".join(_SENTENCE_END.split(document.strip())[:count])


def tokens(text: str) -> list[str]:
    """The lower-case runs of letters a-z and digits, as rouge-score splits them."""
    return _TOKEN.findall(text.lower())


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = tokens(text)
    return list(pairwise(words))


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
