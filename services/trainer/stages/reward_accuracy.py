"""Decides how good a reward model is on comparisons it has not learned from, and how good it could be.

Pure. The reward-model stage calls it on held-out scores; beside the accuracy stand the baseline "the longer
one wins" and the labelers' agreement with each other, without which an accuracy says little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from andon.corpus.records import ComparisonRecord
from andon.evaluation.win_rate import wilson_interval

# Confidence runs from 1 (a guess) to 9 (certain).
CONFIDENCE_BUCKETS = ((1, 3), (4, 6), (7, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """One stated preference beside what the model and a ruler say."""

    document: str  # pairs of one document are not independent
    correct: bool  # the preferred one scores strictly higher
    longer_wins: float  # 1 when the preferred one is longer, 0.5 when both are as long, else 0
    confidence: int | None = None  # the labeler's


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share in 0..1 with its 95 % interval."""

    share: float
    low: float
    high: float
    n: int


def judge_pairs(
    records: Sequence[ComparisonRecord], scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]
) -> list[JudgedPair]:
    """Every untied pair of every comparison; scores and lengths are those of the comparison's candidates."""
    return [
        JudgedPair(
            document=record.document,
            correct=own_scores[better] > own_scores[worse],
            longer_wins=_longer(own_lengths[better], own_lengths[worse]),
            confidence=record.confidence,
        )
        for record, own_scores, own_lengths in zip(records, scores, lengths, strict=True)
        for better, worse in record.untied_pairs()
    ]


def accuracy(pairs: Sequence[JudgedPair]) -> Share:
    """Share of pairs ordered as the labelers did."""
    return _clustered_share([(pair.document, float(pair.correct)) for pair in pairs])


def longer_wins_accuracy(pairs: Sequence[JudgedPair]) -> Share:
    """What a ruler instead of a model would reach."""
    return _clustered_share([(pair.document, pair.longer_wins) for pair in pairs])


def accuracy_by_confidence(pairs: Sequence[JudgedPair]) -> dict[tuple[int, int], Share]:
    """The accuracy for each bucket of the labelers' confidence that has pairs."""
    return {
        (low, high): accuracy(chosen)
        for low, high in CONFIDENCE_BUCKETS
        if (chosen := [pair for pair in pairs if pair.confidence and low <= pair.confidence <= high])
    }


def labeler_agreement(records: Iterable[ComparisonRecord]) -> Share | None:
    """How often two labelers say the same of the same two summaries; a tie is an answer like the others.

    Counted over every two answers of different labelers to the same task and every two of its candidates; of
    best-of-K choices only which one is best is compared. None when no task has two answers. The interval
    treats the pairs of answers as independent, which is a little too narrow.
    """
    answers: dict[tuple[str, tuple[str, ...]], list[ComparisonRecord]] = defaultdict(list)
    for record in records:
        answers[record.document, tuple(candidate.text for candidate in record.candidates)].append(record)
    agreeing = total = 0
    for task in answers.values():
        for one, other in combinations(task, 2):
            if one.labeler_id == other.labeler_id or one.only_best_known != other.only_best_known:
                continue
            if one.only_best_known:
                total += 1
                agreeing += one.tiers[0] == other.tiers[0]
                continue
            mine, theirs = _ranks(one), _ranks(other)
            for a, b in combinations(range(len(one.candidates)), 2):
                total += 1
                agreeing += _sign(mine[a] - mine[b]) == _sign(theirs[a] - theirs[b])
    if total == 0:
        return None
    low, high = wilson_interval(agreeing, total)
    return Share(share=agreeing / total, low=low, high=high, n=total)


def _clustered_share(observations: Sequence[tuple[str, float]]) -> Share:
    """Mean of values in 0..1, with Wilson's interval for the number of independent observations they amount
    to.

    The design effect is the variance of the mean with documents as clusters over that of independent pairs
    (Kish 1965); it only ever widens the interval.
    """
    if not observations:
        raise ValueError("there is nothing to take a share of")
    n = len(observations)
    share = sum(value for _, value in observations) / n
    residual: dict[str, float] = defaultdict(float)
    for document, value in observations:
        residual[document] += value - share
    clusters = len(residual)
    independent_variance = share * (1 - share) / n
    effect = 1.0
    if clusters > 1 and independent_variance > 0:
        clustered_variance = clusters / (clusters - 1) * sum(r * r for r in residual.values()) / (n * n)
        effect = max(1.0, clustered_variance / independent_variance)
    effective = max(1, round(n / effect))
    low, high = wilson_interval(share * effective, effective)
    return Share(share=share, low=low, high=high, n=n)


def _ranks(record: ComparisonRecord) -> dict[int, int]:
    return {index: rank for rank, tier in enumerate(record.tiers) for index in tier}


def _longer(better: int, worse: int) -> float:
    return 0.5 if better == worse else float(better > worse)


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)
