"""What simulated labelers think."""

import pytest

from andon.cli.simulated_labelers import GoldOpinions, RougeOpinions, opinions_for, patiently
from andon.corpus.builtin.generate import generate_posts
from andon.corpus.builtin.judge import GoldJudge
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError, UnavailableError


def test_gold_opinions_follow_the_judge_more_often_than_not() -> None:
    posts = generate_posts(60, seed=3)
    opinions, judge = GoldOpinions(posts, seed=0), GoldJudge()
    agreed = decided = 0
    for first, second in zip(posts[::2], posts[1::2], strict=True):
        texts = [first.reference, second.reference]  # the other post's reference states wrong facts
        gold = judge.prefer(first, *texts)
        answer = opinions.answer(1, first.document, texts)
        if gold != 0.5 and len(answer.tiers) == 2:
            decided += 1
            agreed += (answer.choice == 0) == (gold == 1.0)
    assert decided > 20
    assert agreed / decided > 0.9


def test_labelers_differ_and_each_stays_with_what_they_said() -> None:
    posts = generate_posts(40, seed=4)
    opinions = GoldOpinions(posts, seed=0)
    pairs = [(post.document, [post.reference, post.reference.split(".")[0] + "."]) for post in posts]
    by_labeler = [
        [opinions.answer(number, document, texts).choice for document, texts in pairs] for number in (1, 2)
    ]
    assert by_labeler[0] != by_labeler[1]
    assert by_labeler[0] == [opinions.answer(1, document, texts).choice for document, texts in pairs]


def test_rouge_prefers_what_is_nearer_to_the_best_reference() -> None:
    record = DocumentRecord(
        document_id="1", document="d", summaries=("the cat sat on the mat", "a dog barked at night")
    )
    opinions = RougeOpinions([record])
    answer = opinions.answer(
        1, "d", ["nothing alike here", "a dog barked", "the cat sat on the mat", "a dog barked"]
    )
    assert answer.tiers == ((2,), (1, 3), (0,))
    assert answer == opinions.answer(
        7, "d", ["nothing alike here", "a dog barked", "the cat sat on the mat", "a dog barked"]
    )


def test_an_unknown_document_is_nobodys_business() -> None:
    for opinions in (GoldOpinions([], seed=0), RougeOpinions([])):
        with pytest.raises(InvalidArgumentError, match="no opinion"):
            opinions.answer(1, "d", ["a", "b"])


def test_opinions_come_from_facts_then_from_references() -> None:
    post = generate_posts(1, seed=1)[0]
    known = DocumentRecord(
        document_id="1", document=post.document, summaries=(post.reference,), facts=dict(post.facts)
    )
    real = DocumentRecord(document_id="2", document="d", summaries=("s",))
    assert isinstance(opinions_for([known], seed=0), GoldOpinions)
    assert isinstance(opinions_for([known, real], seed=0), RougeOpinions)
    with pytest.raises(InvalidArgumentError):
        opinions_for([DocumentRecord(document_id="3", document="d")], seed=0)


def test_patience_outlasts_a_restart_and_then_ends() -> None:
    failures = [UnavailableError("down")]

    def call() -> str:
        if failures:
            raise failures.pop()
        return "up"

    assert patiently(call) == "up"

    def never() -> str:
        raise UnavailableError("down")

    with pytest.raises(UnavailableError):
        patiently(never, patience_s=0)
