#!/usr/bin/env python3
"""Write docs/metrics.md: every metric of every service, taken from the code that makes them.

    python -m scripts.metrics_table           # write it
    python -m scripts.metrics_table --check   # fail when it is not what the code says

Each service's own metrics class is made on a registry of its own, and what it registered is listed. Numbers
that a stage reports become gauges when it first reports them; their names stand in STAGE_NUMBERS and,
for PPO, in services/trainer/README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from andon.observability.exporter import register_process_metrics
from andon.rpc.metrics import CallMetrics, TlsMetrics
from services.canary.metrics import CanaryMetrics
from services.labeling.metrics import LabelingMetrics
from services.labeling.web.metrics import SiteMetrics
from services.policy.metrics import PolicyMetrics
from services.reference.metrics import ReferenceMetrics
from services.reward.metrics import RewardMetrics
from services.trainer.metrics import TrainerMetrics

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "metrics.md"
TRAINER_README = ROOT / "services" / "trainer" / "README.md"

SERVICES: Mapping[str, tuple[Callable[[CollectorRegistry], object], ...]] = {
    "policy": (PolicyMetrics,),
    "reference": (ReferenceMetrics,),
    "reward": (RewardMetrics,),
    "labeling": (LabelingMetrics, SiteMetrics),
    "trainer": (TrainerMetrics,),
    "canary": (CanaryMetrics,),
}

# What the stages beside PPO report. PPO's numbers are documented where a run is described.
STAGE_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "sft": (
        "loss_nats_per_token",
        "summary_tokens",
        "validation_loss_nats_per_token",
        "learning_rate",
        "gradient_norm",
        "epoch",
        "tokens_per_s",
    ),
    "reward_model": (
        "loss_nats",
        "accuracy",
        "score_mean",
        "score_deviation",
        "validation_loss_nats",
        "validation_accuracy",
        "validation_accuracy_low",
        "validation_accuracy_high",
        "validation_pairs",
        "validation_comparisons",
        "longer_wins_accuracy",
        "detection_loss_nats",
        "detection_accuracy",
        "summary_detection_loss_nats",
        "summary_detection_accuracy",
        "learning_rate",
        "gradient_norm",
        "epoch",
        "tokens_per_s",
    ),
}

# The first that fits the end of a name without _total.
UNITS = (
    ("_timestamp_seconds", "seconds since 1970"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_ratio", "0 to 1"),
    ("_accuracy", "0 to 1"),
    ("_nats_per_token", "nats per token"),
    ("_nats", "nats"),
    ("_tokens_per_s", "tokens per second"),
    ("_tokens", "tokens"),
    ("_episodes", "episodes"),
)

HEAD = """# Metrics

Every process answers Prometheus at `http://<metrics_host>:<metrics_port>/metrics`. Ports unless told
otherwise: policy 9101, reference 9102, reward 9103, labeling 9104, trainer 9105. Labels never name a person,
a prompt or a text, and known label values start at 0.

[Rules, alerts and dashboards](../deploy/k8s/components/monitoring/README.md) over these metrics;
[what to do about an alert](runbooks). This page is written by `make docs-metrics` from the code.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric."""

    name: str  # as it is scraped
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def unit(self) -> str:
        """From the name; empty for a plain number."""
        base = self.name.removesuffix("_total")
        return next((unit for ending, unit in UNITS if base.endswith(ending)), "")

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def rows_of(registry: CollectorRegistry) -> list[Row]:
    """What was registered, in that order."""
    rows = []
    for collector in registry._collector_to_names:  # private, and the library has no other list
        labels = collector._labelnames if isinstance(collector, MetricWrapperBase) else None
        for family in collector.collect():
            rows.append(
                Row(
                    name=f"{family.name}_total" if family.type == "counter" else family.name,
                    kind=family.type,
                    labels=tuple(getattr(family, "_labelnames", ()) if labels is None else labels),
                    help=family.documentation,
                )
            )
    return rows


def ppo_numbers() -> list[str]:
    """What a PPO update reports, by the trainer's page."""
    section = TRAINER_README.read_text().split("## What a PPO update reports\n")[1].split("\n## ")[0]
    return re.findall(r"`([a-z_0-9]+)`", section)


def stage_rows(stage: str, numbers: Iterable[str]) -> list[Row]:
    """The gauges of a stage, made as the trainer makes them."""
    return [
        Row(
            name=f"andon_trainer_{stage}_{number}",
            kind="gauge",
            labels=(),
            help=f"{number} of the latest {stage} step.",
        )
        for number in numbers
    ]


def tables() -> dict[str, list[Row]]:
    """All metrics: those that every service has, then each service's own."""
    common = CollectorRegistry()
    CallMetrics(common)
    TlsMetrics(common)
    register_process_metrics(common, service="any")
    found = {"every service": rows_of(common)}
    for service, makers in SERVICES.items():
        registry = CollectorRegistry()
        for make in makers:
            make(registry)
        found[service] = rows_of(registry)
    found["trainer: PPO"] = stage_rows("ppo", ppo_numbers())
    for stage, numbers in STAGE_NUMBERS.items():
        found[f"trainer: {stage.replace('_', ' ')}"] = stage_rows(stage, numbers)
    return found


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, rows in tables().items():
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += ["| name | type | labels | unit | help |", "|---|---|---|---|---|"]
        for row in rows:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.unit} | {row.help} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when the page is out of date"
    )
    if parser.parse_args().check:
        if OUT.read_text() != page():
            print(f"{OUT} is not what the code says: make docs-metrics", file=sys.stderr)
            return 1
        return 0
    OUT.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
