"""The figures of the newest answers, counted by hand."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.labeling.quality.newest import MIN_UNITS, known_item_agreement, labeler_agreement
from services.labeling.quality.records import JudgedAnswer, Purpose

MakeAnswer = Callable[..., JudgedAnswer]
A_WINS, B_WINS = ((0,), (1,)), ((1,), (0,))


def two_labelers(make: MakeAnswer, *, same: int, different: int, **fields: Any) -> Iterator[JudgedAnswer]:
    for task in range(same + different):
        yield make(task, "ann", tiers=A_WINS, **fields)
        yield make(task, "bob", tiers=A_WINS if task < same else B_WINS, **fields)


def test_agreement_is_the_share_of_pairs_that_are_the_same(make_answer: MakeAnswer) -> None:
    assert labeler_agreement(two_labelers(make_answer, same=30, different=10)) == pytest.approx(0.75)
    assert labeler_agreement(two_labelers(make_answer, same=0, different=40)) == 0.0


def test_three_labelers_of_a_task_are_three_pairs(make_answer: MakeAnswer) -> None:
    # Two say one thing and one another: of three pairs one is the same.
    answers = [
        make_answer(task, name, tiers=B_WINS if name == "cat" else A_WINS)
        for task in range(10)
        for name in ("ann", "bob", "cat")
    ]
    assert labeler_agreement(answers) == pytest.approx(1 / 3)


def test_agreement_on_few_pairs_is_unknown(make_answer: MakeAnswer) -> None:
    assert labeler_agreement([]) is None
    assert labeler_agreement(make_answer(task, "ann", tiers=A_WINS) for task in range(500)) is None
    assert labeler_agreement(two_labelers(make_answer, same=MIN_UNITS - 1, different=0)) is None
    assert labeler_agreement(two_labelers(make_answer, same=MIN_UNITS, different=0)) == 1.0


def test_researchers_learners_and_repeats_do_not_count(make_answer: MakeAnswer) -> None:
    answers = list(two_labelers(make_answer, same=40, different=0))
    for task in range(40):
        answers.append(make_answer(task, "rita", tiers=B_WINS, is_researcher=True))
        answers.append(make_answer(task, "new", tiers=B_WINS, purpose=Purpose.TRAINING))
        answers.append(make_answer(task, "new", tiers=B_WINS, purpose=Purpose.SCREENING))
        answers.append(make_answer(task, "ann", tiers=B_WINS, round=1))
    assert labeler_agreement(answers) == 1.0


def gold(
    make: MakeAnswer, outcomes: list[bool], *, first: int = 0, labeler: str = "ann", **fields: Any
) -> list[JudgedAnswer]:
    return [
        make(
            task,
            labeler,
            tiers=A_WINS if is_right else B_WINS,
            **{"expected_tiers": A_WINS, "purpose": Purpose.GOLD, **fields},
        )
        for task, is_right in enumerate(outcomes, first)
    ]


def test_known_items_are_compared_before_and_after(make_answer: MakeAnswer) -> None:
    answers = gold(make_answer, [True] * 90 + [False] * 10 + [True] * 20 + [False] * 20)
    found = known_item_agreement(reversed(answers), num_recent=40)
    assert found.baseline == pytest.approx(0.9)
    assert found.recent == pytest.approx(0.5)
    # One hundred and forty answers are all recent where so many are asked for.
    found = known_item_agreement(answers, num_recent=1000)
    assert found.recent == pytest.approx(110 / 140)
    assert found.baseline is None


def test_known_items_with_few_answers_are_unknown(make_answer: MakeAnswer) -> None:
    found = known_item_agreement([], num_recent=100)
    assert (found.recent, found.baseline) == (None, None)
    found = known_item_agreement(gold(make_answer, [True] * (100 + MIN_UNITS - 1)), num_recent=100)
    assert (found.recent, found.baseline) == (1.0, None)
    found = known_item_agreement(gold(make_answer, [True] * (MIN_UNITS - 1)), num_recent=100)
    assert (found.recent, found.baseline) == (None, None)


def test_only_labelers_first_answers_to_gold_items_are_right_or_wrong(make_answer: MakeAnswer) -> None:
    answers = gold(make_answer, [True] * 50)
    answers += gold(make_answer, [False] * 50, labeler="rita", is_researcher=True)
    answers += gold(make_answer, [False] * 50, round=1)
    purposes = (Purpose.TRAINING, Purpose.SCREENING, Purpose.CALIBRATION, Purpose.ORDINARY)
    for number, purpose in enumerate(purposes, 1):
        answers += gold(make_answer, [False] * 50, first=50 * number, purpose=purpose)
    answers += gold(make_answer, [False] * 50, first=1000, expected_tiers=None)
    assert known_item_agreement(answers, num_recent=50).recent == 1.0
