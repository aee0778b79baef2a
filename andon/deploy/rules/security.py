"""Pod Security "restricted", limits, accounts of their own, least rights, and no secret in a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from andon.deploy.findings import Finding
from andon.deploy.objects import Json, Pods, where
from andon.deploy.rules import Scene

_SECRET_NAME = re.compile(r"(PASSWORD|SECRET|TOKEN|API_KEY|PRIVATE_KEY)$")
_URL_WITH_PASSWORD = re.compile(r"\w+://[^/\s:@]+:(?!\$\()[^/\s@]+@")
_ADDED_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})  # all that "restricted" lets a container add


def security_findings(scene: Scene) -> Iterator[Finding]:
    """What an attacker or a mistake could use."""
    bound = {
        subject["name"]
        for binding in scene.cluster.kind("RoleBinding", "ClusterRoleBinding")
        for subject in binding.get("subjects") or []
        if subject["kind"] == "ServiceAccount"
    }
    for pods in scene.cluster.pods:
        yield from _of_pod(pods, has_rights=pods.spec.get("serviceAccountName") in bound)
        for container in pods.containers:
            yield from _of_container(pods, container)
            for entry in container.get("env", []):
                yield from _plain_secret(pods.where, entry["name"], entry.get("value"))
    yield from _of_objects(scene)
    yield from _of_rights(scene)


def _of_pod(pods: Pods, *, has_rights: bool) -> Iterator[Finding]:
    spec = pods.spec
    account = spec.get("serviceAccountName")
    if account in (None, "default"):
        yield _finding("default-account", pods, "it runs under the default service account")
    if spec.get("automountServiceAccountToken") is not False and not has_rights:
        yield _finding("account-token", pods, "it gets a token of the API server that it has no use for")
    if spec.get("enableServiceLinks") is not False:
        message = "enableServiceLinks is on: it sets ANDON_..._PORT, which services read as settings"
        yield _finding("service-links", pods, message)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield _finding("restricted", pods, f"{field} is on")
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield _finding("restricted", pods, f"volume {volume['name']} is a folder of the node")


def _of_container(pods: Pods, container: Mapping[str, Json]) -> Iterator[Finding]:
    name = container["name"]
    own = container.get("securityContext") or {}
    both = {**(pods.spec.get("securityContext") or {}), **own}
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield _finding("restricted", pods, f"container {name} may run as root")
    if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield _finding("restricted", pods, f"container {name} has no seccomp profile")
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield _finding("restricted", pods, f"container {name} may gain privileges")
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - _ADDED_CAPABILITIES:
        yield _finding("restricted", pods, f"container {name} does not drop all capabilities")
    if own.get("readOnlyRootFilesystem") is not True:
        yield _finding("read-only-root", pods, f"container {name} may write into its image")
    for port in container.get("ports", []):
        if "hostPort" in port:
            yield _finding("restricted", pods, f"container {name} takes port {port['hostPort']} of the node")
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if "memory" not in limits:
        yield _finding("resources", pods, f"container {name} has no limit of memory")
    for resource in ("cpu", "memory"):
        if resource not in requests:
            yield _finding("resources", pods, f"container {name} requests no {resource}")
    for resource in sorted(set(requests) & set(limits)):
        if quantity(str(requests[resource])) > quantity(str(limits[resource])):
            message = f"container {name} requests more {resource} than its limit"
            yield _finding("resources", pods, message)


def _of_objects(scene: Scene) -> Iterator[Finding]:
    for manifest in scene.cluster.manifests:
        kind = manifest.get("kind")
        if kind == "Secret":
            message = "a Secret stands among the manifests; make it in the cluster"
            yield Finding(rule="plain-secret", where=where(manifest), message=message)
        elif kind == "ConfigMap":
            for name, value in (manifest.get("data") or {}).items():
                yield from _plain_secret(where(manifest), name, value)
        elif kind == "Namespace":
            level = (manifest["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce")
            if level != "restricted":
                message = "Pod Security does not enforce restricted"
                yield Finding(rule="restricted", where=where(manifest), message=message)
        elif kind == "Service" and manifest["spec"].get("type") in ("NodePort", "LoadBalancer"):
            message = f"type {manifest['spec']['type']} opens it to outside, past the Gateway"
            yield Finding(rule="open-service", where=where(manifest), message=message)


def _plain_secret(place: str, name: str, value: Json) -> Iterator[Finding]:
    if not isinstance(value, str) or not value:
        return
    if _SECRET_NAME.search(name.upper()) or _URL_WITH_PASSWORD.search(value):
        yield Finding(rule="plain-secret", where=place, message=f"{name} holds a secret in plain text")


def _of_rights(scene: Scene) -> Iterator[Finding]:
    for role in scene.cluster.kind("Role", "ClusterRole"):
        if role["kind"] == "ClusterRole":
            message = "rights in all namespaces; a Role is enough"
            yield Finding(rule="rights", where=where(role), message=message)
        for rule in role.get("rules") or []:
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in rule.get(field, []):
                    yield Finding(rule="rights", where=where(role), message=f"{field} holds a wildcard")
            if "secrets" in rule.get("resources", []):
                yield Finding(rule="rights", where=where(role), message="it may read or write Secrets")
            changes = {"update", "patch", "delete", "deletecollection"} & set(rule.get("verbs", []))
            if changes and not rule.get("resourceNames"):
                message = f"{', '.join(sorted(changes))} on any of {', '.join(rule.get('resources', []))}"
                yield Finding(rule="rights", where=where(role), message=f"{message}: no names")


_SUFFIXES = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_SUFFIXES |= {"Ti": 2.0**40, "": 1.0}


def quantity(text: str) -> float:
    """A quantity such as 250m or 8Gi as a number; 0 for what is none, which the schema says."""
    found = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti|)", text)
    return 0.0 if found is None else float(found[1]) * _SUFFIXES[found[2]]


def _finding(rule: str, pods: Pods, message: str) -> Finding:
    return Finding(rule=rule, where=pods.where, message=message)
