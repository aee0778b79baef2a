"""Decides what is counted about the reference service, beside what ``andon.rpc`` counts for all."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from andon.modeling.sequences import PromptGroup
from andon.rpc.metrics import ModelMetrics, WorkerMetrics

TOKENS_BUCKETS = (32, 128, 512, 2048, 8192, 32768, 131072, 524288)


class ReferenceMetrics:
    """All metrics of the reference service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.worker = WorkerMetrics(registry)
        self.model = ModelMetrics(registry)
        self.not_finite = Counter(
            "andon_reference_not_finite_total",
            "Calls refused because the model gave a log-probability that is no finite number.",
            registry=registry,
        )
        self._responses = Counter(
            "andon_reference_responses_total",
            "Responses whose log-probabilities were given.",
            registry=registry,
        )
        self._tokens = Counter(
            "andon_reference_tokens_total", "Tokens read, each prompt once.", ["part"], registry=registry
        )
        for part in ("prompt", "response"):
            self._tokens.labels(part)
        self._call_tokens = Histogram(
            "andon_reference_call_tokens",
            "Tokens of one call, prompts and responses together.",
            buckets=TOKENS_BUCKETS,
            registry=registry,
        )

    def answered(self, groups: list[PromptGroup]) -> None:
        """Count a call that was answered."""
        prompt_tokens = sum(len(group.prompt) for group in groups)
        total_tokens = sum(group.num_tokens for group in groups)
        self._responses.inc(sum(len(group.responses) for group in groups))
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("response").inc(total_tokens - prompt_tokens)
        self._call_tokens.observe(total_tokens)
