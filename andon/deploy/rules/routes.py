"""Every route leads from a listener that is there to a Service that is there, speaking as it speaks."""

from __future__ import annotations

from collections.abc import Iterator

from andon.deploy.environment import environment_of, service_of, settings_of
from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.objects import Pods, where
from andon.deploy.rules import Scene
from andon.deploy.rules.calls import certificate_problem
from andon.deploy.rules.references import config_map_keys, secret_keys

PLAIN_HTTP2 = "kubernetes.io/h2c"


def route_findings(scene: Scene) -> Iterator[Finding]:
    """Routes, Gateways and TLS to backends that do not fit together."""
    for route in scene.cluster.kind("GRPCRoute", "HTTPRoute"):
        yield from _of_parents(scene, route)
        for rule in route["spec"].get("rules", []):
            backends = rule.get("backendRefs", [])
            if not backends or sum(backend.get("weight", 1) for backend in backends) == 0:
                message = "a rule sends its calls nowhere"
                yield Finding(rule="route-backend", where=where(route), message=message)
            for backend in backends:
                yield from _of_backend(scene, route, backend["name"], backend.get("port"))
    for gateway in scene.cluster.kind("Gateway"):
        references = [
            reference
            for listener in gateway["spec"]["listeners"]
            for reference in (listener.get("tls") or {}).get("certificateRefs", [])
        ]
        backend_tls = (gateway["spec"].get("tls") or {}).get("backend") or {}
        if "clientCertificateRef" in backend_tls:
            references.append(backend_tls["clientCertificateRef"])
        for reference in references:
            if secret_keys(scene, reference["name"]) is None:
                message = f"Secret {reference['name']} does not exist"
                yield Finding(rule="secret", where=where(gateway), message=message)
    yield from _of_protocols(scene)
    for policy in scene.cluster.kind("BackendTLSPolicy"):
        for target in policy["spec"]["targetRefs"]:
            if scene.cluster.find(target["kind"], target["name"]) is None:
                message = f"{target['kind']} {target['name']} does not exist"
                yield Finding(rule="route-backend", where=where(policy), message=message)
            yield from _of_backend_names(scene, policy, target["name"])
        for reference in policy["spec"]["validation"].get("caCertificateRefs", []):
            if reference["kind"] == "ConfigMap" and "ca.crt" not in (
                config_map_keys(scene, reference["name"]) or ()
            ):
                message = f"ConfigMap {reference['name']} with key ca.crt does not exist"
                yield Finding(rule="config-map", where=where(policy), message=message)


def _of_protocols(scene: Scene) -> Iterator[Finding]:
    for service in scene.cluster.kind("Service"):
        is_plain = any(port.get("appProtocol") == PLAIN_HTTP2 for port in service["spec"].get("ports", []))
        selector = service["spec"].get("selector")
        if not is_plain or not selector:
            continue
        for pods in scene.cluster.selected({"matchLabels": selector}):
            if _speaks_tls(scene, pods):
                message = f"a port says {PLAIN_HTTP2}, and {pods.where} speaks TLS"
                yield Finding(rule="tls", where=where(service), message=message)


def _speaks_tls(scene: Scene, pods: Pods) -> bool:
    return any(
        (running := service_of(container)) is not None
        and "tls_certificate" in settings_of(running, environment_of(scene, container))
        for container in pods.containers
    )


def _of_backend_names(scene: Scene, policy: Manifest, service_name: str) -> Iterator[Finding]:
    service = scene.cluster.find("Service", service_name)
    selector = None if service is None else service["spec"].get("selector")
    for pods in scene.cluster.selected({"matchLabels": selector}) if selector else []:
        problem = certificate_problem(scene, pods, policy["spec"]["validation"]["hostname"])
        if problem is not None:
            yield Finding(rule="tls-name", where=where(policy), message=problem)


def _of_parents(scene: Scene, route: Manifest) -> Iterator[Finding]:
    for parent in route["spec"].get("parentRefs", []):
        gateway = scene.cluster.find(parent.get("kind", "Gateway"), parent["name"])
        if gateway is None:
            message = f"Gateway {parent['name']} does not exist"
            yield Finding(rule="route-parent", where=where(route), message=message)
            continue
        listeners = {listener["name"]: listener for listener in gateway["spec"]["listeners"]}
        section = parent.get("sectionName")
        if section is not None and section not in listeners:
            message = f"Gateway {parent['name']} has no listener {section}"
            yield Finding(rule="route-parent", where=where(route), message=message)


def _of_backend(scene: Scene, route: Manifest, name: str, port: int | None) -> Iterator[Finding]:
    service = scene.cluster.find("Service", name)
    if service is None or port not in {entry["port"] for entry in service["spec"]["ports"]}:
        message = f"no Service {name} with port {port}"
        yield Finding(rule="route-backend", where=where(route), message=message)
        return
    has_policy = any(
        target["kind"] == "Service" and target["name"] == name
        for policy in scene.cluster.kind("BackendTLSPolicy")
        for target in policy["spec"]["targetRefs"]
    )
    for pods in scene.cluster.selected({"matchLabels": service["spec"].get("selector") or {}}):
        speaks_tls = _speaks_tls(scene, pods)
        if speaks_tls != has_policy:
            message = (
                f"{pods.where} speaks TLS, and no BackendTLSPolicy says so of Service {name}"
                if speaks_tls
                else f"a BackendTLSPolicy asks TLS of Service {name}, and {pods.where} speaks none"
            )
            yield Finding(rule="tls", where=where(route), message=message)
