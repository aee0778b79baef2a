"""Decides what is counted about the reward service, beside what ``andon.rpc`` counts for all."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from andon.rpc.metrics import ModelMetrics, WorkerMetrics
from services.reward.scorer import SummaryScore

TOKENS_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)
SCORE_BUCKETS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)


class RewardMetrics:
    """All metrics of the reward service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.worker = WorkerMetrics(registry)
        self.model = ModelMetrics(registry)
        self.not_finite = Counter(
            "andon_reward_not_finite_total",
            "Calls refused because the model gave a score that is no finite number.",
            registry=registry,
        )
        self._documents = Counter(
            "andon_reward_documents_total", "Documents whose summaries were scored.", registry=registry
        )
        self._scores = Histogram(
            "andon_reward_score",
            "Scores given, after normalisation.",
            buckets=SCORE_BUCKETS,
            registry=registry,
        )
        # A histogram with buckets below 0 has no sum in Prometheus, so the mean needs a series of its own.
        self._mean_score = Gauge(
            "andon_reward_mean_score",
            "Mean score of the last call. When it rises, a policy learns, or cheats.",
            registry=registry,
        )
        self._summary_tokens = Histogram(
            "andon_reward_summary_tokens",
            "Tokens of the summaries scored, end of sequence included.",
            buckets=TOKENS_BUCKETS,
            registry=registry,
        )

    def answered(self, scores: Sequence[Sequence[SummaryScore]]) -> None:
        """Count a call that was answered."""
        self._documents.inc(len(scores))
        for row in scores:
            for summary in row:
                self._scores.observe(summary.score)
                self._summary_tokens.observe(summary.token_count)
        self._mean_score.set(fmean(summary.score for row in scores for summary in row))
