"""The trainer's Prometheus metrics. Steps' own metrics become gauges named after stage and metric."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trainer.run_records import RunState, StageName

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
        self._stage_gauges: dict[str, Gauge] = {}

    def state_changed(self, state: RunState) -> None:
        """Show the latest run's state."""
        for other in RunState:
            self.run_state.labels(other.value).set(1 if other is state else 0)

    def step_done(self, stage: StageName, *, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show what a step reported: ``kl_nats`` of PPO is ``andon_trainer_ppo_kl_nats``."""
        self.steps.labels(stage.value).inc()
        self.run_step.set(step)
        self.run_total_steps.set(total)
        for name, value in metrics.items():
            full_name = re.sub(r"[^a-z0-9_]", "_", f"andon_trainer_{stage.value}_{name}".lower())
            if full_name not in self._stage_gauges:
                self._stage_gauges[full_name] = Gauge(
                    full_name, f"{name} of the latest {stage.value} step.", registry=self._registry
                )
            self._stage_gauges[full_name].set(value)
