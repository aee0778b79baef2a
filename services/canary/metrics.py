"""Decides what is counted about rollouts, beside what ``andon.rpc`` counts for all services."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.canary.decisions import Kind
from services.canary.gates.gate import Verdict
from services.canary.gates.standard import standard_gates
from services.canary.platform import RecordedDecision
from services.canary.rollout import Phase, Rollout

LOOK_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)  # seconds
PROBLEMS = ("stable", "canary", "reward", "reference", "labeling", "metrics", "alertmanager")


class CanaryMetrics:
    """All metrics of the canary service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leads = Gauge(
            "andon_canary_leader", "1 while this process is the one that acts.", registry=registry
        )
        self.looks = Histogram(
            "andon_canary_look_seconds",
            "How long one look at a rollout took.",
            buckets=LOOK_BUCKETS,
            registry=registry,
        )
        self.failed_looks = Counter(
            "andon_canary_failed_looks_total", "Looks that an error broke off.", registry=registry
        )
        self._phase = Gauge(
            "andon_canary_phase",
            "1 for the phase that the newest rollout is in.",
            ["phase"],
            registry=registry,
        )
        self._percent = Gauge(
            "andon_canary_traffic_ratio",
            "The canary's share of the traffic, as it should be.",
            registry=registry,
        )
        self._decisions = Counter(
            "andon_canary_decisions_total", "Decisions taken.", ["decision"], registry=registry
        )
        self._problems = Counter(
            "andon_canary_problems_total",
            "What could not be asked while looking, by whom it was to be asked.",
            ["of"],
            registry=registry,
        )
        self._mean = Gauge(
            "andon_canary_gate_mean",
            "Mean of what a gate has seen; the larger, the better for the candidate.",
            ["gate"],
            registry=registry,
        )
        self._boundary = Gauge(
            "andon_canary_gate_boundary",
            "What the mean of an acceptable candidate lies above.",
            ["gate"],
            registry=registry,
        )
        self._seen = Gauge(
            "andon_canary_gate_observations", "How much a gate has seen.", ["gate"], registry=registry
        )
        self._verdict = Gauge(
            "andon_canary_gate_verdict",
            "1 for what a gate says.",
            ["gate", "verdict"],
            registry=registry,
        )
        for phase in Phase:
            self._phase.labels(phase.value)
        for kind in Kind:
            if kind is not Kind.CONTINUE:
                self._decisions.labels(kind.value)
        for problem in PROBLEMS:
            self._problems.labels(problem)
        for rule in standard_gates(with_people=True):
            self._boundary.labels(rule.name).set(rule.boundary)
            self._seen.labels(rule.name)
            for verdict in Verdict:
                self._verdict.labels(rule.name, verdict.value)

    def stands(self, rollout: Rollout) -> None:
        """Show a rollout as it stands."""
        for phase in Phase:
            self._phase.labels(phase.value).set(phase is rollout.phase)
        self._percent.set(rollout.canary_percent / 100)
        for gate in rollout.gates:
            name = gate.rule.name
            self._boundary.labels(name).set(gate.rule.boundary)
            self._seen.labels(name).set(gate.count)
            if gate.mean is not None:
                self._mean.labels(name).set(gate.mean)
            for verdict in Verdict:
                self._verdict.labels(name, verdict.value).set(verdict is gate.verdict)

    def decided(self, decision: RecordedDecision) -> None:
        """Count a decision."""
        self._decisions.labels(decision.decision.kind.value).inc()

    def had_problem(self, of: str) -> None:
        """Count something that could not be asked; ``of`` is one of ``PROBLEMS``."""
        self._problems.labels(of).inc()
