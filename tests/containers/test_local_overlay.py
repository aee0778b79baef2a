"""The images and the overlay ``local`` as it is: its pods under podman, the demo between them, two kills.

``make test-containers`` builds the images first: a few minutes, a quarter of an hour on a slow machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from andon.cli.recipes import packaged_recipe
from andon.client.health import Health
from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.trainer import Progress, TrainerClient
from andon.deploy.kustomize import find_kubectl, render
from andon.modeling.store import ModelStore
from tests.containers.images import ROOT, build, need_programs
from tests.containers.node import PodmanNode, podman, volume_option
from tests.containers.pods import PROBES, Node, Pod

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

UPDATES = 14
KILLS = {4: "andon-sampler-0", 8: "andon-trainer-0"}  # by the update that has just ended
SERVICES = {
    "labeling": "dns:///andon-labeling:50054",
    "reference": "dns:///andon-reference:50052",
    "reward": "dns:///andon-reward:50053",
    "policy": "dns:///andon-sampler:50051",
    "trainer": "dns:///andon-trainer:50055",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """What runs, and what only whoever set it up knows."""

    node: Node
    running: PodmanNode
    pods: dict[str, Pod]
    store: Path  # the volume with models and documents, on this machine
    admin_token: str


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    need_programs()
    if os.geteuid() != 0:
        pytest.skip("volumes need the groups that root alone can give")
    scratch = tmp_path_factory.mktemp("containers")
    scratch.chmod(0o755)
    made = subprocess.run(
        [str(ROOT / "deploy" / "k8s" / "create-secrets.sh")], capture_output=True, text=True, check=True
    )
    objects = render(ROOT / "deploy" / "k8s" / "overlays" / "local", kubectl=find_kubectl())
    node = Node([*objects, *yaml.safe_load_all(made.stdout)], scratch / "node")
    pods = {pod.name: pod for pod in node.pods()}
    for image in sorted({pod.image for pod in pods.values()}):
        build(image.partition("/")[2].partition(":")[0], image, scratch)
    with PodmanNode(list(pods.values())) as running:
        yield Overlay(
            node=node,
            running=running,
            pods=pods,
            store=node.claim("andon-store"),
            admin_token=made.stderr.split()[-1],
        )


def test_every_service_runs(overlay: Overlay) -> None:
    assert set(overlay.pods) == {
        "andon-labeling-0",
        "andon-reference-0",
        "andon-reward-0",
        "andon-sampler-0",
        "andon-trainer-0",
    }


def test_probes_succeed(overlay: Overlay) -> None:
    for name, pod in overlay.pods.items():
        assert set(pod.probes) == set(PROBES)
        for kind, probe in pod.probes.items():
            assert overlay.running.ask(name, probe) is Health.SERVING, f"{kind} of {name}"


def test_processes_have_no_rights(overlay: Overlay) -> None:
    """As the kernel says, not as podman was told."""
    for name in overlay.pods:
        status = dict(
            line.split(":\t", 1)
            for line in overlay.running.execute(name, "cat /proc/1/status").stdout.splitlines()
        )
        assert set(status["Uid"].split()) == {"10001"}, name
        assert set(status["Gid"].split()) == {"10001"}, name
        assert {status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}, (
            name
        )
        assert status["NoNewPrivs"] == "1", name
        assert status["Seccomp"] == "2", name  # a filter


def test_nothing_outside_volumes_can_be_written(overlay: Overlay) -> None:
    for name, pod in overlay.pods.items():
        writable = {mount.place for mount in pod.mounts if not mount.read_only}
        places = {"/", "/opt/andon/bin", "/var/lib/andon", "/var/lib/andon-runs", "/run", "/etc", *writable}
        for place in sorted(places):
            done = overlay.running.execute(name, f"touch {place}/probe && rm {place}/probe")
            assert (done.returncode == 0) == (place in writable), f"{name} {place}: {done.stderr}"
            assert place in writable or "Read-only file system" in done.stderr, (
                f"{name} {place}: {done.stderr}"
            )


def test_memory_is_limited(overlay: Overlay) -> None:
    for name, pod in overlay.pods.items():
        limit = overlay.running.execute(
            name, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null"
        ).stdout
        assert int(limit) == pod.memory_bytes, name


def test_images_hold_no_tools_and_say_what_they_hold(overlay: Overlay) -> None:
    for name, pod in overlay.pods.items():
        tools = overlay.running.execute(name, "command -v pip pip3 gcc cc make git curl wget")
        assert tools.stdout == "", name
        assert "No module named pip" in overlay.running.execute(name, "python -m pip --version").stderr
        listed = overlay.running.execute(
            name,
            "python -c 'import importlib.metadata as m; "
            'print(*sorted({d.name + "==" + d.version for d in m.distributions()}), sep="\\n")\'',
        ).stdout.splitlines()
        locked = {line.lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().split()}
        packages = {line.partition("+")[0].lower().replace("_", "-") for line in listed}
        unlocked = {line.partition("==")[0] for line in packages - locked}
        assert unlocked <= {"andon", "setuptools"}, name
        assert ("torch" in {line.partition("==")[0] for line in packages}) == (pod.image != "andon/cpu:0.1.0")
        labels = json.loads(podman("image", "inspect", pod.image))[0]["Labels"]
        assert labels["org.opencontainers.image.version"] == pod.image.rpartition(":")[2]
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_canary_controller_needs_nothing_that_its_image_lacks(overlay: Overlay) -> None:
    """It runs only beside a route, so not in this overlay: here it says what it can be told."""
    image = overlay.pods["andon-labeling-0"].image
    assert "--metrics-port" in podman(
        "run", "--rm", "--pull=never", "--read-only", image, "services.canary", "--help"
    )


def test_the_loop_passes_and_survives_two_kills(overlay: Overlay) -> None:
    data = overlay.store / "data"
    data.mkdir(exist_ok=True)
    data.chmod(0o2775)
    recipe = packaged_recipe("small")
    recipe = recipe.model_copy(update={"ppo": {**recipe.ppo, "updates": UPDATES}})
    (data / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    demo = ["demo", "--running", "--seed=2", "--json"]
    demo += ["--recipe=/var/lib/andon/data/recipe.yaml", "--out=/var/lib/andon/data/demo"]
    client = _command_line(overlay, *demo)
    killer = threading.Thread(target=_kill_on_the_way, args=(overlay, client))
    killer.start()
    printed, said = client.communicate()
    killer.join()
    logs = "\n".join(f"--- {name}\n{overlay.running.log(name)}" for name in overlay.pods)
    assert client.returncode == 0, f"{said[-3000:]}\n{logs}"

    restarts = {name: overlay.running.restarts(name) for name in overlay.pods}
    assert restarts == {name: int(name in KILLS.values()) for name in overlay.pods}
    assert overlay.running.killed_by_liveness == []
    report = json.loads(printed)
    assert report["models"]["policy"] == f"policy/{UPDATES}"
    assert (data / "demo" / "report.html").read_text().startswith("<!doctype html>")
    store = ModelStore(overlay.store / "store")
    assert {stored.version.family for stored in store.list()} == {"sft", "reward", "policy"}
    for stored in store.list():
        store.verify(stored)
    written = yaml.safe_load((data / "demo" / "report.json").read_text())
    (curve,) = (curve for curve in written["curves"] if curve["stage"] == "ppo")
    assert curve["steps"] == list(range(1, UPDATES + 1))
    for name in KILLS.values():
        overlay.running.wait_until_ready(name)


def test_stable_serves_what_was_trained(overlay: Overlay) -> None:
    """After the loop: an alias, and the Deployment for users scaled to one pod."""
    version = f"policy/{UPDATES}"
    named = _command_line(
        overlay, "models", "alias", "policy@stable", version, "--store=/var/lib/andon/store"
    )
    _, said = named.communicate()
    assert named.returncode == 0, said
    (stable,) = (pod for pod in overlay.node.pods({"andon-policy": 1}) if pod.workload == "andon-policy")
    overlay.running.add(stable)
    with PolicyClient(f"{overlay.running.address(stable.name)}:50051") as policy:
        answer = policy.sample(["A post."], SamplingParameters(max_new_tokens=4, seed=0))
    (sample,) = answer.results[0].samples
    assert str(sample.model) == version


def _command_line(overlay: Overlay, *arguments: str) -> subprocess.Popen[str]:
    """``andon`` in a container of its own, with a Job's rights, the store and the admin's token."""
    pod = overlay.pods["andon-sampler-0"]
    return overlay.running.run_client(
        pod.image,
        ["andon", *arguments],
        f"--user={pod.user}:{pod.group}",
        f"--group-add={pod.volume_group}",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        f"--env=ANDON_TOKEN={overlay.admin_token}",
        *(f"--env=ANDON_{service.upper()}_TARGET={target}" for service, target in SERVICES.items()),
        volume_option(overlay.store, "/var/lib/andon"),
    )


def _kill_on_the_way(overlay: Overlay, client: subprocess.Popen[str]) -> None:
    """Kills by ``KILLS``. Ends with the client at the latest; the restarts show what was not killed."""
    left = dict(KILLS)
    run_id: str | None = None
    while left and client.poll() is None:
        address = overlay.running.address("andon-trainer-0")
        with TrainerClient(f"{address}:50055") as trainer:
            while run_id is None and client.poll() is None:
                found = [run.run_id for run in trainer.list() if run.stage == "ppo"]
                run_id = found[0] if found else None
                _pause(client)
            if run_id is None:
                return
            for event in trainer.watch_run(run_id):
                if isinstance(event.event, Progress) and event.event.step in left:
                    victim = left.pop(event.event.step)
                    overlay.running.kill(victim)
                    if not left:
                        return


def _pause(client: subprocess.Popen[str]) -> None:
    """Half a second, or less when the client ends."""
    try:
        client.wait(0.5)
    except subprocess.TimeoutExpired:
        return
