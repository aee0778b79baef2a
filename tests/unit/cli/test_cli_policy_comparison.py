"""Which policies are compared with what, by whom."""

from collections.abc import Sequence
from typing import Any, cast

from andon.cli.measurements import Measuring, PolicyTexts
from andon.cli.policy_comparison import compare_policies
from andon.corpus.builtin.generate import generate_posts
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError
from andon.modeling.versions import ModelVersion

MODELS = {"ppo": ModelVersion("policy", 3), "sft": ModelVersion("sft", 1)}


class FakeMeasuring:
    """Every model writes its own name; a text scores its length and may have 40 characters at most."""

    def greedy_texts(
        self, name: str, model: ModelVersion, documents: Sequence[DocumentRecord], **_: Any
    ) -> PolicyTexts:
        return PolicyTexts(
            name=name, version=model, texts=(name,) * len(documents), ended=(True,) * len(documents)
        )

    def reward_scores(self, documents: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        if any(len(text) > 40 for row in texts for text in row):
            raise InvalidArgumentError("too long", reason="SEQUENCE_TOO_LONG")
        return [[float(len(text)) for text in row] for row in texts]


def compare(documents: Sequence[DocumentRecord], posts: Any = None) -> Any:
    return compare_policies(
        cast(Measuring, FakeMeasuring()), MODELS, documents, posts, max_new_tokens=5, shown_samples=1
    )


def test_real_documents_have_rouge_between_models_and_the_reward_model_throughout() -> None:
    documents = [
        DocumentRecord(document_id=str(n), document="one two . three .", summaries=("sft one",))
        for n in range(4)
    ]
    result = compare(documents)
    rates = {(rate.policy, rate.against, rate.judge): rate.rate for rate in result.win_rates}
    assert ("ppo", "reference", "ROUGE-L") not in rates  # the references judge nothing against themselves
    assert rates["ppo", "sft", "ROUGE-L"] == 0.0
    assert rates["ppo", "sft", "reward model"] == 0.5
    assert rates["sft", "reference", "reward model"] == 0.0
    assert [summary.name for summary in result.summaries] == ["ppo", "sft", "reference", "lead-3"]
    assert result.samples[0].texts["reference"] == "sft one"


def test_simulated_posts_are_judged_by_what_is_true() -> None:
    posts = generate_posts(5, seed=1)
    documents = [
        DocumentRecord(
            document_id=post.post_id, document=post.document[:40], summaries=(post.reference[:40],)
        )
        for post in posts
    ]
    rates = {
        (rate.against, rate.judge) for rate in compare(documents, posts).win_rates if rate.policy == "ppo"
    }
    assert rates == {
        (against, judge) for against in ("reference", "sft", "lead-3") for judge in ("gold", "reward model")
    }


def test_a_baseline_that_the_reward_model_cannot_read_is_left_to_the_other_judges() -> None:
    document = "a long sentence of more than forty characters . and another ."
    result = compare([DocumentRecord(document_id="1", document=document, summaries=("short",))])
    judges = {rate.judge for rate in result.win_rates if rate.against == "lead-3"}
    assert judges == {"ROUGE-L"}
    by_name = {summary.name: summary for summary in result.summaries}
    assert by_name["lead-3"].reward_score is None
    assert by_name["sft"].reward_score == 3.0
