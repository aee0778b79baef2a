"""Decides what is counted about calls and about the model worker, the same for every service.

The interceptor feeds ``CallMetrics``; ``andon.rpc.worker`` feeds ``WorkerMetrics``, which a service with a
model makes in its own ``metrics.py``. Known label values start at 0, so that a rate exists before the first
error.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from andon.modeling.versions import ModelVersion

CALL_SECONDS_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# What our servers answer; codes that only gRPC itself makes appear when they first happen.
EXPECTED_CODES = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "INTERNAL",
)

_CALL_LABELS = ("grpc_service", "grpc_method")


class CallMetrics:
    """Calls by method: how many ended with which code, how long they took, how many are in progress."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.handled = Counter(
            "andon_rpc_handled_total",
            "Calls ended, by status code.",
            [*_CALL_LABELS, "grpc_code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "andon_rpc_seconds",
            "Time from the arrival of a call to its end.",
            _CALL_LABELS,
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "andon_rpc_in_progress", "Calls in progress.", _CALL_LABELS, registry=registry
        )
        self.rate_limited = Counter(
            "andon_rpc_rate_limited_total",
            "Calls refused because their caller made too many.",
            _CALL_LABELS,
            registry=registry,
        )

    def expect(self, methods: Iterable[tuple[str, str]]) -> None:
        """Start the series of these (service, method) pairs at 0."""
        for service, method in methods:
            self.seconds.labels(service, method)
            self.in_progress.labels(service, method)
            self.rate_limited.labels(service, method)
            for code in EXPECTED_CODES:
                self.handled.labels(service, method, code)


class TlsMetrics:
    """The certificate of the gRPC port. Made only where the port is encrypted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.expiry = Gauge(
            "andon_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends to be good, in seconds since 1970. No series without TLS.",
            registry=registry,
        )
        self.rotations = Counter(
            "andon_tls_rotations_total",
            "Changes of the certificate's files, by whether they could be used.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("ok", "refused"):
            self.rotations.labels(outcome)


class WorkerMetrics:
    """The queue before the model thread, and the thread's work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waiting_calls = Gauge(
            "andon_model_waiting_calls", "Calls that wait for the model thread.", registry=registry
        )
        self.running_calls = Gauge(
            "andon_model_running_calls", "Calls that the model thread works on: 0 or 1.", registry=registry
        )
        self.queue_seconds = Histogram(
            "andon_model_queue_seconds",
            "Time a call waited for the model thread.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "andon_model_compute_seconds",
            "Time the model thread worked on a call.",
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "andon_model_rejected_calls_total", "Calls refused because the queue was full.", registry=registry
        )
        self.abandoned = Counter(
            "andon_model_abandoned_calls_total",
            "Calls dropped or broken off because nobody waited for the answer any more.",
            ["cause"],
            registry=registry,
        )
        for cause in ("cancelled", "deadline"):
            self.abandoned.labels(cause)


class ModelMetrics:
    """Which model a service serves, and how its loads went."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Gauge(
            "andon_model_info",
            "Always 1; the labels name the version in use. No series while no model is loaded.",
            ["model_name", "model_version"],
            registry=registry,
        )
        self._load_time = Gauge(
            "andon_model_load_timestamp_seconds",
            "When the model in use was loaded, in seconds since 1970; 0 without a model.",
            registry=registry,
        )
        self._loads = Counter(
            "andon_model_loads_total", "Attempts to load a model.", ["outcome"], registry=registry
        )
        for outcome in ("ok", "failed"):
            self._loads.labels(outcome)

    def loaded(self, version: ModelVersion) -> None:
        """A model is in use from now on."""
        self._info.clear()
        self._info.labels(version.family, str(version.version)).set(1)
        self._load_time.set_to_current_time()
        self._loads.labels("ok").inc()

    def load_failed(self) -> None:
        """A model could not be loaded; what was in use stays."""
        self._loads.labels("failed").inc()
