"""Simulated labelers: pure, individual, and in agreement as often as people are."""

import random
from itertools import combinations

import pytest

from andon.corpus.builtin.edits import Edit, edit_summary
from andon.corpus.builtin.generate import Post, draw_quality, generate_posts, write_summary
from andon.corpus.builtin.judge import GoldJudge
from andon.corpus.builtin.labelers import SimulatedLabeler

POSTS = generate_posts(2000, seed=3, split="valid")
LABELERS = [SimulatedLabeler(seed) for seed in range(20)]


def drafts(post: Post, seed: int) -> list[str]:
    """Different texts such as a labeling task holds: two drafts and two edits of the first."""
    rng = random.Random(f"{seed}/{post.post_id}")
    texts = [write_summary(rng, post, draw_quality(rng)) for _ in range(2)]
    edits = [edit_summary(post, texts[0], rng.choice(list(Edit)), seed) for _ in range(2)]
    return list(dict.fromkeys([*texts, *(text for text in edits if text is not None)]))


def ranks(tiers: tuple[tuple[int, ...], ...]) -> dict[int, int]:
    return {index: rank for rank, tier in enumerate(tiers) for index in tier}


def test_two_labelers_agree_on_about_three_of_four_pairs() -> None:
    rng = random.Random(0)
    agreements = pairs = 0
    for post in POSTS:
        texts = drafts(post, 1)[:2]  # edits left out: what was spoiled on purpose is easier to see
        first, second = rng.sample(LABELERS, 2)
        if len(texts) < 2:
            continue
        first_ranks = ranks(first.answer(post, texts, post.post_id).tiers)
        second_ranks = ranks(second.answer(post, texts, post.post_id).tiers)
        for a, b in combinations(range(len(texts)), 2):
            if first_ranks[a] != first_ranks[b] and second_ranks[a] != second_ranks[b]:
                pairs += 1
                agreements += (first_ranks[a] < first_ranks[b]) == (second_ranks[a] < second_ranks[b])
    assert pairs > 1500
    assert 0.73 <= agreements / pairs <= 0.77


def test_a_labeler_agrees_with_the_judge_more_than_with_another_labeler() -> None:
    right = pairs = 0
    for number, post in enumerate(POSTS):
        texts = drafts(post, 2)
        if len(texts) < 2:
            continue
        best = LABELERS[number % len(LABELERS)].answer(post, texts[:2], post.post_id).choice
        preference = GoldJudge().prefer(post, texts[0], texts[1])
        if preference != 0.5:
            pairs += 1
            right += (preference == 1.0) == (best == 0)
    assert 0.78 < right / pairs < 0.92


def test_answers_depend_on_labeler_task_and_texts_only() -> None:
    post = POSTS[0]
    texts = drafts(post, 3)
    answer = SimulatedLabeler(5).answer(post, texts, "task-1")
    for other in POSTS[1:20]:  # what was answered before must not matter
        LABELERS[5].answer(other, drafts(other, 3), "task-1")
    assert LABELERS[5].answer(post, texts, "task-1") == answer
    assert any(
        LABELERS[5].answer(p, drafts(p, 3), "1") != LABELERS[5].answer(p, drafts(p, 3), "2")
        for p in POSTS[:9]
    )
    assert any(
        LABELERS[5].answer(p, drafts(p, 3), "1") != LABELERS[6].answer(p, drafts(p, 3), "1")
        for p in POSTS[:9]
    )


def test_the_order_of_candidates_does_not_matter() -> None:
    for post in POSTS[:100]:
        texts = drafts(post, 4)
        if len(texts) < 2:
            continue
        forward = LABELERS[1].answer(post, texts, "t")
        backward = LABELERS[1].answer(post, texts[::-1], "t")
        last = len(texts) - 1
        assert texts[forward.choice] == texts[::-1][backward.choice]
        assert forward.tiers == tuple(tuple(sorted(last - i for i in tier)) for tier in backward.tiers)
        assert forward.confidence == backward.confidence


def test_a_ranking_names_every_candidate_once_and_equal_texts_tie() -> None:
    for post in POSTS[:100]:
        texts = drafts(post, 5)
        answer = LABELERS[2].answer(post, [*texts, texts[0]], "t")
        assert sorted(index for tier in answer.tiers for index in tier) == list(range(len(texts) + 1))
        assert answer.choice in answer.tiers[0]
        assert any({0, len(texts)} <= set(tier) for tier in answer.tiers)


def test_confidence_stays_on_its_scale_and_rises_with_how_clear_the_pair_is() -> None:
    garbage = "lamp lamp . . market they loud upstairs"
    clear = [LABELERS[3].answer(post, [post.reference, garbage], "t").confidence for post in POSTS[:200]]
    close = [
        LABELERS[3].answer(post, [post.reference, post.reference + " thanks"], "t").confidence
        for post in POSTS[:200]
    ]
    assert set(clear) | set(close) <= set(range(1, 10))
    assert sum(clear) / len(clear) > sum(close) / len(close) + 1.5
    assert LABELERS[3].answer(POSTS[0], ["x", "x"], "t").confidence == 1


def test_labelers_differ_in_noise() -> None:
    noises = [labeler.traits.noise for labeler in LABELERS]
    assert max(noises) > 1.3 * min(noises) > 0


def test_a_task_needs_two_candidates() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        LABELERS[0].answer(POSTS[0], ["one"], "t")
