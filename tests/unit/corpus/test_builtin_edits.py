"""Edits spoil a summary in the one way that they are named after."""

import pytest

from andon.corpus.builtin.edits import Edit, edit_summary
from andon.corpus.builtin.generate import generate_posts
from andon.corpus.builtin.judge import GoldJudge

POSTS = generate_posts(300, seed=4, split="valid")
JUDGE = GoldJudge()


@pytest.mark.parametrize("edit", list(Edit))
def test_an_edited_summary_is_always_worse(edit: Edit) -> None:
    made = 0
    for post in POSTS:
        edited = edit_summary(post, post.reference, edit, seed=1)
        if edited is not None:
            made += 1
            assert JUDGE.prefer(post, post.reference, edited) == 1.0
    assert made > 0.8 * len(POSTS)


def test_each_edit_changes_only_its_own_count() -> None:
    for post in POSTS:
        before = JUDGE.score(post, post.reference)
        for edit in Edit:
            edited = edit_summary(post, post.reference, edit, seed=2)
            if edited is None:
                continue
            after = JUDGE.score(post, edited)
            lost_facts = len(before.covered_slots) - len(after.covered_slots)
            new_wrong_facts = after.wrong_facts - before.wrong_facts
            match edit:
                case Edit.DROP:
                    assert (lost_facts, new_wrong_facts) == (1, 0)
                    assert len(edited) < len(post.reference)
                case Edit.SWAP:
                    assert (lost_facts, new_wrong_facts) == (1, 1)
                    assert len(edited.split()) == len(post.reference.split())
                case Edit.REPEAT:
                    assert lost_facts == 0
                    # a sentence may hold wrong facts or be a ramble; then those are what is said twice
                    assert after.repetition > 0 or new_wrong_facts > 0 or after.rambling > before.rambling
                case Edit.RAMBLE:
                    assert (lost_facts, new_wrong_facts, after.repetition) == (0, 0, before.repetition)
                    assert after.rambling > before.rambling
            assert after.form == before.form


def test_swaps_use_decoys_of_the_post_and_other_values() -> None:
    from_post = elsewhere = 0
    for post in POSTS:
        edited = edit_summary(post, post.reference, Edit.SWAP, seed=3)
        assert edited is not None
        pairs = zip(edited.split(), post.reference.split(), strict=True)
        [new_word] = [new for new, old in pairs if new != old]
        if new_word in post.document.split():
            from_post += 1
        else:
            elsewhere += 1
    assert from_post > 10
    assert elsewhere > 100


def test_edits_are_reproducible_and_vary_with_the_seed() -> None:
    post = POSTS[0]
    first = [edit_summary(post, post.reference, Edit.SWAP, seed) for seed in range(12)]
    assert first == [edit_summary(post, post.reference, Edit.SWAP, seed) for seed in range(12)]
    assert len(set(first)) > 4


@pytest.mark.parametrize("text", ["", "word", ". . .", "lamp ? , really"])
def test_text_without_facts_offers_no_fact_to_drop_or_swap(text: str) -> None:
    assert edit_summary(POSTS[0], text, Edit.DROP, seed=0) is None
    assert edit_summary(POSTS[0], text, Edit.SWAP, seed=0) is None
    for edit in (Edit.REPEAT, Edit.RAMBLE):
        edited = edit_summary(POSTS[0], text, edit, seed=0)
        assert edited is None or JUDGE.prefer(POSTS[0], text, edited) == 1.0
