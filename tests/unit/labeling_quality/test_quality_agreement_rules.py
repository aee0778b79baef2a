"""What agreement is, by hand arithmetic and by what must not change it."""

from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.labeling.quality.agreement import agreement_shares, shared_labels, with_majority
from services.labeling.quality.alpha import Level, krippendorff_alpha
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.kappa import fleiss_kappa, pair_agreements
from services.labeling.quality.records import JudgedAnswer
from services.labeling.quality.units import label_table

MakeAnswer = Callable[..., JudgedAnswer]

Table = dict[int, dict[str, tuple[str | None, ...]]]

PEOPLE = ("ann", "bob", "eve", "kim")


@st.composite
def tables(draw: st.DrawFn) -> Table:
    table: Table = {}
    for task in range(draw(st.integers(0, 8))):
        num_units = draw(st.integers(1, 3))
        labels = st.tuples(*[st.sampled_from(["first", "second", "tie", None])] * num_units)
        table[task] = draw(st.dictionaries(st.sampled_from(PEOPLE), labels, max_size=4))
    return table


def all_figures(table: Table, researchers: frozenset[str] = frozenset({"kim"})) -> dict[str, Estimate]:
    shares = agreement_shares(shared_labels(table, researchers=researchers), researchers=researchers)
    return {
        "fleiss": fleiss_kappa(table),
        "alpha": krippendorff_alpha(table),
        "ordinal": krippendorff_alpha(table, level=Level.ORDINAL),
        "labelers": shares.labeler_labeler,
        "labeler and researcher": shares.labeler_researcher,
        "researchers": shares.researcher_researcher,
        "majority": shares.labeler_majority,
    }


def assert_same(one: dict[str, Estimate], other: dict[str, Estimate]) -> None:
    assert one.keys() == other.keys()
    for name, estimate in one.items():
        for field in ("value", "low", "high", "num_units"):
            assert getattr(estimate, field) == pytest.approx(getattr(other[name], field), abs=1e-9), name


@given(tables())
def test_figures_stay_in_range_and_never_fail(table: Table) -> None:
    figures = all_figures(table)
    for pair in pair_agreements(table):
        figures[f"{pair.a} {pair.b}"] = pair.agreement
        figures[f"kappa {pair.a} {pair.b}"] = pair.cohen_kappa
        assert pair.a < pair.b
        assert pair.agreement.num_units == pair.cohen_kappa.num_units > 0
    for estimate in figures.values():
        if estimate.value is None:
            assert (estimate.low, estimate.high) == (None, None)
        else:
            assert estimate.low is not None
            assert estimate.high is not None
            assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


@given(tables(), st.sampled_from(list(permutations(PEOPLE))))
def test_names_of_people_change_nothing(table: Table, names: tuple[str, ...]) -> None:
    new_name = dict(zip(PEOPLE, names, strict=True))
    renamed = {
        task: {new_name[person]: labels for person, labels in by_person.items()}
        for task, by_person in table.items()
    }

    assert_same(all_figures(table), all_figures(renamed, frozenset({new_name["kim"]})))
    kappas = {frozenset({new_name[p.a], new_name[p.b]}): p.cohen_kappa for p in pair_agreements(table)}
    renamed_kappas = {frozenset({p.a, p.b}): p.cohen_kappa for p in pair_agreements(renamed)}
    assert kappas.keys() == renamed_kappas.keys()
    for pair, kappa in kappas.items():
        assert kappa.value == pytest.approx(renamed_kappas[pair].value, abs=1e-9)
        assert kappa.low == pytest.approx(renamed_kappas[pair].low, abs=1e-9)


@given(tables(), st.sampled_from(list(permutations(["first", "second", "tie"]))))
def test_names_of_labels_change_nothing(table: Table, names: tuple[str, ...]) -> None:
    new_name = {None: None, **dict(zip(["first", "second", "tie"], names, strict=True))}
    renamed = {
        task: {person: tuple(new_name[label] for label in labels) for person, labels in by_person.items()}
        for task, by_person in table.items()
    }

    figures, renamed_figures = all_figures(table), all_figures(renamed)
    del figures["ordinal"], renamed_figures["ordinal"]  # there the order matters
    assert_same(figures, renamed_figures)


@given(st.lists(st.sampled_from(["first", "second", "tie"]), min_size=1, max_size=20))
def test_perfect_agreement_is_1_or_undefined(truth: list[str]) -> None:
    table: Table = {task: dict.fromkeys(PEOPLE, (label,)) for task, label in enumerate(truth)}

    figures = all_figures(table)

    del figures["researchers"]  # there is only one
    for name in ("fleiss", "alpha", "ordinal"):
        estimate = figures.pop(name)
        if len(set(truth)) == 1:
            assert estimate.value is None  # agreement beyond chance of a constant
        else:
            assert estimate.value == pytest.approx(1)
            assert estimate.low is not None
            assert estimate.low < 1
    assert {estimate.value for estimate in figures.values()} == {1}


def test_opposite_answers_have_kappa_minus_1() -> None:
    table: Table = {
        task: {"a": (label,), "b": (other,)}
        for task, (label, other) in enumerate([("first", "second"), ("second", "first")] * 10)
    }

    (pair,) = pair_agreements(table)

    assert pair.agreement.value == 0
    assert pair.cohen_kappa.value == -1


def test_one_labeler_agrees_with_nobody() -> None:
    table: Table = {task: {"a": ("first",)} for task in range(3)}

    assert pair_agreements(table) == ()
    assert {estimate.value for estimate in all_figures(table).values()} == {None}


def test_units_outside_the_usual_number_of_labels_do_not_count_for_fleiss() -> None:
    three: Table = {
        0: {"a": ("first",), "b": ("first",), "c": ("second",)},
        1: {"a": ("second",), "b": ("second",), "c": ("second",)},
    }
    with_others = three | {2: {"a": ("first",), "b": ("second",)}, 3: {"a": ("tie",)}}

    assert fleiss_kappa(with_others) == fleiss_kappa(three)
    assert fleiss_kappa(three).num_units == 2


def test_shares_by_hand() -> None:
    """Task 0: labelers a, b, c say first, first, second; researcher r says first. Task 1: a and r differ."""
    table: Table = {
        0: {"a": ("first",), "b": ("first",), "c": ("second",), "r": ("first",)},
        1: {"a": ("tie",), "r": ("second",)},
    }

    shared = shared_labels(table, researchers={"r"})
    shares = agreement_shares(shared, researchers={"r"})

    assert (shares.labeler_labeler.value, shares.labeler_labeler.num_units) == (pytest.approx(1 / 3), 3)
    assert (shares.labeler_researcher.value, shares.labeler_researcher.num_units) == (0.5, 4)
    assert shares.researcher_researcher.value is None
    # The others of a (b, c, r) say first, as those of b and c do. On task 1 one other is no majority.
    assert (shares.labeler_majority.value, shares.labeler_majority.num_units) == (pytest.approx(2 / 3), 3)
    assert shared[0]["a"].with_labelers == 2
    assert shared[0]["a"].same_as_labelers == 1
    assert shared[1]["a"].with_majority == 0


def test_others_who_are_split_are_no_majority() -> None:
    table: Table = {0: {"a": ("first",), "b": ("first",), "c": ("second",)}}

    shared = shared_labels(table, researchers=())

    # a sees b and c split; c sees a and b agree.
    assert [shared[0][who].with_majority for who in "abc"] == [0, 0, 1]
    assert with_majority([[shared[0]["c"]]]).value == 0


def test_a_ranking_is_taken_as_its_pairs(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=((2,), (0, 1))),
        make_answer(1, "b", best_index=2, num_candidates=3),
        make_answer(2, "a", verdict=True),
        make_answer(2, "b", verdict=False),
    ]

    table = label_table(answers)

    assert table == {
        1: {"a": ("tie", "second", "second"), "b": (None, "second", "second")},
        2: {"a": ("yes",), "b": ("no",)},
    }
    (pair,) = pair_agreements(table)
    assert (pair.agreement.value, pair.agreement.num_units) == (pytest.approx(2 / 3), 3)


def test_of_repeated_answers_the_first_counts_and_a_correction_replaces_it(make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(1, "a", tiers=((1,), (0,)), round=1, answer_us=9),
        make_answer(1, "a", tiers=((0, 1),), answer_us=5),
        make_answer(1, "a", tiers=((0,), (1,)), answer_us=3),
    ]

    assert label_table(answers) == {1: {"a": ("tie",)}}


def test_answers_that_differ_in_units_are_refused(make_answer: MakeAnswer) -> None:
    answers = [make_answer(1, "a", tiers=((0,), (1,))), make_answer(1, "b", tiers=((0,), (1,), (2,)))]

    with pytest.raises(ValueError, match="task 1 differ"):
        label_table(answers)
