"""Every overlay and combination passes, and what they tell the services is what the services take."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from andon.cli.main import app
from andon.deploy.check import check
from andon.deploy.combinations import all_combinations, completed, component_sets
from andon.deploy.contract import load_contract
from andon.deploy.environment import environment_of, service_of
from andon.deploy.kustomize import render
from andon.deploy.objects import look_at
from andon.deploy.requirements import ComponentRules, Requirements, find_requirements
from andon.deploy.rules import Scene
from andon.rpc.auth import hash_token
from andon.rpc.config import load_config
from andon.rpc.token_file import read_token_file
from scripts import deploy_contract
from services.labeling.token_holders import read_tokens_file
from tests.manifests import ROOT, kubectl, rendered, requirements

OVERLAYS = ["base", "overlays/local", "overlays/gpu", "overlays/production"]
FILES = ("TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA", "TOKENS")


@pytest.mark.parametrize(
    "name", [entry.name for entry in all_combinations(ROOT, requirements())], ids=lambda name: name
)
def test_a_combination_has_no_mistakes(name: str) -> None:
    assert check(rendered(name), requirements()) == []


def test_combinations_hold_every_pair_that_goes_together() -> None:
    rules = requirements()
    sets = [set(names) for names in component_sets(rules)]
    names = list(rules.components)
    for first in names:
        for second in names:
            fits = completed(rules, (first, second)) is not None
            assert fits == any({first, second} <= chosen for chosen in sets)
    assert max(len(chosen) for chosen in sets) >= len(names) - 2


def test_components_are_completed_by_what_they_need() -> None:
    rules = Requirements(
        components={
            "door": ComponentRules(),
            "lock": ComponentRules(),
            "key": ComponentRules(needs=("lock",)),
            "bell": ComponentRules(joins=("door", "lock")),
            "wall": ComponentRules(excludes=("door",)),
        }
    )
    assert completed(rules, ("key",)) == ("lock", "key")
    assert completed(rules, ("door", "key")) == ("door", "lock", "key", "bell")
    assert completed(rules, ("wall", "door")) is None
    assert completed(rules, ("wall",)) == ("wall",)


def test_the_contract_is_what_the_code_says() -> None:
    assert deploy_contract.OUT.read_text() == deploy_contract.contract(), "make deploy-contract"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_take_what_they_are_told(overlay: str) -> None:
    """The oracle of the settings' rule: the services' own reading of their variables."""
    scene = Scene(cluster=look_at(rendered(overlay)), requirements=requirements(), contract=load_contract())
    read = 0
    for pods in scene.cluster.pods:
        for container in pods.containers:
            service = service_of(container)
            if service is None:
                continue
            variables = {
                name: variable.value if variable.value is not None else "postgresql://andon:x@db/andon"
                for name, variable in environment_of(scene, container).items()
                # Services read these files as they start, and here they are not.
                if not name.endswith(FILES)
            }
            if service == "canary":
                # In a pod the credentials are the service account's.
                variables["ANDON_CANARY_KUBECONFIG"] = "/kubeconfig"
            config = load_config(
                deploy_contract.config_class(service), service=service, argv=[], environment=variables
            )
            assert config.health_port == 8081
            assert config.host == "0.0.0.0"
            read += 1
    assert read >= 7


def test_no_overlay_leaves_an_image_open_or_a_secret_behind() -> None:
    for overlay in OVERLAYS:
        kinds = {manifest["kind"] for manifest in rendered(overlay)}
        assert "Secret" not in kinds


def test_trainers_samplers_serve_no_users() -> None:
    cluster = look_at(rendered("overlays/production"))
    service = cluster.find("Service", "andon-policy")
    canary = cluster.find("Service", "andon-policy-canary")
    assert service is not None
    assert canary is not None
    serving = {pods.name for pods in cluster.selected({"matchLabels": service["spec"]["selector"]})}
    assert serving == {"andon-policy"}
    serving = {pods.name for pods in cluster.selected({"matchLabels": canary["spec"]["selector"]})}
    assert serving == {"andon-policy-canary"}
    tracks = {pods.name: pods.labels.get("track") for pods in cluster.pods if pods.name.startswith("andon-")}
    assert tracks["andon-policy"] == "stable"
    assert tracks["andon-policy-canary"] == "canary"
    assert tracks["andon-sampler"] is None


def test_new_secrets_are_what_the_manifests_expect_and_services_take(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "create-secrets.sh", "--namespace", "rlhf", "--database", "postgresql://a:b@c/d"],
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, dict[str, str]] = {}
    for secret in yaml.safe_load_all(done.stdout):
        assert secret["metadata"]["namespace"] == "rlhf"
        made[secret["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in secret["data"].items()
        }
    # The Gateway's certificate is somebody else's to make.
    expected = {name: entry.keys for name, entry in requirements().secrets.items()}
    # Whoever runs the door outside and the bucket gives these.
    for theirs in ("andon-gateway-tls", "andon-s3-reader", "andon-s3-writer"):
        del expected[theirs]
    assert {name: tuple(data) for name, data in made.items()} == expected
    path = tmp_path / "tokens.yaml"
    path.write_text(made["andon-tokens"]["tokens.yaml"])
    roles = {digest: caller.role for digest, caller in read_token_file(path).items()}
    path.write_text(made["andon-labeling-tokens"]["tokens.yaml"])
    path.chmod(0o440)
    labeling_roles = {digest: caller.role for digest, caller in read_tokens_file(path).items()}
    admin = done.stderr.split()[-1]
    assert labeling_roles[hash_token(admin)] == "admin"
    assert hash_token(admin) not in roles
    for name, role, labeling_role in (
        ("trainer", "trainer", "service"),
        ("canary", "service", "service"),
        ("researcher", "researcher", "researcher"),
    ):
        digest = hash_token(made[f"andon-{name}-token"]["token"])
        assert (roles[digest], labeling_roles[digest]) == (role, labeling_role)
    again = subprocess.run([ROOT / "create-secrets.sh"], capture_output=True, text=True, check=True)
    assert made["andon-trainer-token"]["token"] not in again.stdout
    assert "andon-labeling-database" not in again.stdout


def test_the_command_says_what_is_wrong_and_ends_with_1(tmp_path: Path) -> None:
    kubectl()
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "andon",
                "resources": [os.path.relpath(ROOT / "base", tmp_path)],
                "images": [{"name": "andon/model", "newTag": "latest"}],
            }
        )
    )
    result = CliRunner().invoke(app, ["deploy", "check", str(tmp_path), "--json"])
    assert result.exit_code == 1, result.output
    (checked,) = json.loads(result.stdout)
    assert checked["objects"] > 40
    assert {
        "rule": "image",
        "where": "Deployment/andon-reward",
        "message": "image andon/model:latest names no version",
    } in checked["findings"]
    table = CliRunner().invoke(app, ["deploy", "check", str(tmp_path)], env={"COLUMNS": "200"})
    assert table.exit_code == 1
    assert "Deployment/andon-reward" in table.stdout
    assert "1 checked, 1 with mistakes" in table.stdout


def test_the_command_passes_a_good_overlay_and_renders_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl()
    monkeypatch.chdir(ROOT.parents[1])
    result = CliRunner().invoke(app, ["deploy", "check", "local", "--kubernetes", "1.30"])
    assert result.exit_code == 0, result.output
    assert "1 checked, no mistakes" in result.stdout
    rendering = CliRunner().invoke(app, ["deploy", "render", "local"])
    assert rendering.exit_code == 0
    assert rendering.stdout.startswith("apiVersion: v1\nkind: Namespace\n")


def test_the_command_wants_to_know_what_to_check() -> None:
    for arguments in ([], ["local", "--all"]):
        assert CliRunner().invoke(app, ["deploy", "check", *arguments]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deploy", "check", "nowhere"], "nowhere is no folder"),
        (["deploy", "check", "--all", "--root", "docs"], "is not the folder with base"),
        (["deploy", "check", "local", "--kubernetes", "1.99"], "no schemas of Kubernetes 1.99"),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl()
    monkeypatch.chdir(ROOT.parents[1])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def _andon(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "andon.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.parents[1],
        env={**os.environ, "PATH": str(path)},
    )


def test_without_kubectl_it_says_so(tmp_path: Path) -> None:
    done = _andon("deploy", "render", "local", path=tmp_path)
    assert done.returncode == 1
    assert "KUBECTL_MISSING" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ('{"clientVersion": {"gitVersion": "v1.20.2"}}', "v1.20.2; the manifests need 1.27 or newer"),
        ("Client Version: v1.9", "does not say its version"),
    ],
)
def test_an_old_kubectl_is_refused(tmp_path: Path, version: str, reason: str) -> None:
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    done = _andon("deploy", "render", "local", path=tmp_path)
    assert done.returncode == 1
    assert "KUBECTL_TOO_OLD" in done.stderr
    assert reason in " ".join(done.stderr.split())


def test_an_overlay_outside_takes_the_requirements_above_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.yaml").write_text("namespaces: [here]\n")
    (tmp_path / "overlays" / "own").mkdir(parents=True)
    assert find_requirements(tmp_path / "overlays" / "own").namespaces == ("here",)


def test_the_patch_of_the_docs_names_one_bucket_for_all(tmp_path: Path) -> None:
    page = (ROOT.parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "andon-s3" in block]
    values = yaml.safe_load(example)
    up = os.path.relpath(ROOT, tmp_path)
    values["resources"] = [f"{up}/overlays/gpu"]
    values["components"] = [f"{up}/components/{name}" for name in ("multi-node", "s3-store")]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "andon", **values}))
    manifests = render(tmp_path, kubectl=kubectl())
    assert check(manifests, requirements()) == []
    scene = Scene(cluster=look_at(manifests), requirements=requirements(), contract=load_contract())
    stores = {
        pods.where: variable.value
        for pods in scene.cluster.pods
        for container in pods.containers
        for name, variable in environment_of(scene, container).items()
        if name == f"ANDON_{(service_of(container) or '').upper()}_STORE"
    }
    assert set(stores.values()) == {"s3://models-of-mine/andon"}
    assert {where.partition("/")[0] for where in stores} == {"Deployment", "StatefulSet", "JobSet"}
    assert len(stores) == 7
    kinds = [manifest["kind"] for manifest in manifests if manifest["metadata"]["name"] == "andon-store"]
    assert kinds == []
