"""Dashboards: what they ask is valid, asks for what exists, and is explained. Real data: see integration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import monitoring

PANELS = [
    (f"{name}: {panel['title']}", panel)
    for name, dashboard in monitoring.dashboards().items()
    for panel in monitoring.panels(dashboard)
]


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=[title for title, _ in PANELS])
def test_panels_ask_for_metrics_that_exist(title: str, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        asked = monitoring.series_in(target["expr"])
        assert asked, target["expr"]
        assert asked <= monitoring.known_series(), target["expr"]


def test_rules_ask_for_metrics_that_exist() -> None:
    for rule in monitoring.rules():
        asked = monitoring.series_in(rule["expr"])
        assert asked, rule["expr"]
        assert asked <= monitoring.known_series(), rule["expr"]


def test_expressions_are_valid(tmp_path: Path) -> None:
    promtool = monitoring.program("promtool", package="prometheus")
    rules = []
    for number, (_title, panel) in enumerate(PANELS):
        for place, target in enumerate(panel["targets"]):
            expression = monitoring.fill_in(target["expr"], monitoring.PLACEHOLDERS)
            rules.append({"record": f"panel:{number}_{place}", "expr": expression})
    assert len(rules) > 100
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "panels.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=[title for title, _ in PANELS])
def test_panels_have_a_unit_and_a_sentence_of_help(title: str, panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert len(panel["description"]) >= 8
    assert panel["type"] in {"timeseries", "stat"}
    assert all(target["legendFormat"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=[title for title, _ in PANELS])
def test_panels_follow_the_variables(title: str, panel: dict[str, Any]) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        expression = target["expr"]
        if "ALERTS" not in expression:
            selectors = re.findall(r"\{[^}]*\}", re.sub(r"\$\{\w+\}", "", expression))
            assert selectors
            assert all('namespace=~"$namespace"' in selector for selector in selectors), expression
        # A range that is fixed is right only for what the title says of an hour.
        ranges = set(re.findall(r"\[([^\]]+)\]", expression))
        assert ranges <= {"$__rate_interval"} or panel["description"] == "In the last hour."


@pytest.mark.parametrize("name", sorted(monitoring.dashboards()))
def test_dashboards_can_be_told_apart_and_set(name: str) -> None:
    dashboard = monitoring.dashboards()[name]
    assert dashboard["uid"] == f"andon-{name}"
    assert dashboard["schemaVersion"] == 42
    assert dashboard["description"]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["namespace"]["allValue"] == ".*"  # services on a laptop have none
    used = {
        match[1] or match[2]
        for panel in monitoring.panels(dashboard)
        for target in panel["targets"]
        for match in monitoring.VARIABLE.finditer(target["expr"])
    }
    assert used - {"__rate_interval"} <= set(variables)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sorted(monitoring.dashboards()))
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in monitoring.dashboards()[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
