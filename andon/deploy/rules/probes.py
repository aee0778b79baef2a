"""Every container that serves is probed, at a port that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from andon.deploy.findings import Finding
from andon.deploy.objects import Json, Pods
from andon.deploy.rules import Scene

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def probe_findings(scene: Scene) -> Iterator[Finding]:
    """Probes that would fail, or are missing where a Service or a rolling update waits for them."""
    for pods in scene.cluster.pods:
        for container in pods.spec.get("containers", []):
            for name in PROBES:
                if name in container:
                    yield from _of_probe(pods, container[name], name)
                elif pods.kind in ("Deployment", "StatefulSet", "Rollout"):
                    message = f"container {container['name']} has no {name}"
                    yield Finding(rule="probe", where=pods.where, message=message)


def _of_probe(pods: Pods, probe: Mapping[str, Json], name: str) -> Iterator[Finding]:
    for action in ("grpc", "httpGet", "tcpSocket"):
        port = probe.get(action, {}).get("port")
        if port is None:
            continue
        number = pods.ports.get(port) if isinstance(port, str) else port
        if number is None or number not in pods.port_numbers:
            message = f"{name} asks port {port}, which the pod does not have"
            yield Finding(rule="probe", where=pods.where, message=message)
        elif action == "grpc" and number != pods.ports.get("health", number):
            message = f"{name} asks port {port}; only the port health speaks neither TLS nor tokens"
            yield Finding(rule="probe", where=pods.where, message=message)
