"""The trainer's Prometheus metrics. Steps' own metrics become gauges named after stage and metric."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trainer.guards.guard import Action, Alarm, Finding, GuardName
from services.trainer.run_records import RunState, StageName

_GUARD_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WEIGHTS_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CHECKPOINT_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class TrainerMetrics:
    """Counted by the run thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.run_state = Gauge(
            "andon_trainer_run_state",
            "1 for the state of the latest run, 0 for the others.",
            ["state"],
            registry=registry,
        )
        for state in RunState:
            self.run_state.labels(state.value)
        self.run_step = Gauge("andon_trainer_run_step", "Steps done of the latest run.", registry=registry)
        self.run_total_steps = Gauge(
            "andon_trainer_run_total_steps",
            "Steps in all of the latest run; 0 while unknown.",
            registry=registry,
        )
        self.steps = Counter(
            "andon_trainer_steps_total", "Steps done, by stage.", ["stage"], registry=registry
        )
        self.runs_ended = Counter(
            "andon_trainer_runs_ended_total",
            "Runs that left their thread, by state.",
            ["state"],
            registry=registry,
        )
        for state in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.INTERRUPTED):
            self.runs_ended.labels(state.value)
        for stage in StageName:
            self.steps.labels(stage.value)
        self.checkpoint_seconds = Histogram(
            "andon_trainer_checkpoint_seconds",
            "Time to write a checkpoint.",
            buckets=_CHECKPOINT_BUCKETS_S,
            registry=registry,
        )
        self.checkpoints_passed_over = Counter(
            "andon_trainer_checkpoints_passed_over_total",
            "Damaged checkpoints found on resuming.",
            registry=registry,
        )
        self.models_published = Counter(
            "andon_trainer_models_published_total",
            "Versions written, by where to: the model store or only the samplers.",
            ["destination"],
            registry=registry,
        )
        for destination in ("store", "samplers"):
            self.models_published.labels(destination)
        self._weights_sent_bytes = Counter(
            "andon_trainer_weights_sent_bytes_total",
            "Bytes of weights that samplers acknowledged: full or delta over gRPC, or shared_memory.",
            ["way"],
            registry=registry,
        )
        self._weights_sent_seconds = Histogram(
            "andon_trainer_weights_sent_seconds",
            "Time that an update waits until a replica has acknowledged its weights, by way.",
            ["way"],
            buckets=_WEIGHTS_BUCKETS_S,
            registry=registry,
        )
        for way in ("full", "delta", "shared_memory"):
            self._weights_sent_bytes.labels(way)
            self._weights_sent_seconds.labels(way)
        self.peer_waits = Counter(
            "andon_trainer_peer_waits_total",
            "Times a run had to wait for another service.",
            registry=registry,
        )
        self.cord_holding = Gauge(
            "andon_trainer_cord_holding",
            "1 while the cord, pulled or unheard, holds the run.",
            registry=registry,
        )
        self.cord_unheard_seconds = Gauge(
            "andon_trainer_cord_unheard_seconds",
            "How long the cord has not been heard; 0 while no run listens to it.",
            registry=registry,
        )
        self.guard_holding = Gauge(
            "andon_trainer_guard_holding", "1 while a guard by itself holds the run.", registry=registry
        )
        self.last_step_time = Gauge(
            "andon_trainer_last_step_timestamp_seconds",
            "When a step was reported last, in seconds since 1970; 0 before the first.",
            registry=registry,
        )
        self.run_start_time = Gauge(
            "andon_trainer_run_start_timestamp_seconds",
            "When the latest run began or was taken up again, in seconds since 1970; 0 before the first.",
            registry=registry,
        )
        self.versions_withheld = Counter(
            "andon_trainer_versions_withheld_total",
            "Updates whose weights a guard kept from the samplers.",
            registry=registry,
        )
        self.guard_seconds = Histogram(
            "andon_trainer_guard_seconds",
            "Time that all guards took for one update.",
            buckets=_GUARD_BUCKETS_S,
            registry=registry,
        )
        self._guard_statistic = Gauge(
            "andon_trainer_guard_statistic",
            "What a guard measured at the latest update; it alarms above its threshold.",
            ["guard"],
            registry=registry,
        )
        self._guard_threshold = Gauge(
            "andon_trainer_guard_threshold", "Above which a guard alarms.", ["guard"], registry=registry
        )
        self._guard_alarming = Gauge(
            "andon_trainer_guard_alarming",
            "1 when the guard alarmed at the latest update that it looked at.",
            ["guard"],
            registry=registry,
        )
        self._guard_checks = Counter(
            "andon_trainer_guard_checks_total",
            "Updates that a guard looked at.",
            ["guard"],
            registry=registry,
        )
        self._guard_alarms = Counter(
            "andon_trainer_guard_alarms_total",
            "Alarms, by guard and by what they led to.",
            ["guard", "action"],
            registry=registry,
        )
        for guard in GuardName:
            self._guard_alarming.labels(guard.value)
            self._guard_checks.labels(guard.value)
            for action in Action:
                self._guard_alarms.labels(guard.value, action.value)
        self._stage_gauges: dict[str, Gauge] = {}

    def weights_sent(self, way: str, *, size_bytes: int, seconds: float) -> None:
        """Count weights that a sampler acknowledged."""
        self._weights_sent_bytes.labels(way).inc(size_bytes)
        self._weights_sent_seconds.labels(way).observe(seconds)

    def run_began(self) -> None:
        """A run begins, or goes on in a new thread: what guards said of the one before is over."""
        self.run_start_time.set(math.ceil(time.time()))
        for guard in GuardName:
            self._guard_alarming.labels(guard.value).set(0)

    def guards_checked(self, findings: Sequence[Finding], *, seconds: float) -> None:
        """Show what the guards found at an update."""
        self.guard_seconds.observe(seconds)
        for finding in findings:
            self._guard_checks.labels(finding.guard.value).inc()
            self._guard_statistic.labels(finding.guard.value).set(finding.statistic)
            self._guard_threshold.labels(finding.guard.value).set(finding.threshold)
            self._guard_alarming.labels(finding.guard.value).set(1 if finding.alarming else 0)

    def alarmed(self, alarms: Sequence[Alarm]) -> None:
        """Count alarms."""
        for alarm in alarms:
            self._guard_alarms.labels(alarm.finding.guard.value, alarm.action.value).inc()
            self._guard_alarming.labels(alarm.finding.guard.value).set(1)

    def state_changed(self, state: RunState) -> None:
        """Show the latest run's state."""
        for other in RunState:
            self.run_state.labels(other.value).set(1 if other is state else 0)

    def step_done(self, stage: StageName, *, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show what a step reported: ``kl_nats`` of PPO is ``andon_trainer_ppo_kl_nats``."""
        self.steps.labels(stage.value).inc()
        self.run_step.set(step)
        self.run_total_steps.set(total)
        self.last_step_time.set_to_current_time()
        for name, value in metrics.items():
            full_name = re.sub(r"[^a-z0-9_]", "_", f"andon_trainer_{stage.value}_{name}".lower())
            if full_name not in self._stage_gauges:
                self._stage_gauges[full_name] = Gauge(
                    full_name, f"{name} of the latest {stage.value} step.", registry=self._registry
                )
            self._stage_gauges[full_name].set(value)
