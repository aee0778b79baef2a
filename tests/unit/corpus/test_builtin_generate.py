"""Posts of the built-in corpus: reproducible, true to their facts, and disjoint between splits."""

import random
from collections import Counter

import pytest

from andon.corpus.builtin.facts import FACT_WORDS, SLOT_NAMES, SLOTS
from andon.corpus.builtin.generate import (
    WRITERS,
    WriterQuality,
    draw_quality,
    generate_posts,
    split_of,
    write_summary,
)
from andon.corpus.builtin.grammar import vocabulary
from andon.corpus.builtin.judge import GoldJudge

POSTS = generate_posts(1500, seed=7)


def test_the_same_seed_gives_the_same_posts_and_another_seed_gives_others() -> None:
    assert generate_posts(50, seed=7) == POSTS[:50]
    others = {post.document for post in generate_posts(50, seed=8)}
    assert others.isdisjoint(post.document for post in POSTS[:50])


def test_splits_share_no_post_even_for_equal_seeds() -> None:
    documents = {
        split: {post.document for post in generate_posts(400, 7, split)} for split in ("valid", "test")
    }
    assert documents["valid"].isdisjoint(documents["test"])
    assert documents["valid"].isdisjoint(post.document for post in POSTS)
    for split in ("train", "valid", "test"):
        assert {split_of(post.facts) for post in generate_posts(60, 9, split)} == {split}


def test_post_ids_are_unique_across_splits_and_seeds() -> None:
    ids = [
        post.post_id
        for split in ("train", "valid", "test")
        for seed in (0, 1)
        for post in generate_posts(20, seed, split)
    ]
    assert len(set(ids)) == len(ids)


def test_every_fact_stands_in_the_document_and_every_word_is_in_the_vocabulary() -> None:
    known = set(vocabulary())
    for post in POSTS:
        words = post.document.split()
        assert set(words) <= known
        assert set(post.reference.split()) <= known
        assert tuple(post.facts) == SLOT_NAMES
        for slot_name, word in post.words.items():
            assert words.count(word) == 1
            assert FACT_WORDS[word] == (slot_name, post.facts[slot_name])
        for slot_name, decoy in post.decoys.items():
            assert decoy != post.facts[slot_name]


def test_fact_words_of_a_document_are_its_facts_or_its_decoys() -> None:
    for post in POSTS[:300]:
        for word in post.document.split():
            if word in FACT_WORDS:
                slot_name, value = FACT_WORDS[word]
                assert value in (post.facts[slot_name], post.decoys.get(slot_name))


def test_vocabulary_is_sorted_free_of_duplicates_and_of_moderate_size() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    assert 250 <= len(words) <= 600
    assert all(word and not word.isspace() and word == word.lower() for word in words)


def test_slot_weights_sum_to_one_and_no_word_belongs_to_two_slots() -> None:
    assert sum(slot.weight for slot in SLOTS) == pytest.approx(1.0)
    word_count = sum(len(slot.values) + len(slot.synonyms) for slot in SLOTS)
    assert word_count == len(FACT_WORDS)


def test_lengths_stay_in_a_narrow_band() -> None:
    assert all(25 <= len(post.document.split()) <= 80 for post in POSTS)
    assert all(5 <= len(post.reference.split()) <= 32 for post in POSTS)


def test_each_clause_is_written_well_away_from_half_of_the_time() -> None:
    shares = Counter[str]()
    for post in POSTS:
        covered = GoldJudge().score(post, post.reference).covered_slots
        shares.update(set(covered))
    for slot_name in SLOT_NAMES:
        share = shares[slot_name] / len(POSTS)
        assert share < 0.4 or share > 0.6, (slot_name, share)


def test_better_writers_write_better_references() -> None:
    mean_total = {}
    for quality in WriterQuality:
        totals = [
            GoldJudge().score(post, post.reference).total
            for post in POSTS
            if post.reference_writer is quality
        ]
        mean_total[quality] = sum(totals) / len(totals)
        assert len(totals) / len(POSTS) == pytest.approx(WRITERS[quality].share, abs=0.05)
    assert mean_total[WriterQuality.GOOD] > mean_total[WriterQuality.MIDDLING] + 0.1
    assert mean_total[WriterQuality.MIDDLING] > mean_total[WriterQuality.POOR] + 0.1


def test_some_references_ramble_and_some_are_wrong() -> None:
    scores = [GoldJudge().score(post, post.reference) for post in POSTS]
    assert 0.10 < sum(score.wrong_facts > 0 for score in scores) / len(scores) < 0.30
    assert 0.10 < sum(score.rambling > 0 for score in scores) / len(scores) < 0.40
    assert all(score.form == 0 and score.repetition == 0 for score in scores)


def test_another_person_writes_another_summary_of_the_same_post() -> None:
    rng = random.Random(1)
    texts = {write_summary(rng, POSTS[0], draw_quality(rng)) for _ in range(40)}
    assert len(texts) > 5


@pytest.mark.parametrize(("count", "split"), [(-1, "train"), (3, "dev"), (3, "")])
def test_impossible_requests_are_refused(count: int, split: str) -> None:
    with pytest.raises(ValueError, match=r"count|split"):
        generate_posts(count, 0, split)
