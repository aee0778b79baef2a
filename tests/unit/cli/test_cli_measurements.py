"""Figures about comparisons, by hand arithmetic, and the services asked again after a restart."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from andon.cli.measurements import (
    Measuring,
    gold_accuracy,
    labeler_agreements,
    preference,
    with_model,
)
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient, Scores, SummaryScore
from andon.corpus.builtin.generate import generate_posts
from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.errors import FailedPreconditionError, InvalidArgumentError
from andon.modeling.normalization import NO_NORMALIZATION
from andon.modeling.versions import ModelVersion

Tiers = tuple[tuple[int, ...], ...]


def comparison(labeler: str, tiers: Tiers, texts: str = "abc", document: str = "d") -> ComparisonRecord:
    return ComparisonRecord(
        document_id=document,
        document=document,
        candidates=tuple(CandidateRecord(text=text) for text in texts),
        tiers=tiers,
        labeler_id=labeler,
    )


def test_agreement_counts_pairs_that_both_ordered() -> None:
    first = comparison("x", ((0,), (1,), (2,)))  # a > b > c
    second = comparison("y", ((1,), (0,), (2,)))  # b > a > c
    # ab differs; ac and bc agree
    assert sorted(labeler_agreements([first, second])) == [0.0, 1.0, 1.0]
    tied = comparison("z", ((0, 1), (2,)))  # says nothing of ab
    assert labeler_agreements([first, tied]) == [1.0, 1.0]
    assert len(labeler_agreements([first, second, tied])) == 3 + 2 + 2


@pytest.mark.parametrize(
    "other",
    [
        comparison("x", ((0,), (1,), (2,))),  # the same labeler
        comparison("y", ((0,), (1,), (2,)), document="e"),  # another document
        comparison("y", ((0,), (1,), (2,)), texts="abx"),  # other candidates
    ],
)
def test_agreement_needs_two_labelers_of_the_same_task(other: ComparisonRecord) -> None:
    assert labeler_agreements([comparison("x", ((0,), (1,), (2,))), other]) == []


def test_preference_is_half_for_equals() -> None:
    assert [preference(2, 1), preference(1, 2), preference(1, 1), preference(-math.inf, 0)] == [1, 0, 0.5, 0]


def test_gold_accuracy_counts_each_pair_of_texts_once() -> None:
    post = generate_posts(1, seed=2)[0]
    good, bad = post.reference, "my"
    record = ComparisonRecord(
        document_id=post.post_id,
        document=post.document,
        candidates=(CandidateRecord(text=good), CandidateRecord(text=bad)),
        tiers=((0,), (1,)),
    )
    assert gold_accuracy([record, record], [[1.0, 0.0], [1.0, 0.0]], [post]) == 1.0
    assert gold_accuracy([record], [[0.0, 1.0]], [post]) == 0.0
    assert gold_accuracy([], [], [post]) is None


@dataclass
class LengthReward:
    """Scores a text by its length; refuses empty ones as the service does."""

    asked: list[tuple[str, list[str]]] = field(default_factory=list)

    def score(self, items: list[tuple[str, list[str]]], **_: object) -> Scores:
        self.asked = items
        return Scores(
            items=tuple(
                tuple(SummaryScore(score=len(text), raw_score=0, token_count=1) for text in texts)
                for _, texts in items
            ),
            model=ModelVersion("reward", 1),
            normalization=NO_NORMALIZATION,
            queue_s=0,
            compute_s=0,
            tokenizer_fingerprint="",
        )

    def load_model(self, name: str, **_: object) -> None:
        """It has only one model."""


def measuring_with(reward: LengthReward) -> Measuring:
    return Measuring(
        policy=cast(PolicyClient, None),
        reference=cast(ReferenceClient, None),
        reward=cast(RewardClient, reward),
        reference_model=ModelVersion("sft", 1),
        reward_model=ModelVersion("reward", 1),
    )


def test_an_empty_summary_loses_and_is_not_sent() -> None:
    reward = LengthReward()
    scores = measuring_with(reward).reward_scores(["d", "e"], [["abc", " ", "a"], ["", ""]])
    assert scores == [[3, -math.inf, 1], [-math.inf, -math.inf]]
    assert reward.asked == [("d", ["abc", "a"])]


def test_the_reward_model_is_measured_against_labels_length_and_agreement() -> None:
    # Length decides the fake's scores. Labeler x prefers the shortest throughout, y the longest.
    texts = ("a", "bb", "ccc")
    comparisons = [
        comparison("x", ((0,), (1,), (2,)), texts=texts),  # type: ignore[arg-type]
        comparison("y", ((2,), (1,), (0,)), texts=texts),  # type: ignore[arg-type]
        comparison("z", ((2,), (0, 1)), texts=texts),  # type: ignore[arg-type]
    ]
    summary = measuring_with(LengthReward()).reward_model_summary(comparisons, None)
    assert summary.n == 3 + 3 + 2
    assert summary.accuracy == (0 + 3 + 2) / 8
    assert summary.accuracy_low < summary.accuracy < summary.accuracy_high
    # All texts are one word long: the longer one is nobody.
    assert summary.longer_wins_accuracy == 0.5
    # x and y differ on 3 pairs, x and z on 2, y and z agree on 2.
    assert (summary.labeler_agreement, summary.labeler_agreement_n) == (2 / 7, 7)
    assert summary.edit_test == {}


def failing_once(error: Exception) -> Callable[[], str]:
    errors = [error]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "served"

    return call


def test_a_service_that_lost_its_model_gets_it_back() -> None:
    loads: list[str] = []
    call = failing_once(FailedPreconditionError("none", reason="MODEL_NOT_LOADED"))
    assert with_model(call, lambda: loads.append("loaded")) == "served"
    assert loads == ["loaded"]


def test_other_errors_pass() -> None:
    call = failing_once(InvalidArgumentError("too long", reason="SEQUENCE_TOO_LONG"))
    with pytest.raises(InvalidArgumentError):
        with_model(call, lambda: None)
