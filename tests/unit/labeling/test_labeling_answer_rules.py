"""Which answers are taken, and what they say in the submitter's order."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.labeling.answers import AnswerDraft, Choice, Ranking, check_answers, decision_in_task_order
from services.labeling.errors import InvalidFieldError

GOOD = AnswerDraft(lease_id="l1", decision=Choice(best_index=0))


def test_translation_by_hand() -> None:
    # On the screen: place 0 holds candidate 2, place 1 holds candidate 0, place 2 holds candidate 1.
    shown_order = (2, 0, 1)
    assert decision_in_task_order(Choice(best_index=0), shown_order, field="a") == Choice(best_index=2)
    assert decision_in_task_order(Choice(best_index=2), shown_order, field="a") == Choice(best_index=1)
    ranking = Ranking(tiers=((1,), (2, 0)))
    assert decision_in_task_order(ranking, shown_order, field="a") == Ranking(tiers=((0,), (1, 2)))


@st.composite
def shown_rankings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    num_candidates = draw(st.integers(2, 9))
    shown_order = tuple(draw(st.permutations(range(num_candidates))))
    tiers: list[list[int]] = []
    for place in draw(st.permutations(range(num_candidates))):
        if tiers and draw(st.booleans()):
            tiers[-1].append(place)
        else:
            tiers.append([place])
    return shown_order, tiers


@given(shown_rankings())
def test_a_ranking_orders_the_same_texts_before_and_after(
    case: tuple[tuple[int, ...], list[list[int]]],
) -> None:
    shown_order, tiers = case
    names = [f"text {index}" for index in range(len(shown_order))]
    on_screen = [names[index] for index in shown_order]
    said = [{on_screen[place] for place in tier} for tier in tiers]
    recorded = decision_in_task_order(
        Ranking(tiers=tuple(tuple(tier) for tier in tiers)), shown_order, field="a"
    )
    assert isinstance(recorded, Ranking)
    assert [{names[index] for index in tier} for tier in recorded.tiers] == said


@pytest.mark.parametrize(
    "decision",
    [
        None,
        Choice(best_index=-1),
        Choice(best_index=3),
        Ranking(tiers=()),
        Ranking(tiers=((0, 1),)),
        Ranking(tiers=((0, 1, 1, 2),)),
        Ranking(tiers=((0,), (1,), (2,), (0,))),
        Ranking(tiers=((0, 1, 2), ())),
        Ranking(tiers=((0, 1), (3,))),
        Ranking(tiers=((0, 1), (-1,))),
        Ranking(tiers=((0, 1), (2, 3))),
    ],
)
def test_decisions_that_do_not_fit_three_candidates(decision: Choice | Ranking | None) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        decision_in_task_order(decision, (2, 0, 1), field="answers[4]")
    assert caught.value.reason == "INVALID_ANSWER"
    assert caught.value.field.startswith("answers[4].")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"decision": None}, "decision"),
        ({"confidence": -1}, "confidence"),
        ({"confidence": 10}, "confidence"),
        ({"note": "n" * 10_001}, "note"),
        ({"note": "a\0"}, "note"),
        ({"lease_id": "x" * 201}, "lease_id"),
        ({"lease_id": "l1"}, "lease_id"),
        ({"answer_duration_us": -1}, "answer_duration"),
    ],
)
def test_answers_that_no_lease_makes_right(change: dict[str, object], field: str) -> None:
    bad = dataclasses.replace(GOOD, **{"lease_id": "l2", **change})
    with pytest.raises(InvalidFieldError) as caught:
        check_answers([GOOD, bad])
    assert (caught.value.reason, caught.value.field) == ("INVALID_ANSWER", f"answers[1].{field}")


def test_number_of_answers() -> None:
    with pytest.raises(InvalidFieldError) as nothing:
        check_answers([])
    assert nothing.value.reason == "EMPTY_REQUEST"
    many = [dataclasses.replace(GOOD, lease_id=str(number)) for number in range(1001)]
    check_answers(many[:1000])
    with pytest.raises(InvalidFieldError) as too_many:
        check_answers(many)
    assert too_many.value.reason == "TOO_MANY_ANSWERS"
