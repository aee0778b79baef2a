"""The Dockerfile without a build: what it copies is there, what it promises is what the manifests rely on."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import andon
from andon.deploy.kustomize import find_kubectl, render
from tests.containers.pods import Node

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
TARGETS = ("cpu", "model")


@dataclass(slots=True)
class Stage:
    """One FROM and what follows."""

    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)  # instruction, rest

    def all(self, instruction: str) -> list[str]:
        """The rest of every such line."""
        return [rest for name, rest in self.lines if name == instruction]


def read_stages() -> dict[str, Stage]:
    """Stages by name; what stands before the first is the stage ""."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages = {"": Stage(base="")}
    name = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(base=base)
        elif instruction:
            stages[name].lines.append((instruction, rest.strip()))
    return stages


STAGES = read_stages()


def lineage(target: str) -> Iterator[Stage]:
    """A stage and what it is built on, the stage first."""
    while target in STAGES:
        yield STAGES[target]
        target = STAGES[target].base


def last(target: str, instruction: str) -> str:
    """What the image says at last."""
    return next(stage.all(instruction)[-1] for stage in lineage(target) if stage.all(instruction))


def copies(*, from_stage: bool) -> list[list[str]]:
    rests = [rest.split() for stage in STAGES.values() for rest in stage.all("COPY")]
    return [words for words in rests if words[0].startswith("--from=") == from_stage]


def test_everything_that_is_copied_exists_and_gets_into_the_build() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] not in ("#", "")]
    assert ignore[0] == "*"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    sources = {source for words in copies(from_stage=False) for source in words[:-1]}
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)


def test_stages_take_from_stages_before_them() -> None:
    names = list(STAGES)
    for name, stage in STAGES.items():
        for rest in stage.all("COPY"):
            if rest.startswith("--from="):
                taken = rest.split()[0].removeprefix("--from=")
                assert names.index(taken) < names.index(name)


def test_the_base_is_a_release_and_can_be_replaced() -> None:
    (default,) = (rest for rest in STAGES[""].all("ARG") if rest.startswith("BASE="))
    name, _, tag = default.removeprefix("BASE=").rpartition(":")
    assert name == "docker.io/library/debian"
    assert tag.endswith("-slim")
    assert "latest" not in tag
    outside = {stage.base for stage in STAGES.values() if stage.base and stage.base not in STAGES}
    assert outside == {"${BASE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_the_user_of_the_manifests(target: str) -> None:
    (user, group) = last(target, "USER").split(":")
    (patch,) = (
        each["value"]
        for each in yaml.safe_load((ROOT / "deploy/k8s/base/patches/pod-security.yaml").read_text())
        if each["path"] == "/spec/template/spec/securityContext"
    )
    assert (int(user), int(group)) == (patch["runAsUser"], patch["runAsGroup"])
    assert int(user) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_caches_go_where_a_pod_may_write(target: str) -> None:
    variables = dict(word.split("=", 1) for word in last(target, "ENV").split())
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR"):
        assert (variables[name] + "/").startswith("/tmp/")


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield from each["spec"]["template"]["spec"]["containers"]


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing: apt-get install kubernetes-client")
    kubectl = find_kubectl()
    folders = [ROOT / "deploy/k8s" / name for name in ("overlays/local", "overlays/gpu", "examples/ppo")]
    return [each for folder in folders for each in render(folder, kubectl=kubectl)]


def test_manifests_name_the_targets_in_this_version(rendered: list[dict[str, Any]]) -> None:
    ours = {
        container["image"] for container in containers(rendered) if container["image"].startswith("andon/")
    }
    assert {image.partition("/")[2].partition(":")[0] for image in ours} == set(TARGETS)
    assert {image.partition(":")[2].removesuffix("-cuda") for image in ours} == {andon.__version__}
    for target in TARGETS:
        assert f"VERSION={andon.__version__}" in STAGES[target].all("ARG")


def test_manifests_give_the_entry_point_a_module(rendered: list[dict[str, Any]]) -> None:
    assert {last(target, "ENTRYPOINT") for target in TARGETS} == {'["python", "-m"]'}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for container in containers(rendered):
        if not container["image"].startswith("andon/"):
            continue
        if "command" in container:
            assert container["command"][0] in (*scripts, "torchrun"), container["name"]
        else:
            assert importlib.util.find_spec(f"{container['args'][0]}.__main__"), container["args"]


def test_the_container_test_knows_all_that_pods_of_local_say(tmp_path: Path) -> None:
    """A field that podman would need to be told of fails here, not only in `make test-containers`."""
    made = subprocess.run(
        [str(ROOT / "deploy/k8s/create-secrets.sh")], capture_output=True, text=True, check=True
    )
    objects = render(ROOT / "deploy/k8s/overlays/local", kubectl=find_kubectl())
    pods = Node([*objects, *yaml.safe_load_all(made.stdout)], tmp_path).pods({"andon-policy": 1})
    assert {pod.workload for pod in pods} >= {
        "andon-labeling",
        "andon-policy",
        "andon-sampler",
        "andon-trainer",
    }
    for pod in pods:
        arguments = pod.run_arguments("network")
        assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"} <= set(arguments)
        assert arguments[-2:] == [pod.image, *pod.arguments]
    (trainer,) = (pod for pod in pods if pod.workload == "andon-trainer")
    assert trainer.memory_bytes == 2 * 1024**3
    assert trainer.cpu_shares == 205  # of 200m: 0.2 * 1024
    assert trainer.host_names == ("andon-trainer",)


def load_requirements() -> ModuleType:
    """The program of the build, which is part of no package."""
    spec = importlib.util.spec_from_file_location("image_requirements", DOCKER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


requirements = load_requirements()


def names_for(target: str) -> set[str]:
    """The packages that a target's list asks for."""
    (found,) = re.findall(
        rf"requirements\.py list ([a-z0-9 ]+) > {target}\.txt", STAGES["wanted"].all("RUN")[0]
    )
    listed = requirements.wanted(ROOT / "pyproject.toml", found.split())
    return {requirements.canonical(re.split(r"[\[<>=~! ]", each)[0]) for each in listed}


def test_torch_is_in_one_image_only() -> None:
    assert not names_for("cpu") & {"torch", "transformers", "datasets"}
    assert {"sqlalchemy", "kubernetes", "grpcio"} <= names_for("cpu")
    assert {"torch", "transformers", "openai", "huggingface-hub", "grpcio"} <= names_for("model")


def test_the_locks_pin_what_the_images_ask_for() -> None:
    pins = requirements.pinned(ROOT / "requirements.lock", DOCKER / "constraints.txt")
    for target in TARGETS:
        assert names_for(target) <= set(pins)


class Installed(Distribution):
    """A package that is installed, as far as the check looks."""

    def __init__(self, name: str, version: str, *requires: str) -> None:
        self._name, self._version, self._requires = name, version, list(requires)

    @property
    def metadata(self) -> Message:  # type: ignore[override]
        message = Message()
        message["Name"], message["Version"] = self._name, self._version
        return message

    @property
    def requires(self) -> list[str]:
        return self._requires

    def read_text(self, filename: str) -> str | None:
        raise NotImplementedError

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("installed", "loose"),
    [
        ([Installed("Some_Name", "1.2")], []),
        ([Installed("some.name", "1.2+cpu")], []),
        ([Installed("some-name", "1.3")], ["some-name 1.3"]),
        ([Installed("stranger", "1.0")], ["stranger 1.0"]),
        ([Installed("some-name", "1.2", "stranger==1.0"), Installed("stranger", "1.0")], []),
        ([Installed("some-name", "1.2", "stranger[part]==1.0 ; x"), Installed("stranger", "1.0")], []),
        ([Installed("some-name", "1.2", "stranger>=1.0"), Installed("stranger", "1.0")], ["stranger 1.0"]),
        # The lock's own pin counts more than what others ask for.
        ([Installed("other", "2", "some-name==1.3"), Installed("some-name", "1.3")], ["some-name 1.3"]),
    ],
)
def test_what_nobody_pinned_is_found(installed: list[Distribution], loose: list[str], tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# a comment\nSome_Name==1.2\nother==2\n")
    assert requirements.unpinned(installed, requirements.pinned(lock)) == loose


def test_an_unknown_extra_is_an_error() -> None:
    with pytest.raises(KeyError):
        requirements.wanted(ROOT / "pyproject.toml", ["labelling"])


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(DOCKER / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
