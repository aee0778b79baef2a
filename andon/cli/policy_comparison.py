"""Decides what is compared when policies are evaluated: every model with the references, lead-3 and each
other.

``andon evaluate`` and ``andon demo`` call it with texts that were written at temperature 0. Judges are the
gold judge where the facts are known, the reward model always, and ROUGE-L between models where there is no
gold judge; against the references themselves ROUGE-L would be no judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from andon.cli.measurements import Advance, Measuring, PolicyTexts, gold_scores
from andon.corpus.builtin.generate import Post
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError
from andon.evaluation.overlap import lead_sentences, rouge
from andon.evaluation.summary import PolicySummary, SampleRow, summarise_policy
from andon.evaluation.win_rate import WinRate, win_rate
from andon.modeling.versions import ModelVersion

REFERENCES = "reference"
LEAD = "lead-3"
GOLD_JUDGE = "gold"
REWARD_JUDGE = "reward model"
ROUGE_JUDGE = "ROUGE-L"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How policies and baselines compare on one set of documents."""

    win_rates: tuple[WinRate, ...]
    summaries: tuple[PolicySummary, ...]
    samples: tuple[SampleRow, ...]


def compare_policies(
    measuring: Measuring,
    models: Mapping[str, ModelVersion],
    documents: Sequence[DocumentRecord],
    posts: Sequence[Post] | None,
    *,
    max_new_tokens: int,
    shown_samples: int,
    advance: Advance | None = None,
) -> Comparison:
    """Compares the named models, the most important one first, on documents with reference summaries."""
    written = [
        measuring.greedy_texts(name, model, documents, max_new_tokens=max_new_tokens, advance=advance)
        for name, model in models.items()
    ]
    baselines = [
        PolicyTexts(
            name=REFERENCES,
            version=None,
            texts=tuple(record.summaries[0] for record in documents),
            ended=None,
        ),
        PolicyTexts(
            name=LEAD,
            version=None,
            texts=tuple(lead_sentences(record.document) for record in documents),
            ended=None,
        ),
    ]
    roster = [*written, *baselines]
    texts = {policy.name: policy.texts for policy in roster}
    scores = _scores_by_judge(measuring, roster, documents, posts)
    summaries = tuple(
        summarise_policy(
            policy.name,
            policy.texts,
            [record.document for record in documents],
            [record.summaries for record in documents],
            version=None if policy.version is None else str(policy.version),
            gold_scores=scores[GOLD_JUDGE][policy.name] if GOLD_JUDGE in scores else None,
            reward_scores=scores[REWARD_JUDGE].get(policy.name),
            ended=policy.ended,
        )
        for policy in roster
    )
    samples = tuple(
        SampleRow(
            document=documents[index].document,
            texts={name: rows[index] for name, rows in texts.items()},
            gold_scores=_row(scores.get(GOLD_JUDGE, {}), index),
            reward_scores=_row(scores[REWARD_JUDGE], index),
        )
        for index in range(min(shown_samples, len(documents)))
    )
    return Comparison(win_rates=tuple(_win_rates(list(models), scores)), summaries=summaries, samples=samples)


def _scores_by_judge(
    measuring: Measuring,
    roster: Sequence[PolicyTexts],
    documents: Sequence[DocumentRecord],
    posts: Sequence[Post] | None,
) -> dict[str, dict[str, list[float]]]:
    """judge -> policy -> one score per document."""
    scores = {REWARD_JUDGE: _reward_scores(measuring, roster, [record.document for record in documents])}
    if posts is not None:
        scores[GOLD_JUDGE] = gold_scores(posts, {policy.name: policy.texts for policy in roster})
    else:
        scores[ROUGE_JUDGE] = {
            policy.name: [
                rouge(text, record.summaries).rouge_l
                for text, record in zip(policy.texts, documents, strict=True)
            ]
            for policy in roster
            if policy.name != REFERENCES
        }
    return scores


def _reward_scores(
    measuring: Measuring, roster: Sequence[PolicyTexts], documents: Sequence[str]
) -> dict[str, list[float]]:
    """policy -> one score per document; without those whose texts are too long for the reward model."""
    try:
        rows = measuring.reward_scores(
            documents, list(zip(*(policy.texts for policy in roster), strict=True))
        )
    except InvalidArgumentError as error:
        if error.reason != "SEQUENCE_TOO_LONG":
            raise
        if len(roster) == 1:
            return {}
        # Three sentences of a long document may be more than the model takes: score each policy by itself.
        alone = [_reward_scores(measuring, [policy], documents) for policy in roster]
        return {name: scores for found in alone for name, scores in found.items()}
    return {policy.name: [row[place] for row in rows] for place, policy in enumerate(roster)}


def _win_rates(models: Sequence[str], scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[WinRate]:
    found: list[WinRate] = []
    for place, policy in enumerate(models):
        for against in (REFERENCES, *models[place + 1 :], LEAD):
            for judge in (GOLD_JUDGE, ROUGE_JUDGE, REWARD_JUDGE):
                by_policy = scores.get(judge, {})
                if policy in by_policy and against in by_policy:
                    found.append(
                        win_rate(
                            by_policy[policy], by_policy[against], policy=policy, against=against, judge=judge
                        )
                    )
    return found


def _row(scores: Mapping[str, Sequence[float]], index: int) -> dict[str, float]:
    return {name: values[index] for name, values in scores.items()}
