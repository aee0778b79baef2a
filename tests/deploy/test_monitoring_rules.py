"""Alert and recording rules: each fires where it must, stays silent where it must, and is told about."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from andon.cli.deferred import DeferredCommand
from andon.cli.main import app
from services.trainer.guards.guard import GuardName
from tests import monitoring

CASES = sorted((Path(__file__).parent / "promtool").glob("*.yaml"))


@pytest.fixture(scope="module")
def promtool() -> str:
    return monitoring.program("promtool", package="prometheus")


@pytest.fixture(scope="module")
def cases_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases beside the rules that they name."""
    folder = tmp_path_factory.mktemp("promtool")
    monitoring.write_rules(folder / "rules")
    for case in CASES:
        shutil.copy(case, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_rules_do_what_their_cases_say(promtool: str, cases_folder: Path, case: Path) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", case.name], cwd=cases_folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_well_formed(promtool: str, cases_folder: Path) -> None:
    files = sorted((cases_folder / "rules").glob("*.yaml"))
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def _tests() -> list[dict[str, Any]]:
    return [test for case in CASES for test in yaml.safe_load(case.read_text())["tests"]]


def _static_labels(rule: dict[str, Any]) -> dict[str, str]:
    return {name: text for name, text in rule["labels"].items() if "{{" not in text}


def test_every_alert_has_a_case_that_fires_and_one_that_stays_silent() -> None:
    lacking = []
    for rule in monitoring.alerts():
        outcomes = set()
        for test in _tests():
            for case in test.get("alert_rule_test", []):
                if case["alertname"] == rule["alert"]:
                    # Rules of one name are told apart by their labels, as the burn rates are.
                    outcomes.add(
                        any(
                            _static_labels(rule).items() <= alert["exp_labels"].items()
                            for alert in case["exp_alerts"]
                        )
                    )
        lacking += [
            f"{rule['alert']} {_static_labels(rule)} never {'fires' if fires else 'stays silent'}"
            for fires in {True, False} - outcomes
        ]
    assert lacking == []


def test_every_recording_rule_has_a_case_with_its_value() -> None:
    tested = [
        case["expr"] for test in _tests() for case in test.get("promql_expr_test", []) if case["exp_samples"]
    ]
    lacking = [
        rule["record"]
        for rule in monitoring.rules()
        if "record" in rule
        and not any(re.search(rf"{rule['record']}(?![\w:])", expression) for expression in tested)
    ]
    assert lacking == []


def test_every_guard_has_exactly_one_alert() -> None:
    selectors: defaultdict[str, set[str]] = defaultdict(set)
    for rule in monitoring.alerts():
        selectors[rule["alert"]].update(
            re.findall(r'(?:increase5m|alarms_total)\{guard=~?"([^"]+)"', rule["expr"])
        )
    for guard in GuardName:
        told_by = [
            alert
            for alert, patterns in selectors.items()
            if any(re.fullmatch(pattern, guard.value) for pattern in patterns)
        ]
        assert len(told_by) == 1, f"{guard.value}: {told_by}"


def test_what_pulls_the_cord_asks_for_it() -> None:
    pulling = {rule["alert"] for rule in monitoring.alerts() if "andon_cord" in rule["labels"]}
    assert pulling == {"AndonSignBug", "AndonRewardSpike"}
    for rule in monitoring.alerts():
        assert rule["labels"].get("andon_cord", "pull") == "pull"
        if "andon_cord" in rule["labels"]:
            assert rule["labels"]["severity"] == "critical"
            assert "for" not in rule, "whoever stops training stops it at once"


@pytest.mark.parametrize("rule", monitoring.alerts(), ids=lambda rule: rule["alert"])
def test_alerts_tell_people_what_they_need(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Andon([A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "{{" not in annotations["summary"]
    assert annotations["runbook_url"] == monitoring.RUNBOOK_URL.format(rule["alert"])


def test_recording_rules_are_named_by_level_metric_operation() -> None:
    for rule in monitoring.rules():
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]+:andon_[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]


def test_there_is_a_runbook_for_each_alert_and_none_without() -> None:
    assert {path.stem for path in monitoring.RUNBOOKS.glob("*.md")} == {
        rule["alert"] for rule in monitoring.alerts()
    }


@pytest.mark.parametrize("path", sorted(monitoring.RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_say_what_it_means_and_what_to_do(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Meaning",
        "Impact",
        "Diagnosis",
        "Mitigation",
    ]


def _blocks(text: str, language: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_queries_in_runbooks_are_valid(promtool: str, tmp_path: Path) -> None:
    queries = [
        {"record": f"runbook:{path.stem}:{number}", "expr": query}
        for path in monitoring.RUNBOOKS.glob("*.md")
        for number, query in enumerate(_blocks(path.read_text(), "promql"))
    ]
    assert len(queries) > len(monitoring.alerts())
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": queries}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "queries.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    known = monitoring.known_series()
    asked = {name for query in queries for name in monitoring.series_in(query["expr"])}
    assert asked
    assert asked <= known, asked - known


@pytest.mark.parametrize("path", sorted(monitoring.RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_commands_in_runbooks_exist(path: Path) -> None:
    text = path.read_text()
    in_prose: list[str] = re.findall(r"`(andon [^`]+)`", text)
    for line in _blocks(text, "sh") + in_prose:
        words = shlex.split(line)
        assert words.pop(0) == "andon"
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
            if isinstance(command, DeferredCommand):
                command = command.load()
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("path", sorted(monitoring.RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_links_in_runbooks_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
