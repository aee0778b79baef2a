"""What this service counts. No labeler, batch or text ever stands in a label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is computed of the newest answers from time to time; None where there is too little to say."""

    labeler_agreement: float | None
    known_items_recent: float | None
    known_items_baseline: float | None
    num_waiting_tasks: int
    num_active_labelers: int


class FiguresCollector(Collector):
    """Shows the figures that were computed last. What is unknown has no series: no alarm can rest on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: Figures | None = None
        registry.register(self)

    def show(self, figures: Figures | None) -> None:
        """Show these from now on; None: nothing is known."""
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """The families, always the same, with what is known."""
        figures = self._figures
        agreement = GaugeMetricFamily(
            "andon_labeling_agreement_ratio",
            "Share of pairs of labelers' labels of one pair of candidates that are the same, over the newest "
            "answers. No series on fewer than 30 pairs.",
        )
        known_items = GaugeMetricFamily(
            "andon_labeling_known_item_agreement_ratio",
            "How right labelers' answers are to items whose answer researchers know: of the newest answers "
            "(recent) and of those before (baseline). No series on fewer than 30 answers.",
            labels=["window"],
        )
        waiting = GaugeMetricFamily(
            "andon_labeling_waiting_tasks",
            "Tasks with a place that a labeler could have now, in batches that are open. Of more than "
            "100,000 places only so many are looked at.",
        )
        active = GaugeMetricFamily("andon_labeling_active_labelers", "People who have answered lately.")
        if figures is not None:
            if figures.labeler_agreement is not None:
                agreement.add_metric([], figures.labeler_agreement)
            for window, value in (
                ("recent", figures.known_items_recent),
                ("baseline", figures.known_items_baseline),
            ):
                if value is not None:
                    known_items.add_metric([window], value)
            waiting.add_metric([], figures.num_waiting_tasks)
            active.add_metric([], figures.num_active_labelers)
        return [agreement, known_items, waiting, active]


class LabelingMetrics:
    """All metrics of the labeling service, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tasks_submitted = Counter(
            "andon_labeling_tasks_submitted_total", "Tasks taken in.", registry=registry
        )
        self.leases_granted = Counter(
            "andon_labeling_leases_granted_total",
            "Tasks handed to labelers, those that came back and went out again included.",
            registry=registry,
        )
        self.answers_recorded = Counter(
            "andon_labeling_answers_recorded_total", "Answers recorded.", ["decision"], registry=registry
        )
        self.answers_imported = Counter(
            "andon_labeling_answers_imported_total",
            "Answers taken in that were given elsewhere.",
            registry=registry,
        )
        self.tasks_skipped = Counter(
            "andon_labeling_tasks_skipped_total", "Tasks that labelers gave back.", registry=registry
        )
        self.requests_repeated = Counter(
            "andon_labeling_requests_repeated_total",
            "Requests that were answered before and got the first answer.",
            ["method"],
            registry=registry,
        )
        self.comparisons_exported = Counter(
            "andon_labeling_comparisons_exported_total", "Comparisons sent to readers.", registry=registry
        )
        self.streams = Gauge(
            "andon_labeling_streams", "Streams that are open.", ["stream"], registry=registry
        )
        self.cord_pulled = Gauge(
            "andon_cord_pulled",
            "1 while the cord is pulled and training must stand still.",
            registry=registry,
        )
        self.cord_events = Counter(
            "andon_cord_events_total", "Pulls and releases of the cord.", ["action"], registry=registry
        )
        self.webhook_alerts = Counter(
            "andon_cord_webhook_alerts_total",
            "Alerts that came to the webhook: pulled the cord, repeated one that had, ignored as none of the "
            "cord's business. A request that was refused counts once.",
            ["result"],
            registry=registry,
        )
        self.database_seconds = Histogram(
            "andon_labeling_database_seconds",
            "Time of a database call, waiting for a thread included.",
            ["access"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.database_calls = Gauge(
            "andon_labeling_database_calls", "Database calls that wait or run.", registry=registry
        )
        self.database_failures = Counter(
            "andon_labeling_database_failures_total",
            "Transactions that failed because the database was locked, full, gone or broken.",
            registry=registry,
        )
        self.figures = FiguresCollector(registry)
        for decision in ("choice", "ranking"):
            self.answers_recorded.labels(decision)
        for method in (
            "SubmitTasks",
            "SubmitAnswers",
            "SkipTasks",
            "PullCord",
            "ReleaseCord",
            "site.cord.pull",
            "site.cord.release",
            "alerts.pull",
        ):
            self.requests_repeated.labels(method)
        for stream in ("export", "cord"):
            self.streams.labels(stream)
        for action in ("pull", "release"):
            self.cord_events.labels(action)
        for result in ("pulled", "repeated", "ignored", "refused"):
            self.webhook_alerts.labels(result)
        for access in ("read", "write"):
            self.database_seconds.labels(access)
