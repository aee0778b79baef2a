"""Every selector finds the pods that it means, and every port of a Service leads to a port of a container."""

from __future__ import annotations

from collections.abc import Iterator

from andon.deploy.findings import Finding
from andon.deploy.objects import Json, Pods, matches, where
from andon.deploy.rules import Scene


def selector_findings(scene: Scene) -> Iterator[Finding]:
    """Selectors that find nothing, or too much; ports that lead nowhere."""
    yield from _of_workloads(scene)
    yield from _of_services(scene)
    yield from _of_budgets(scene)
    yield from _of_monitors(scene)


def _of_workloads(scene: Scene) -> Iterator[Finding]:
    for pods in scene.cluster.pods:
        selector = pods.workload["spec"].get("selector")
        if pods.kind in ("Deployment", "StatefulSet", "DaemonSet", "Rollout"):
            if not matches(selector, pods.labels):
                yield Finding(
                    rule="workload-selector",
                    where=pods.where,
                    message="its selector does not find its own pods",
                )
            for other in scene.cluster.selected(selector):
                if other.where != pods.where:
                    message = f"its selector also finds the pods of {other.where}"
                    yield Finding(rule="workload-selector", where=pods.where, message=message)
        for constraint in pods.spec.get("topologySpreadConstraints", []):
            if not matches(constraint.get("labelSelector"), pods.labels):
                message = f"the spread over {constraint['topologyKey']} does not count its own pods"
                yield Finding(rule="topology-spread", where=pods.where, message=message)


def _of_services(scene: Scene) -> Iterator[Finding]:
    for service in scene.cluster.kind("Service"):
        selector = service["spec"].get("selector")
        if not selector:
            continue
        found = scene.cluster.selected({"matchLabels": selector})
        if not found:
            yield Finding(rule="service-selector", where=where(service), message="its selector finds no pods")
        is_headless = service["spec"].get("clusterIP") == "None"
        for pods in found:
            for port in service["spec"].get("ports", []):
                yield from _of_service_port(where(service), port, pods, is_headless=is_headless)


def _of_service_port(place: str, port: Json, pods: Pods, *, is_headless: bool) -> Iterator[Finding]:
    target = port.get("targetPort", port["port"])
    number = pods.ports.get(target) if isinstance(target, str) else target
    if number is None or number not in pods.port_numbers:
        message = f"port {port['port']} leads to {target}, which {pods.where} does not have"
        yield Finding(rule="service-port", where=place, message=message)
    elif is_headless and number != port["port"]:
        # Nothing stands between: clients call the pod's own address at the Service's number.
        message = f"headless, but port {port['port']} differs from {pods.where}'s port {number}"
        yield Finding(rule="service-port", where=place, message=message)


def _of_budgets(scene: Scene) -> Iterator[Finding]:
    for budget in scene.cluster.kind("PodDisruptionBudget"):
        found = scene.cluster.selected(budget["spec"].get("selector"))
        if not found:
            yield Finding(rule="disruption-budget", where=where(budget), message="its selector finds no pods")
        spec = budget["spec"]
        for pods in found:
            replicas = pods.workload["spec"].get("replicas", 1)
            if spec.get("maxUnavailable") in (0, "0%") or (
                isinstance(spec.get("minAvailable"), int) and 0 < replicas <= spec["minAvailable"]
            ):
                message = f"no pod of {pods.where} may ever be moved: nodes cannot be drained"
                yield Finding(rule="disruption-budget", where=where(budget), message=message)


def _of_monitors(scene: Scene) -> Iterator[Finding]:
    for monitor in scene.cluster.kind("PodMonitor"):
        found = scene.cluster.selected(monitor["spec"]["selector"])
        for endpoint in monitor["spec"].get("podMetricsEndpoints", []):
            if not any(endpoint.get("port") in pods.ports for pods in found):
                message = f"no pod that it selects has the port {endpoint.get('port')}"
                yield Finding(rule="pod-monitor", where=where(monitor), message=message)
