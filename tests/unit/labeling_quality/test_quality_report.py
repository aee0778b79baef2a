"""The whole report: a project with known people in it."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.quality.records import JudgedAnswer, Purpose
from services.labeling.quality.report import agreement_report, quality_report

MakeAnswer = Callable[..., JudgedAnswer]
A_WINS, B_WINS = ((0,), (1,)), ((1,), (0,))


@pytest.fixture
def project(make_answer: MakeAnswer) -> list[JudgedAnswer]:
    """200 gold tasks: ann, ben and the researcher are right 9 times in 10, leo takes the left one at once."""
    rng = random.Random(4)
    answers = []
    for task in range(200):
        right = rng.choice([A_WINS, B_WINS])
        wrong = A_WINS if right == B_WINS else B_WINS
        for person in ("ann", "ben", "leo", "rita"):
            order = rng.choice([(0, 1), (1, 0)])
            tiers = right if rng.random() < 0.9 else wrong
            if person == "leo":
                tiers = A_WINS if order[0] == 0 else B_WINS
            answers.append(
                make_answer(
                    task,
                    person,
                    tiers=tiers,
                    is_researcher=person == "rita",
                    purpose=Purpose.GOLD,
                    expected_tiers=right,
                    shown_order=order,
                    active_s=0.5 if person == "leo" else 20.0,
                )
            )
    return answers


def test_the_one_who_does_not_read_stands_out(project: list[JudgedAnswer]) -> None:
    report = quality_report(project)

    ann, ben, leo, _ = report.labelers
    assert [person.labeler_id for person in report.labelers] == ["ann", "ben", "leo", "rita"]
    assert [person.is_researcher for person in report.labelers] == [False, False, False, True]
    for good in (ann, ben):
        assert value(good.gold.accuracy) > 0.85
        assert value(good.with_researchers) > 0.75  # 0.9 * 0.9 + 0.1 * 0.1 = 0.82
        assert 0.4 < value(good.bias.first_side_rate) < 0.6
        assert good.speed.num_implausible == 0
    assert leo.bias.first_side_rate.value == 1
    assert leo.speed.num_implausible == 200
    assert 0.4 < value(leo.gold.accuracy) < 0.6
    assert value(leo.with_majority) < 0.65 < value(ann.with_majority)
    kappas = {(pair.a, pair.b): value(pair.cohen_kappa) for pair in report.pairs or ()}
    assert len(kappas) == 6
    assert kappas["ann", "ben"] > 0.5 > 0.2 > abs(kappas["ann", "leo"])


def test_overall_figures_are_those_of_labelers(project: list[JudgedAnswer]) -> None:
    overall = quality_report(project).overall

    assert (overall.num_answers, overall.num_labelers, overall.num_researchers) == (800, 3, 1)
    assert overall.speed.num_implausible == 200
    assert overall.gold.accuracy.num_units == 600
    assert overall.agreement.labeler_labeler.num_units == 3 * 200
    assert overall.agreement.labeler_researcher.num_units == 3 * 200
    assert overall.krippendorff_alpha.num_units == overall.fleiss_kappa.num_units == 200
    assert overall.tau_b.value is None  # nothing was ranked beyond pairs
    assert sum(window.num_answers for window in overall.drift.windows) == 600


def test_onboarding_counts_nowhere(project: list[JudgedAnswer], make_answer: MakeAnswer) -> None:
    fields: dict[str, Any] = {"tiers": A_WINS, "expected_tiers": B_WINS}
    onboarding = [
        make_answer(1000, "new", purpose=Purpose.TRAINING, **fields),
        make_answer(1001, "ann", purpose=Purpose.SCREENING, **fields),
    ]

    assert quality_report(onboarding + project) == quality_report(project)
    assert agreement_report(onboarding + project) == agreement_report(project)


def test_agreement_alone_is_that_of_the_whole_report(project: list[JudgedAnswer]) -> None:
    report, agreement = quality_report(project), agreement_report(project)

    assert agreement.shares == report.overall.agreement
    assert agreement.fleiss_kappa == report.overall.fleiss_kappa
    assert agreement.krippendorff_alpha == report.overall.krippendorff_alpha
    assert agreement.pairs == report.pairs


def test_order_of_answers_does_not_matter_and_pairs_may_be_left_out(project: list[JudgedAnswer]) -> None:
    report = quality_report(project)
    shuffled = random.Random(1).sample(project, len(project))

    assert quality_report(shuffled) == report
    assert quality_report(project, include_pairs=False).pairs is None


def test_an_empty_project_has_a_report_without_figures() -> None:
    report = quality_report([])

    assert (report.labelers, report.pairs, report.overall.num_answers) == ((), (), 0)
    assert report.overall.krippendorff_alpha.value is None
    assert report.overall.drift.windows == ()


def test_kinds_of_answers_mix(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=((0,), (1,), (2,))),
        make_answer(1, "b", tiers=((0,), (2,), (1,))),
        make_answer(1, "c", best_index=1, num_candidates=3),
        make_answer(2, "a", verdict=True),
        make_answer(2, "b", verdict=False),
        make_answer(1, "a", tiers=((0,), (1,), (2,)), round=1),
    ]

    report = quality_report(answers)

    # Pairs 01, 02, 12: a and b share three labels, each with c two (01 and 12), and the verdict.
    assert report.overall.agreement.labeler_labeler.num_units == 3 + 2 + 2 + 1
    # a-b: 01, 02 alike; a-c: 12 alike; b-c: none; the verdicts differ.
    assert report.overall.agreement.labeler_labeler.value == pytest.approx(3 / 8)
    assert report.overall.tau_b.value == pytest.approx(1 / 3)
    assert report.overall.self_agreement.value == 1


def value(estimate: Any) -> float:
    assert estimate.value is not None
    return float(estimate.value)
