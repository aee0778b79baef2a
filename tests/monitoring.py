"""What tests need of the monitoring component: rules and dashboards as values, and Prometheus's programs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.metrics_table import tables

COMPONENT = Path(__file__).parents[1] / "deploy" / "k8s" / "components" / "monitoring"
RUNBOOKS = Path(__file__).parents[1] / "docs" / "runbooks"
RUNBOOK_URL = "https://andon.example.org/docs/runbooks/{}.md"  # an overlay puts its own host there


def program(name: str, *, package: str) -> str:
    """Where a program is; the test skips without it, and fails where the project's own checks run."""
    found = shutil.which(name)
    if found is None:
        problem = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return found


@cache
def rule_groups() -> dict[str, list[dict[str, Any]]]:
    """The groups of each manifest, by its file's stem; ``spec`` of a PrometheusRule is a file of rules."""
    return {
        path.stem: yaml.safe_load(path.read_text())["spec"]["groups"]
        for path in sorted((COMPONENT / "rules").glob("*.yaml"))
    }


def write_rules(folder: Path) -> list[Path]:
    """The rules as files that Prometheus and promtool read."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stem, groups in rule_groups().items():
        files.append(folder / f"{stem}.yaml")
        files[-1].write_text(yaml.safe_dump({"groups": groups}))
    return files


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    return [rule for groups in rule_groups().values() for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """All alerting rules."""
    return [rule for rule in rules() if "alert" in rule]


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by their file's stem."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(COMPONENT.glob("dashboards/*.json"))}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels that show something; rows only part them."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")


def fill_in(expression: str, values: Mapping[str, str]) -> str:
    """A panel's expression with its variables replaced; KeyError for one that has no value."""
    return VARIABLE.sub(lambda match: values[match[1] or match[2]], expression)


# Values with which a panel's expression is valid and takes all there is.
PLACEHOLDERS = {
    "namespace": ".*",
    "job": ".*",
    "guard": ".*",
    "stable": ".*",
    "canary": ".*",
    "__rate_interval": "1m",
}

# Names without labels or range are known by their prefix, others by the brace or bracket behind them.
_SERIES = re.compile(r"(?<![\w:$])((?:[a-z]+:)?andon_[\w:]+|process_\w+|[a-zA-Z_][\w:]*(?=\s*[{\[]))")
_GROUPING = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)")


def series_in(expression: str) -> set[str]:
    """The names of all series that an expression asks for."""
    without_texts = re.sub(r'"[^"]*"|\'[^\']*\'', "", expression)
    return set(_SERIES.findall(re.sub(r"\{[^}]*\}", "{}", _GROUPING.sub("", without_texts))))


@cache
def known_series() -> set[str]:
    """The names of all series that services and rules make, and those that Prometheus makes itself."""
    of_code = {name for rows in tables().values() for row in rows for name in row.series}
    of_rules = {rule["record"] for rule in rules() if "record" in rule}
    return {"up", "ALERTS"} | of_code | of_rules
