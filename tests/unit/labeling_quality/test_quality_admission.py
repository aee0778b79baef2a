"""Who is admitted after a screening."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.quality.admission import AdmissionThresholds, Outcome, decide_admission
from services.labeling.quality.records import JudgedAnswer, Purpose

MakeAnswer = Callable[..., JudgedAnswer]
RIGHT, WRONG = ((0,), (1,)), ((1,), (0,))


def screening(make_answer: MakeAnswer, num_right: int, num_wrong: int, seconds: float | None = 10.0) -> Any:
    return [
        make_answer(
            task,
            "new",
            tiers=RIGHT if task < num_right else WRONG,
            expected_tiers=RIGHT,
            purpose=Purpose.SCREENING,
            active_s=seconds,
        )
        for task in range(num_right + num_wrong)
    ]


def thresholds(**fields: Any) -> AdmissionThresholds:
    return AdmissionThresholds(**{"min_share_right": 0.7, "max_mean_s": 60.0, "max_attempts": 2, **fields})


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "seconds", "attempt", "outcome"),
    [
        (7, 3, 60.0, 1, Outcome.ADMITTED),  # both exactly at the threshold
        (6, 4, 10.0, 1, Outcome.MAY_RETRY),
        (6, 4, 10.0, 2, Outcome.FAILED),
        (6, 4, 10.0, 5, Outcome.FAILED),
        (10, 0, 60.5, 1, Outcome.MAY_RETRY),
        (10, 0, 60.5, 2, Outcome.FAILED),
        (10, 0, 10.0, 2, Outcome.ADMITTED),
        (10, 0, None, 1, Outcome.MAY_RETRY),  # not timed, though time is limited
    ],
)
def test_outcome(
    make_answer: MakeAnswer,
    num_right: int,
    num_wrong: int,
    seconds: float | None,
    attempt: int,
    outcome: Outcome,
) -> None:
    answers = screening(make_answer, num_right, num_wrong, seconds)

    admission = decide_admission(answers, thresholds=thresholds(), attempt=attempt)

    assert admission.outcome is outcome
    assert admission.share_right == pytest.approx(num_right / 10)
    assert admission.mean_s == seconds
    assert admission.num_items == 10
    assert admission.attempts_left == max(0, 2 - attempt)


def test_without_a_limit_of_time_only_right_answers_count(make_answer: MakeAnswer) -> None:
    answers = screening(make_answer, 9, 1, None)

    admission = decide_admission(answers, thresholds=thresholds(max_mean_s=None), attempt=1)

    assert (admission.outcome, admission.mean_s, admission.fast_enough) == (Outcome.ADMITTED, None, True)


def test_a_ranking_partly_right_counts_in_part(make_answer: MakeAnswer) -> None:
    answer = make_answer(
        1, "new", tiers=((0,), (1,), (2,)), expected_tiers=((0,), (2,), (1,)), purpose=Purpose.SCREENING
    )  # fmt: skip

    admission = decide_admission([answer], thresholds=thresholds(max_mean_s=None), attempt=1)

    assert admission.share_right == pytest.approx(2 / 3)
    assert (admission.right_enough, admission.outcome) == (False, Outcome.MAY_RETRY)


def test_what_is_no_attempt_is_refused(make_answer: MakeAnswer) -> None:
    answers = screening(make_answer, 2, 0)
    ordinary = make_answer(9, "new", tiers=RIGHT, expected_tiers=RIGHT)
    without_right_answer = make_answer(9, "new", tiers=RIGHT, purpose=Purpose.SCREENING)

    for bad, attempt, match in (
        ([], 1, "0 answers"),
        (answers, 0, "attempt 0"),
        (answers * 2, 1, "two answers"),
        ([ordinary], 1, "not to a screening item"),
        ([without_right_answer], 1, "not to a screening item"),
    ):
        with pytest.raises(ValueError, match=match):
            decide_admission(bad, thresholds=thresholds(), attempt=attempt)


@pytest.mark.parametrize("fields", [{"min_share_right": 1.1}, {"max_mean_s": 0.0}, {"max_attempts": 0}])
def test_thresholds_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        thresholds(**fields)
