"""What is measured of people: gold items, repeats, bias and speed. Expected numbers are counted by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from services.labeling.quality.bias import bias_of
from services.labeling.quality.consistency import self_agreement
from services.labeling.quality.gold import gold_accuracy, share_right
from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality.speed import SpeedRule, speed_of

MakeAnswer = Callable[..., JudgedAnswer]
A_WINS, B_WINS, TIED = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


@pytest.mark.parametrize(
    ("given_answer", "expected", "right"),
    [
        ({"tiers": A_WINS}, A_WINS, 1),
        ({"tiers": TIED}, A_WINS, 0),
        ({"tiers": TIED}, TIED, 1),
        ({"tiers": ((0,), (1,), (2,))}, ((0,), (2,), (1,)), 2 / 3),
        ({"tiers": ((0,), (1,), (2,))}, ((2,), (1,), (0,)), 0),
        ({"best_index": 1, "num_candidates": 3}, ((0, 1), (2,)), 1),
        ({"best_index": 2, "num_candidates": 3}, ((0, 1), (2,)), 0),
        ({"tiers": A_WINS}, None, None),
        ({"verdict": True}, ((0,),), None),
    ],
)
def test_how_right_an_answer_is(
    make_answer: MakeAnswer, given_answer: dict[str, Any], expected: Any, right: float | None
) -> None:
    answer = make_answer(1, "a", expected_tiers=expected, **given_answer)

    assert share_right(answer) == (None if right is None else pytest.approx(right))


@given(st.lists(st.tuples(*[st.sampled_from([A_WINS, B_WINS, TIED])] * 2), min_size=1, max_size=30))
def test_confusion_on_gold_items_is_scikit_learns(pairs: list[tuple[Any, Any]]) -> None:
    labels = {A_WINS: "first", B_WINS: "second", TIED: "tie"}
    names = sorted(labels.values())
    answers = [
        plain_answer(task, tiers=given_tiers, expected_tiers=expected)
        for task, (expected, given_tiers) in enumerate(pairs)
    ]

    gold = gold_accuracy(answers)

    expected_matrix = confusion_matrix(
        [labels[expected] for expected, _ in pairs], [labels[given_tiers] for _, given_tiers in pairs],
        labels=names,
    )  # fmt: skip
    own = [[gold.confusion.get((right, said), 0) for said in names] for right in names]
    assert own == expected_matrix.tolist()
    assert gold.accuracy.value == pytest.approx(np.trace(expected_matrix) / len(pairs))
    interval = proportion_confint(np.trace(expected_matrix), len(pairs), method="wilson")
    assert (gold.accuracy.low, gold.accuracy.high) == pytest.approx(interval, abs=1e-12)


def plain_answer(task: int, **fields: Any) -> JudgedAnswer:
    return JudgedAnswer(
        comparison_id=task, task_id=task, labeler_id="a", is_researcher=False, best_index=None, verdict=None,
        num_candidates=2, shown_order=(0, 1), candidate_chars=(1, 1), candidate_sources=("policy", "policy"),
        purpose=Purpose.GOLD, round=0, answer_us=task, active_s=None, confidence=None, **fields,
    )  # fmt: skip


def test_only_first_answers_to_gold_items_are_gold(make_answer: MakeAnswer) -> None:
    right: dict[str, Any] = {"expected_tiers": A_WINS, "purpose": Purpose.GOLD}
    answers = [
        make_answer(1, "a", tiers=A_WINS, **right),
        make_answer(1, "a", tiers=B_WINS, round=1, **right),
        make_answer(2, "a", tiers=B_WINS, expected_tiers=A_WINS),
        make_answer(3, "a", tiers=B_WINS, expected_tiers=A_WINS, purpose=Purpose.TRAINING),
    ]

    gold = gold_accuracy(answers)

    assert (gold.accuracy.value, gold.accuracy.num_units) == (1, 1)
    assert gold.confusion == {("first", "first"): 1}


def test_repeats_meet_the_first_answer(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=A_WINS),
        make_answer(1, "a", tiers=A_WINS, round=1),
        make_answer(1, "a", tiers=B_WINS, round=2),
        make_answer(2, "a", tiers=((0,), (1,), (2,))),
        make_answer(2, "a", tiers=((0,), (2,), (1,)), round=1),
        make_answer(2, "b", tiers=((2,), (1,), (0,)), round=1),  # has no first answer
        make_answer(3, "a", tiers=TIED),
    ]

    estimate = self_agreement(answers)

    # Task 1: one of two; task 2: two of three pairs.
    assert (estimate.value, estimate.num_units) == (pytest.approx(3 / 5), 5)
    assert self_agreement(answers[-1:]).value is None


def test_a_labeler_who_always_takes_the_left_one(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=A_WINS, shown_order=(0, 1), candidate_chars=(50, 80)),
        make_answer(2, "a", tiers=B_WINS, shown_order=(1, 0), candidate_chars=(50, 80)),
        make_answer(3, "a", best_index=1, shown_order=(1, 0), candidate_chars=(70, 70)),
        make_answer(4, "a", tiers=TIED, shown_order=(1, 0), candidate_chars=(70, 90)),
    ]

    bias = bias_of(answers)

    assert (bias.first_side_rate.value, bias.first_side_rate.num_units) == (1, 3)
    assert (bias.longer_wins_rate.value, bias.longer_wins_rate.num_units) == (0.5, 2)
    assert (bias.tie_rate.value, bias.tie_rate.num_units) == (0.25, 4)
    # The tie gives half an answer to each side.
    assert [(share.place, share.share.value) for share in bias.places] == [(0, 0.875), (1, 0.125)]


def test_places_of_rankings_of_four(make_answer: MakeAnswer) -> None:
    # Shown 3 2 1 0, so candidates 2 and 0, tied best, stood at places 1 and 3.
    answer = make_answer(
        1, "a", tiers=((2, 0), (3,), (1,)), shown_order=(3, 2, 1, 0), candidate_chars=(4, 3, 2, 1)
    )

    bias = bias_of([answer])

    assert [(share.num_candidates, share.share.value) for share in bias.places] == [
        (4, 0), (4, 0.5), (4, 0), (4, 0.5)
    ]  # fmt: skip
    # Pairs with a better one: 2>3 after, 2>1 before, 0>3 after, 0>1 after, 3>1 before.
    assert (bias.first_side_rate.value, bias.first_side_rate.num_units) == (pytest.approx(2 / 5), 5)
    # Longer: 2 (2) > 3 (1) yes, 2 > 1 (3) no, 0 (4) > 3 yes, 0 > 1 yes, 3 > 1 no.
    assert bias.longer_wins_rate.value == pytest.approx(3 / 5)
    assert (bias.tie_rate.value, bias.tie_rate.num_units) == (pytest.approx(1 / 6), 6)


def test_verdicts_say_nothing_about_sides(make_answer: MakeAnswer) -> None:
    bias = bias_of([make_answer(1, "a", verdict=True)])

    assert (bias.first_side_rate.value, bias.tie_rate.value, bias.places) == (None, None, ())


def test_speed(make_answer: MakeAnswer) -> None:
    seconds = [0.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, None]
    answers = [
        make_answer(task, "a", tiers=A_WINS, active_s=active_s, candidate_chars=(60, 150))
        for task, active_s in enumerate(seconds)
    ]

    speed = speed_of(answers, rule=SpeedRule(min_s=1.0, max_chars_per_s=100.0))

    timed = [active_s for active_s in seconds if active_s is not None]
    assert speed.median_s.value == 5.5
    assert speed.median_s.num_units == 10
    assert speed.mean_s == pytest.approx(5.45)
    assert (speed.p10_s, speed.p90_s) == pytest.approx(tuple(np.percentile(timed, [10, 90])))
    assert speed.num_implausible == 2  # below 210 characters at 100 a second: 0.5 and 2.0


def test_the_floor_holds_for_short_texts_and_untimed_answers_are_no_matter(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=A_WINS, active_s=0.9, candidate_chars=(1, 1)),
        make_answer(2, "a", tiers=A_WINS, active_s=1.0, candidate_chars=(1, 1)),
        make_answer(3, "a", tiers=A_WINS),
    ]

    assert speed_of(answers, rule=SpeedRule()).num_implausible == 1
    untimed = speed_of(answers[2:], rule=SpeedRule())
    assert (untimed.median_s.value, untimed.mean_s, untimed.p10_s, untimed.p90_s) == (None,) * 4
