"""Every address that a service is told leads to a service that is there, network policies let the call pass,
and both sides agree on TLS and tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from andon.deploy.environment import Variable, environment_of, service_of, settings_of
from andon.deploy.findings import Finding
from andon.deploy.network import denials
from andon.deploy.objects import Pods
from andon.deploy.rules import Scene

_TARGET = re.compile(r"(?:dns:///)?(?P<host>[^:/]+):(?P<port>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    pods: Pods
    service: str | None
    variables: Mapping[str, Variable]


def call_findings(scene: Scene) -> Iterator[Finding]:
    """Calls that would not arrive, or be refused."""
    sides = [
        _Side(pods=pods, service=service_of(container), variables=environment_of(scene, container))
        for pods in scene.cluster.pods
        for container in pods.containers
    ]
    for caller in sides:
        for name, variable in caller.variables.items():
            if variable.value is not None and re.fullmatch(r"ANDON_\w+_(TARGET|TARGETS)", name):
                targets = _targets(variable.value)
                for target in targets:
                    yield from _of_target(scene, sides, caller, name, target)
                if name.endswith("POLICY_TARGETS"):
                    yield from _of_samplers(scene, caller, targets)


def _targets(text: str) -> list[str]:
    try:
        listed = json.loads(text)
    except ValueError:
        return [part.strip() for part in text.split(",")]
    return [str(entry) for entry in listed] if isinstance(listed, list) else [str(listed)]


def _of_target(scene: Scene, sides: list[_Side], caller: _Side, name: str, target: str) -> Iterator[Finding]:
    address = _TARGET.fullmatch(target)
    if address is None:
        yield _finding("target", caller, f"{name}: {target!r} is not host:port")
        return
    host, port = address["host"], int(address["port"])
    pod, _dot, service_name = host.rpartition(".")
    service = scene.cluster.find("Service", service_name)
    if service is None or port not in {entry["port"] for entry in service["spec"]["ports"]}:
        yield _finding("target", caller, f"{name}: no Service {service_name} with port {port}")
        return
    callees = scene.cluster.selected({"matchLabels": service["spec"].get("selector") or {}})
    if pod and not any(pod in _pod_names(found) for found in callees):
        yield _finding("target", caller, f"{name}: Service {service_name} has no pod {pod}")
    for callee in callees:
        for direction in denials(scene.cluster, caller.pods, callee, port):
            message = f"{name}: the call to {callee.where}:{port} is denied ({direction.lower()})"
            yield _finding("network-policy-call", caller, message)
        for side in sides:
            if side.pods is callee:
                yield from _of_agreement(scene, caller, side, name)
                if "ANDON_TLS_CA" in caller.variables:
                    problem = certificate_problem(scene, callee, host)
                    if problem is not None:
                        yield _finding("tls-name", caller, f"{name}: {problem}")


def _of_agreement(scene: Scene, caller: _Side, callee: _Side, name: str) -> Iterator[Finding]:
    if callee.service is None:
        return
    settings = settings_of(callee.service, callee.variables)
    if "tls_certificate" in settings and "ANDON_TLS_CA" not in caller.variables:
        yield _finding("tls", caller, f"{name}: {callee.pods.where} speaks TLS, and ANDON_TLS_CA is not set")
    if "tls_certificate" not in settings and "ANDON_TLS_CA" in caller.variables:
        yield _finding("tls", caller, f"{name}: ANDON_TLS_CA is set, and {callee.pods.where} speaks no TLS")
    if "tls_client_ca" in settings and "ANDON_TLS_CERTIFICATE" not in caller.variables:
        message = f"{name}: {callee.pods.where} asks for a certificate, and ANDON_TLS_CERTIFICATE is not set"
        yield _finding("tls", caller, message)
    asks_for_token = callee.service == "labeling" or "tokens" in settings
    if asks_for_token and not caller.variables.keys() & {"ANDON_TOKEN", "ANDON_TOKEN_FILE"}:
        message = f"{name}: {callee.pods.where} asks for a token, and ANDON_TOKEN_FILE is not set"
        yield _finding("token", caller, message)


def certificate_problem(scene: Scene, callee: Pods, host: str) -> str | None:
    """Why callers of ``host`` would not believe the pods' certificate; None where they would."""
    secrets = {
        volume["secret"]["secretName"] for volume in callee.spec.get("volumes", []) if "secret" in volume
    }
    for certificate in scene.cluster.kind("Certificate"):
        spec = certificate["spec"]
        if spec["secretName"] in secrets and not any(
            _covers(name, host) for name in spec.get("dnsNames", [])
        ):
            return f"the certificate of {callee.where} does not name {host}"
    return None


def _covers(name: str, host: str) -> bool:
    if name == host:
        return True
    # Not every TLS library takes a wildcard over a name of one part; gRPC's own check of names does not.
    rest = name.removeprefix("*.")
    return rest != name and "." in rest and host.partition(".")[2] == rest


def _of_samplers(scene: Scene, caller: _Side, targets: list[str]) -> Iterator[Finding]:
    """The trainer sends weights to each sampler by itself: one too many fails, one too few goes stale."""
    hosts = {address["host"] for target in targets if (address := _TARGET.fullmatch(target))}
    for host in sorted(hosts):
        pod, _dot, service_name = host.rpartition(".")
        service = scene.cluster.find("Service", service_name)
        for found in scene.cluster.selected(
            {"matchLabels": (service or {}).get("spec", {}).get("selector") or {"": ""}}
        ):
            if not pod:
                message = f"{service_name} is a balanced name; the trainer must know every sampler by itself"
                yield _finding("samplers", caller, message)
                continue
            unknown = {name for name in _pod_names(found) if f"{name}.{service_name}" not in hosts}
            if unknown and host == min(hosts):
                message = f"{found.where} has pods that are no targets: {', '.join(sorted(unknown))}"
                yield _finding("samplers", caller, message)


def _pod_names(pods: Pods) -> list[str]:
    if pods.kind != "StatefulSet":
        return []
    return [f"{pods.name}-{number}" for number in range(pods.workload["spec"].get("replicas", 1))]


def _finding(rule: str, caller: _Side, message: str) -> Finding:
    return Finding(rule=rule, where=caller.pods.where, message=message)
