"""Runs the pods of rendered manifests under podman, and does a kubelet's part: starts, asks, starts again.

Nothing here knows what the pods are. Names of containers and of the network begin with what makes this node
unlike others on the machine; on the way out all of it is removed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from andon.client.health import Health, check_health
from tests.containers.pods import Pod, Probe

POLL_S = 1.0
LIVENESS = "livenessProbe"


class PodmanNode:
    """Pods that run inside ``with``."""

    def __init__(self, pods: Sequence[Pod]) -> None:
        self._pods = {pod.name: pod for pod in pods}
        self._network = f"andon-{uuid.uuid4().hex[:8]}"
        self._containers: dict[str, str] = {}
        self._stopping = threading.Event()
        self._kubelet = threading.Thread(target=self._ask_whether_alive, name="kubelet")
        self.killed_by_liveness: list[str] = []

    def __enter__(self) -> Self:
        podman("network", "create", self._network)
        try:
            for pod in self._pods.values():
                self._start(pod)
            for pod in self._pods.values():
                self.wait_until_ready(pod.name)
        except BaseException:
            self._remove()
            raise
        self._kubelet.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._kubelet.join()
        self._remove()

    def add(self, pod: Pod) -> None:
        """Starts one more and waits until it is ready. Whether it stays alive is not asked."""
        self._pods[pod.name] = pod
        self._start(pod)
        self.wait_until_ready(pod.name)

    def _start(self, pod: Pod) -> None:
        pod.make_folders()
        self._containers[pod.name] = podman("run", *pod.run_arguments(self._network))

    def wait_until_ready(self, name: str) -> None:
        """Until the pod's startup probe and then its readiness probe succeed."""
        pod = self._pods[name]
        startup = pod.probes["startupProbe"]
        deadline_s = time.monotonic() + startup.patience_s
        for probe in (startup, pod.probes["readinessProbe"]):
            while self.ask(name, probe) is not Health.SERVING:
                assert time.monotonic() < deadline_s, f"{name} is not ready:\n{self.log(name)}"
                time.sleep(POLL_S)

    def ask(self, name: str, probe: Probe) -> Health:
        """One probe, as a kubelet would."""
        assert probe.service == ""  # the only one that check_health asks about
        address = self.address(name)
        if not address:
            return Health.UNREACHABLE
        return check_health(f"{address}:{probe.port}", timeout_s=probe.timeout_s)

    def address(self, name: str) -> str:
        """The pod's address now; empty while it has none."""
        networks = self.inspect(name)["NetworkSettings"]["Networks"]
        return str(networks[self._network]["IPAddress"])

    def inspect(self, name: str) -> Any:  # podman's JSON
        """What podman says of the pod's container."""
        return json.loads(podman("container", "inspect", self._containers[name]))[0]

    def restarts(self, name: str) -> int:
        """How often the container was started again."""
        return int(self.inspect(name)["RestartCount"])

    def kill(self, name: str) -> None:
        """The container's first process dies at once, as by a crash or for want of memory."""
        process = self.inspect(name)["State"]["Pid"]
        assert process > 1, f"{name} does not run"  # 0 would be this test's own process group
        os.kill(process, signal.SIGKILL)

    def execute(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """A shell command in the pod's container."""
        return subprocess.run(
            ["podman", "exec", self._containers[name], "sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
        )

    def log(self, name: str) -> str:
        """The last words of the pod."""
        done = subprocess.run(
            ["podman", "logs", "--tail=40", self._containers[name]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def run_client(self, image: str, command: Sequence[str], *options: str) -> subprocess.Popen[str]:
        """A further container on the same network, attached; ``command`` replaces its entry point."""
        name = f"client-{uuid.uuid4().hex[:8]}"
        self._containers[name] = name
        return subprocess.Popen(
            [
                "podman",
                "run",
                f"--name={name}",
                f"--network={self._network}",
                "--pull=never",
                f"--entrypoint={json.dumps(list(command[:1]))}",
                *options,
                image,
                *command[1:],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _ask_whether_alive(self) -> None:
        """Kills a container whose liveness probe failed too often in a row; podman starts it again."""
        watched = dict(self._pods)
        failures = dict.fromkeys(watched, 0)
        due_s = dict.fromkeys(watched, 0.0)
        started = {name: self.inspect(name)["State"]["Pid"] for name in watched}
        while not self._stopping.wait(POLL_S):
            for name, pod in watched.items():
                probe = pod.probes[LIVENESS]
                if time.monotonic() < due_s[name]:
                    continue
                due_s[name] = time.monotonic() + probe.period_s
                process = self.inspect(name)["State"]["Pid"]
                if process != started[name]:
                    # Started again: liveness counts from when the startup probe succeeds.
                    if self.ask(name, pod.probes["startupProbe"]) is Health.SERVING:
                        started[name] = process
                    continue
                alive = self.ask(name, probe) is Health.SERVING
                failures[name] = 0 if alive else failures[name] + 1
                if failures[name] >= probe.failures:
                    self.killed_by_liveness.append(name)
                    failures[name] = 0
                    self.kill(name)

    def _remove(self) -> None:
        if self._containers:
            podman("rm", "--force", "--ignore", "--time=10", *self._containers.values())
        podman("network", "rm", "--force", self._network)


def podman(*arguments: str) -> str:
    """One short command; its output without the last line's end."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def volume_option(folder: Path, place: str) -> str:
    """An option of ``podman run``: a folder of this machine that the container may write."""
    return f"--mount=type=bind,source={folder},destination={place}"
