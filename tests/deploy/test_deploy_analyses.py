"""Queries of the autoscaler and of Argo's analyses, run by promtool over series made for the purpose."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests import monitoring
from tests.manifests import Planting, rendered

ARGO = "base with gateway, argo-rollouts"


def _metrics(template: str) -> dict[str, Any]:
    found = Planting(rendered(ARGO)).find(f"AnalysisTemplate/{template}")
    return {metric["name"]: metric for metric in found["spec"]["metrics"]}


def _query(template: str, name: str) -> str:
    query: str = _metrics(template)[name]["provider"]["prometheus"]["query"]
    return query


def _promtool(folder: Path, series: dict[str, str], query: str, expected: list[dict[str, Any]]) -> str:
    """What promtool objects to: nothing where the query gives the expected samples, to three digits, after an
    hour of the series, a minute apart.
    """
    promtool = monitoring.program("promtool", package="prometheus")
    tests = {
        "rule_files": [],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": f"round({query}, 0.001)", "eval_time": "60m", "exp_samples": expected}
                ],
            }
        ],
    }
    path = folder / "tests.yaml"
    path.write_text(json.dumps(tests))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _one(value: float) -> list[dict[str, Any]]:
    return [{"labels": "{}", "value": value}]


def test_the_cord_that_anybody_sees_pulled_counts(tmp_path: Path) -> None:
    pulled = {f'andon_cord_pulled{{namespace="andon", pod="{pod}"}}': f"{pod}x60" for pod in (0, 1)}
    assert _promtool(tmp_path, pulled, _query("andon-policy-halt", "cord"), _one(1.0)) == ""
    assert _promtool(tmp_path, {}, _query("andon-policy-halt", "cord"), []) == ""


def test_only_critical_alerts_that_fire_count(tmp_path: Path) -> None:
    def alert(name: str, state: str, severity: str) -> str:
        return f'ALERTS{{namespace="andon", alertname="{name}", alertstate="{state}", severity="{severity}"}}'

    quiet = {
        alert("AndonSignBug", "pending", "critical"): "1x60",
        alert("AndonStaleWeights", "firing", "warning"): "1x60",
        alert("KubeNodeDown", "firing", "critical"): "1x60",
    }
    query = _query("andon-policy-halt", "critical-alerts")
    assert _promtool(tmp_path, quiet, query, _one(0.0)) == ""
    loud = {**quiet, alert("AndonSignBug", "firing", "critical"): "1x60"}
    assert _promtool(tmp_path, loud, query, _one(1.0)) == ""


def test_the_autoscaler_counts_what_waits_at_stable(tmp_path: Path) -> None:
    scaler = Planting(rendered("overlays/production")).find("ScaledObject/andon-policy")
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    series = {
        f'andon_policy_waiting_calls{{namespace="andon", track="{track}", pod="{pod}"}}': f"{calls}x60"
        for track, pod, calls in (("stable", "a", 3), ("stable", "b", 4), ("canary", "c", 50))
    }
    assert _promtool(tmp_path, series, query, _one(7.0)) == ""


def test_a_wrong_query_would_be_seen(tmp_path: Path) -> None:
    assert "parse error" in _promtool(tmp_path, {}, "sum by (", [])
