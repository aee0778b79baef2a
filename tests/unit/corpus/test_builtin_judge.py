"""The gold judge against totals worked out by hand, garbage, and tricks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon.corpus.builtin.facts import FACT_WORDS, SLOTS
from andon.corpus.builtin.generate import Post, WriterQuality
from andon.corpus.builtin.grammar import vocabulary
from andon.corpus.builtin.judge import GoldJudge

FACTS = {
    "who": "sister",
    "act": "broke",
    "object": "lamp",
    "where": "kitchen",
    "when": "monday",
    "cause": "storm",
    "outcome": "angry",
    "question": "apologise",
}
POST = Post(
    post_id="hand-made",
    document="my sister broke my lamp in the kitchen on monday . i blame the storm . now i feel furious . "
    "there was no flood for once . should i apologise ?",
    facts=FACTS,
    words={**FACTS, "outcome": "furious"},
    decoys={"cause": "flood"},
    reference="my sister broke my lamp .",
    reference_writer=WriterQuality.MIDDLING,
)
COMPLETE = (
    "my sister broke my lamp in the kitchen on monday because of the storm . "
    "i feel angry . should i apologise ?"
)
JUDGE = GoldJudge()


def total(text: str) -> float:
    return JUDGE.score(POST, text).total


def test_a_complete_summary_earns_one_in_any_order_and_with_synonyms() -> None:
    assert total(COMPLETE) == pytest.approx(1.0)
    assert total(COMPLETE.replace("angry", "furious").replace("broke", "smashed")) == pytest.approx(1.0)
    reordered = (
        "my sister broke the lamp due to the storm last monday at the kitchen . do i apologise ? i am angry ."
    )
    assert total(reordered) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # who, act, object: 3 x .14
        ("my sister broke my lamp .", 0.42),
        # the same and the place, .12
        ("my sister broke my lamp in the kitchen .", 0.54),
        # a wrong object earns nothing and costs .25
        ("my sister broke my sofa in the kitchen .", 0.14 + 0.14 + 0.12 - 0.25),
        # the decoy is as wrong as anything else
        ("my sister broke my lamp because of the flood .", 0.42 - 0.25),
        # one fact said twice costs .10
        ("my sister broke my lamp in the kitchen at the kitchen .", 0.54 - 0.10),
        # three facts said twice
        ("my sister broke my lamp . my sister broke my lamp .", 0.42 - 3 * 0.10),
        # five idle words
        ("my sister broke my lamp . life is very strange sometimes .", 0.42 - 5 * 0.03),
        # no closing mark
        ("my sister broke my lamp", 0.42 - 0.05),
        # the wrong closing mark
        ("my sister broke my lamp . should i apologise .", 0.52 - 0.05),
        # an empty sentence
        ("my sister broke my lamp . .", 0.42 - 0.05),
        # no event in the first sentence
        ("i feel angry .", 0.12 - 0.05),
        # nothing at all: no sentence
        ("", -0.05),
        ("   ", -0.05),
    ],
)
def test_totals_worked_out_by_hand(text: str, expected: float) -> None:
    assert total(text) == pytest.approx(expected)


def test_what_was_found_is_told() -> None:
    score = JUDGE.score(POST, "my sister broke my sofa on monday on monday . well then .")
    assert score.covered_slots == ("who", "act", "when")
    assert (score.wrong_facts, score.repetition, score.rambling, score.form) == (1, 1, 2, 0)
    assert score.coverage == pytest.approx(0.14 + 0.14 + 0.10)


def test_a_bag_of_right_words_earns_nothing() -> None:
    assert total(" ".join(FACTS.values()) + " .") < total("")


def test_listing_all_values_of_a_slot_costs_more_than_it_earns() -> None:
    base = "my sister broke my lamp"
    for slot, wording in (("when", "on {}"), ("cause", "because of the {}"), ("where", "in the {}")):
        values = next(entry.values for entry in SLOTS if entry.name == slot)
        for count in range(2, len(values) + 1):
            hedged = " ".join(
                wording.format(value)
                for value in (FACTS[slot], *(value for value in values if value != FACTS[slot]))[:count]
            )
            assert total(f"{base} {hedged} .") < total(f"{base} .")


def test_copying_the_post_is_worse_than_summarising_it() -> None:
    assert total(POST.document) < total(COMPLETE) - 0.3


def test_preference_follows_the_total_and_is_antisymmetric() -> None:
    short = "my sister broke my lamp ."
    assert JUDGE.prefer(POST, COMPLETE, short) == 1.0
    assert JUDGE.prefer(POST, short, COMPLETE) == 0.0
    assert JUDGE.prefer(POST, short, short.replace("my lamp", "the lamp")) == 0.5


words_or_noise = st.one_of(st.sampled_from([*vocabulary(), "<eos>", "<unk>", "WHO"]), st.text(max_size=5))


@given(st.lists(words_or_noise, max_size=60))
def test_any_text_is_read_and_never_earns_more_than_a_complete_summary(words: list[str]) -> None:
    score = JUDGE.score(POST, " ".join(words))
    assert score.total <= 1.0 + 1e-9
    assert 0.0 <= score.coverage <= 1.0 + 1e-9
    assert min(score.wrong_facts, score.repetition, score.rambling, score.form) >= 0


def test_no_single_change_of_a_word_improves_a_complete_summary() -> None:
    rng = random.Random(0)
    words = COMPLETE.split()
    for _ in range(2000):
        position = rng.randrange(len(words))
        changed = [*words]
        match rng.randrange(3):
            case 0:
                changed[position] = rng.choice(vocabulary())
            case 1:
                changed.insert(position, rng.choice(vocabulary()))
            case _:
                del changed[position]
        assert total(" ".join(changed)) <= 1.0 + 1e-9


def test_every_fact_word_is_credited_where_it_is_right() -> None:
    for word, (slot_name, value) in FACT_WORDS.items():
        facts = {**FACTS, slot_name: value}
        post = Post(
            post_id="x",
            document="",
            facts=facts,
            words={**facts, slot_name: word},
            decoys={},
            reference="",
            reference_writer=WriterQuality.GOOD,
        )
        text = (
            f"my {facts['who']} {facts['act']} my {facts['object']} in the {facts['where']} "
            f"on {facts['when']} because of the {facts['cause']} . i feel {facts['outcome']} . "
            f"should i {facts['question']} ?"
        )
        assert JUDGE.score(post, text.replace(f" {value} ", f" {word} ")).total == pytest.approx(1.0)
