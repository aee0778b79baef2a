"""The values of an evaluation: what the report shows and ``report.json`` holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from andon.evaluation.overlap import novelty, rouge, tokens
from andon.evaluation.win_rate import WinRate


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySummary:
    """Means over the evaluated documents for one policy or baseline."""

    name: str
    version: str | None  # "policy/25"; None for baselines
    n: int
    length_words: float
    rouge1: float
    rouge2: float
    rouge_l: float
    novel_sentence_share: float
    novel_bigram_share: float
    gold_score: float | None  # the judge's score; None where there is no judge
    reward_score: float | None  # the reward model's score
    ended_share: float | None  # responses that ended by themselves; None for baselines


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSummary:
    """How far to believe the reward model; every figure a share in 0..1 on held-out documents."""

    accuracy: float
    accuracy_low: float  # 95 % interval
    accuracy_high: float
    n: int
    labeler_agreement: float | None  # two labelers on the same pair
    labeler_agreement_n: int
    longer_wins_accuracy: float
    gold_accuracy: float | None = None  # against the judge without the labelers' noise
    edit_test: Mapping[str, float] = field(default_factory=dict)  # edit -> share of originals preferred
    edit_test_n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One document with the texts of all policies, to read side by side."""

    document: str
    texts: Mapping[str, str]  # policy name -> text
    gold_scores: Mapping[str, float]
    reward_scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Metrics of one training stage over its steps."""

    stage: str  # "sft", "reward_model" or "ppo"
    steps: Sequence[int]
    metrics: Mapping[str, Sequence[float]]  # name -> one value per step; NaN where a step has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a run leaves for people and programs."""

    title: str
    notes: Sequence[str]  # what the reader must know, for example that the labelers are simulated
    seed: int
    win_rates: Sequence[WinRate]
    policies: Sequence[PolicySummary]
    kl_nats: float  # mean over responses of log pi - log pi_ref, policy's own samples
    reward_model: RewardModelSummary | None  # None where there were no held-out comparisons
    curves: Sequence[Curve]
    samples: Sequence[SampleRow]
    seconds: Mapping[str, float]  # by phase
    model_store: str
    models: Mapping[str, str]  # role -> version
    config: Mapping[str, object]


def summarise_policy(
    name: str,
    texts: Sequence[str],
    documents: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    version: str | None = None,
    gold_scores: Sequence[float] | None = None,
    reward_scores: Sequence[float] | None = None,
    ended: Sequence[bool] | None = None,
) -> PolicySummary:
    """Means over documents; all sequences are parallel. Raises ValueError when there are no texts."""
    if not texts:
        raise ValueError("no texts to summarise")
    overlaps = [rouge(text, given) for text, given in zip(texts, references, strict=True)]
    novelties = [novelty(text, document) for text, document in zip(texts, documents, strict=True)]
    return PolicySummary(
        name=name,
        version=version,
        n=len(texts),
        length_words=statistics.fmean(len(tokens(text)) for text in texts),
        rouge1=statistics.fmean(overlap.rouge1 for overlap in overlaps),
        rouge2=statistics.fmean(overlap.rouge2 for overlap in overlaps),
        rouge_l=statistics.fmean(overlap.rouge_l for overlap in overlaps),
        novel_sentence_share=statistics.fmean(item.novel_sentence_share for item in novelties),
        novel_bigram_share=statistics.fmean(item.novel_bigram_share for item in novelties),
        gold_score=statistics.fmean(gold_scores) if gold_scores else None,
        reward_score=statistics.fmean(reward_scores) if reward_scores else None,
        ended_share=statistics.fmean(ended) if ended else None,
    )
