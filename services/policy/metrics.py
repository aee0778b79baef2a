"""Decides what is counted about the policy service, beside what ``andon.rpc`` counts for all.

The set that users of inference servers know: load, time to first token, inter-token latency, queue time,
tokens, finish reasons, use of the cache; and how weight updates went.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from andon.rpc.metrics import CALL_SECONDS_BUCKETS, ModelMetrics
from services.policy.call import FinishReason

STEP_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TOKENS_BUCKETS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

# How a weight update can end, by the reason of its error.
UPDATE_RESULTS = (
    "ok",
    "unchanged",
    "withdrawn",
    "WEIGHTS_MALFORMED",
    "WEIGHTS_SHAPE_MISMATCH",
    "WEIGHTS_CHECKSUM_MISMATCH",
    "WEIGHTS_TRUNCATED",
    "WEIGHTS_NOT_FINITE",
    "MODEL_VERSION_CONFLICT",
    "WEIGHTS_BASE_MISMATCH",
    "WEIGHTS_NOT_SHARED",
    "WEIGHTS_OVERTAKEN",
    "other",
)


class PolicyMetrics:
    """All metrics of the policy service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.model = ModelMetrics(registry)
        self.running_sequences = Gauge(
            "andon_policy_running_sequences", "Samples that are being written.", registry=registry
        )
        self.waiting_calls = Gauge(
            "andon_policy_waiting_calls", "Calls of which nothing has begun yet.", registry=registry
        )
        self.cache_usage = Gauge(
            "andon_policy_cache_usage_ratio",
            "Share of the cache reserved by running samples and their prompts.",
            registry=registry,
        )
        self.rejected_calls = Counter(
            "andon_policy_rejected_calls_total",
            "Calls refused because the queue was full.",
            registry=registry,
        )
        self.cancelled_calls = Counter(
            "andon_policy_cancelled_calls_total",
            "Calls dropped because nobody waited for the answer any more.",
            registry=registry,
        )
        self.failed_calls = Counter(
            "andon_policy_failed_calls_total",
            "Calls that ended with an error after they were queued.",
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "andon_policy_queue_seconds",
            "Time from a call's arrival to the first model work on it.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "andon_policy_time_to_first_token_seconds",
            "Time from a call's arrival to a prompt's first tokens, once per prompt.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "andon_policy_inter_token_seconds",
            "Time between two tokens of the running samples, once per step for all of them.",
            buckets=STEP_SECONDS_BUCKETS,
            registry=registry,
        )
        self.call_seconds = Histogram(
            "andon_policy_call_seconds",
            "Time from a call's arrival to its last token.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "andon_policy_prompt_tokens_total",
            "Prompt tokens read; a prompt counts once for all its samples.",
            registry=registry,
        )
        self.generated_tokens = Counter(
            "andon_policy_generated_tokens_total", "Tokens written.", registry=registry
        )
        self.response_tokens = Histogram(
            "andon_policy_response_tokens",
            "Tokens of a finished sample.",
            buckets=TOKENS_BUCKETS,
            registry=registry,
        )
        self.finished_samples = Counter(
            "andon_policy_finished_samples_total",
            "Samples finished, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in FinishReason:
            self.finished_samples.labels(reason.value)
        self._weight_updates = Counter(
            "andon_policy_weight_updates_total",
            "Weight updates, by result: ok, unchanged, withdrawn by the sender, or the reason of the error.",
            ["result"],
            registry=registry,
        )
        for result in UPDATE_RESULTS:
            self._weight_updates.labels(result)
        self._weight_update_seconds = Histogram(
            "andon_policy_weight_update_seconds",
            "Time from a header's arrival, or its commit's, to the first step with the new weights.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self._weight_bytes = Counter(
            "andon_policy_weight_bytes_total",
            "Bytes of updates in use, by how they came: full or delta over gRPC, or shared_memory.",
            ["way"],
            registry=registry,
        )
        for way in ("full", "delta", "shared_memory"):
            self._weight_bytes.labels(way)

    def weight_update_ended(self, result: str) -> None:
        """Count an update; reasons that are not expected count as "other"."""
        self._weight_updates.labels(result if result in UPDATE_RESULTS else "other").inc()

    def weights_taken(self, way: str, *, size_bytes: int, seconds: float) -> None:
        """Count an update that is in use."""
        self.weight_update_ended("ok")
        self._weight_bytes.labels(way).inc(size_bytes)
        self._weight_update_seconds.observe(seconds)
