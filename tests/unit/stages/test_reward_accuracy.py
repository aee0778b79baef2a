"""How good a reward model is, in numbers checked by hand and against the golden conventions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.evaluation.win_rate import wilson_interval
from services.trainer.stages.reward_accuracy import (
    JudgedPair,
    accuracy,
    accuracy_by_confidence,
    judge_pairs,
    labeler_agreement,
    longer_wins_accuracy,
)


def comparison(
    tiers: tuple[tuple[int, ...], ...],
    *,
    document: str = "a post",
    texts: tuple[str, ...] | None = None,
    labeler: str = "ann",
    confidence: int | None = None,
    only_best_known: bool = False,
) -> ComparisonRecord:
    count = sum(len(tier) for tier in tiers)
    return ComparisonRecord(
        document_id=document,
        document=document,
        candidates=tuple(CandidateRecord(text=text) for text in (texts or tuple("abcdefghi"[:count]))),
        tiers=tiers,
        labeler_id=labeler,
        confidence=confidence,
        only_best_known=only_best_known,
    )


def test_pairs_of_a_ranking() -> None:
    # 1 before 0, 2 (tied). Scores agree with 1 > 0 and are level on 1 against 2, which does not count as
    # right.
    pairs = judge_pairs([comparison(((1,), (0, 2)))], [[0.5, 2.0, 2.0]], [[7, 4, 4]])
    assert [pair.correct for pair in pairs] == [True, False]
    assert [pair.longer_wins for pair in pairs] == [0.0, 0.5]
    assert accuracy(pairs).share == 0.5
    assert longer_wins_accuracy(pairs).share == 0.25


def test_interval_of_independent_pairs_is_wilsons() -> None:
    pairs = [JudgedPair(document=str(i), correct=i < 30, longer_wins=1.0) for i in range(40)]
    share = accuracy(pairs)
    # With one pair per document the sample variance is n/(n-1) times p(1-p): an effective 39 of 40 pairs.
    assert (share.share, share.n) == (0.75, 40)
    assert (share.low, share.high) == pytest.approx(wilson_interval(0.75 * 39, 39))
    assert accuracy([pair for pair in pairs if pair.correct]).low == pytest.approx(wilson_interval(30, 30)[0])


def test_pairs_of_one_document_count_as_less_than_independent_ones() -> None:
    # 20 documents with 10 pairs each that are all right or all wrong say as much as 20 pairs, not 200.
    clustered = [
        JudgedPair(document=str(document), correct=document < 15, longer_wins=0.0)
        for document in range(20)
        for _ in range(10)
    ]
    share = accuracy(clustered)
    assert share.n == 200
    assert (share.low, share.high) == pytest.approx(wilson_interval(0.75 * 19, 19))


def test_buckets_of_confidence() -> None:
    pairs = [
        JudgedPair(document="a", correct=True, longer_wins=1.0, confidence=1),
        JudgedPair(document="b", correct=False, longer_wins=1.0, confidence=3),
        JudgedPair(document="c", correct=True, longer_wins=1.0, confidence=9),
        JudgedPair(document="d", correct=True, longer_wins=1.0, confidence=None),
    ]
    buckets = accuracy_by_confidence(pairs)
    assert {bucket: (share.share, share.n) for bucket, share in buckets.items()} == {
        (1, 3): (0.5, 2),
        (7, 9): (1.0, 1),
    }


def test_agreement_follows_the_golden_convention(shared_dir: Path) -> None:
    vector = json.loads((shared_dir / "golden" / "10_pairwise_agreement.json").read_text())
    tiers = {"A": ((0,), (1,)), "B": ((1,), (0,)), "tie": ((0, 1),)}
    records = [
        comparison(tiers[label], document=f"item {item}", labeler=f"labeler {labeler}")
        for item, labels in enumerate(vector["inputs"]["labels"])
        for labeler, label in enumerate(labels)
        if label is not None
    ]
    share = labeler_agreement(records)
    assert share is not None
    assert share.n == vector["outputs"]["pairs"]
    assert share.share == pytest.approx(vector["outputs"]["agreement"])
    assert [share.low, share.high] == pytest.approx(vector["outputs"]["wilson95"])


def test_agreement_of_rankings_and_choices() -> None:
    rankings = [
        comparison(((0,), (1,), (2,)), labeler="ann"),
        comparison(((0,), (2,), (1,)), labeler="bob"),  # agrees on (0,1) and (0,2), not on (1,2)
        comparison(((0,), (1,), (2,)), labeler="ann"),  # the same person again does not count with ann's own
    ]
    share = labeler_agreement(rankings)
    assert share is not None
    assert (share.share, share.n) == (pytest.approx(4 / 6), 6)
    choices = [
        comparison(((1,), (0, 2)), labeler="ann", only_best_known=True),
        comparison(((1,), (0, 2)), labeler="bob", only_best_known=True),
        comparison(((2,), (0, 1)), labeler="cat", only_best_known=True),
    ]
    share = labeler_agreement(choices)
    assert share is not None
    assert (share.share, share.n) == (pytest.approx(1 / 3), 3)


def test_no_agreement_without_second_answers() -> None:
    assert labeler_agreement([comparison(((0,), (1,))), comparison(((0,), (1,)), document="another")]) is None
    with pytest.raises(ValueError, match="nothing"):
        accuracy([])
