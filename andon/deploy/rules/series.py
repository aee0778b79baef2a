"""Every series that a rule, a dashboard, an autoscaler or an analysis asks for is one that somebody makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from andon.deploy.findings import Finding
from andon.deploy.objects import Cluster, Json, where
from andon.deploy.promql import series_in
from andon.deploy.rules import Scene

# Made by Prometheus itself.
BUILT_IN = frozenset({"up", "ALERTS", "ALERTS_FOR_STATE"})
_LABEL_VALUES = re.compile(r"label_values\(\s*(?P<query>.+?)\s*,\s*\w+\s*\)", re.DOTALL)


def series_findings(scene: Scene) -> Iterator[Finding]:
    """Queries that would stay empty for ever."""
    recorded = {rule["record"] for rule in _rules(scene.cluster) if "record" in rule}
    known = scene.contract.series | recorded | BUILT_IN
    for place, name, expression in _queries(scene.cluster):
        for series in sorted(series_in(expression) - known):
            message = f"{name} asks for {series}, which nothing makes"
            yield Finding(rule="series", where=place, message=message)


def _rules(cluster: Cluster) -> Iterator[Json]:
    for manifest in cluster.kind("PrometheusRule"):
        for group in manifest["spec"].get("groups", []):
            yield from group.get("rules", [])


def _queries(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """Where it stands, what asks, and the expression."""
    for manifest in cluster.kind("PrometheusRule"):
        for group in manifest["spec"].get("groups", []):
            for rule in group.get("rules", []):
                yield where(manifest), rule.get("alert") or rule["record"], str(rule["expr"])
    for manifest in cluster.kind("ConfigMap"):
        if (manifest["metadata"].get("labels") or {}).get("grafana_dashboard") == "1":
            for name, text in (manifest.get("data") or {}).items():
                for title, expression in _dashboard_queries(json.loads(text)):
                    yield where(manifest), f"{name}: {title}", expression
    for manifest in cluster.kind("ScaledObject"):
        for trigger in manifest["spec"].get("triggers", []):
            if trigger["type"] == "prometheus":
                yield where(manifest), "a trigger", trigger["metadata"]["query"]
    for manifest in cluster.kind("AnalysisTemplate"):
        for metric in manifest["spec"].get("metrics", []):
            query = metric["provider"].get("prometheus", {}).get("query")
            if query is not None:
                yield where(manifest), metric["name"], query


def _dashboard_queries(dashboard: Json) -> Iterator[tuple[str, str]]:
    panels = list(dashboard.get("panels", []))
    while panels:
        panel = panels.pop()
        panels += panel.get("panels", [])
        for target in panel.get("targets", []):
            if "expr" in target:
                yield panel.get("title", "a panel"), target["expr"]
    for variable in (dashboard.get("templating") or {}).get("list", []):
        query = variable.get("query")
        text = query.get("query", "") if isinstance(query, dict) else query
        asked = _LABEL_VALUES.fullmatch(text or "")
        if variable.get("type") == "query" and asked is not None:
            yield f"variable {variable['name']}", asked["query"]
