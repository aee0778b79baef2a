"""The component renders, its custom resources fit their definitions, and Alertmanager takes the example."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests import monitoring
from tests.alertmanager import find_alertmanager

OVERLAY = {
    "apiVersion": "kustomize.config.k8s.io/v1beta1",
    "kind": "Kustomization",
    "namespace": "rlhf",
    "components": ["../monitoring"],
}


def _render(tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    kubectl = monitoring.program("kubectl", package="kubernetes-client, of 1.21 or newer")
    shutil.copytree(monitoring.COMPONENT, tmp_path / "monitoring")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(json.dumps({**OVERLAY, **more}))
    done = subprocess.run(
        [kubectl, "kustomize", str(tmp_path / "overlay")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields refused, as an API server with strict validation refuses them."""
    strict = {key: _strict_value(value) for key, value in schema.items()}
    if "properties" in strict and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def _strict_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _strict(value)
    return [_strict_value(entry) for entry in value] if isinstance(value, list) else value


def _schemas(shared_dir: Path) -> dict[tuple[str, str], dict[str, Any]]:
    schemas = {}
    for name in ("podmonitors", "prometheusrules"):
        definition = yaml.safe_load(gzip.decompress((shared_dir / "crds" / f"{name}.yaml.gz").read_bytes()))
        for version in definition["spec"]["versions"]:
            api_version = f"{definition['spec']['group']}/{version['name']}"
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[api_version, definition["spec"]["names"]["kind"]] = schema
    return schemas


def test_custom_resources_fit_their_definitions(tmp_path: Path, shared_dir: Path) -> None:
    schemas = _schemas(shared_dir)
    checked = []
    for resource in _render(tmp_path):
        if resource["kind"] != "ConfigMap":
            jsonschema.Draft202012Validator(schemas[resource["apiVersion"], resource["kind"]]).validate(
                resource
            )
            checked.append((resource["kind"], resource["metadata"]["name"]))
    assert sorted(checked) == [
        ("PodMonitor", "andon"),
        ("PrometheusRule", "andon-guards"),
        ("PrometheusRule", "andon-labeling"),
        ("PrometheusRule", "andon-serving"),
        ("PrometheusRule", "andon-training"),
    ]


def test_an_unknown_field_is_refused(shared_dir: Path) -> None:
    schema = _schemas(shared_dir)["monitoring.coreos.com/v1", "PrometheusRule"]
    resource = yaml.safe_load((monitoring.COMPONENT / "rules" / "guards.yaml").read_text())
    resource["spec"]["groups"][0]["rules"][0]["threshold"] = 1
    with pytest.raises(jsonschema.ValidationError, match="threshold"):
        jsonschema.Draft202012Validator(schema).validate(resource)


def test_dashboards_become_config_maps_that_grafana_finds(tmp_path: Path) -> None:
    maps = [resource for resource in _render(tmp_path) if resource["kind"] == "ConfigMap"]
    files = {name: text for resource in maps for name, text in resource["data"].items()}
    assert {name: json.loads(text) for name, text in files.items()} == {
        f"{stem}.json": dashboard for stem, dashboard in monitoring.dashboards().items()
    }
    for resource in maps:
        assert resource["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert resource["metadata"]["namespace"] == "rlhf"
        # What `kubectl apply` writes into an annotation must stay below 256 KiB.
        assert len(json.dumps(resource)) < 256 * 1024


def test_an_overlay_sets_the_runbooks_address_as_the_readme_says(tmp_path: Path) -> None:
    readme = (monitoring.COMPONENT / "README.md").read_text()
    example = yaml.safe_load(
        next(block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "runbook" in block)
    )
    resources = _render(tmp_path, **{key: example[key] for key in ("configMapGenerator", "replacements")})
    urls = [
        rule["annotations"]["runbook_url"]
        for resource in resources
        if resource["kind"] == "PrometheusRule"
        for group in resource["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert urls
    assert all(re.fullmatch(r"https://wiki\.example\.com/docs/runbooks/Andon\w+\.md", url) for url in urls)


def test_alertmanager_takes_the_example_and_routes_what_pulls_to_the_cord(tmp_path: Path) -> None:
    if find_alertmanager() is None:
        monitoring.program("prometheus-alertmanager", package="prometheus-alertmanager")
    amtool = monitoring.program("amtool", package="prometheus-alertmanager")
    config = monitoring.COMPONENT / "alertmanager.yaml"
    subprocess.run([amtool, "check-config", str(config)], check=True, capture_output=True)

    def receivers(*labels: str) -> list[str]:
        done = subprocess.run(
            [amtool, "config", "routes", "test", f"--config.file={config}", *labels],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip().split(",")

    assert receivers("alertname=AndonSignBug", "severity=critical", "andon_cord=pull") == ["cord", "people"]
    assert receivers("alertname=AndonKlRunaway", "severity=warning") == ["people"]
