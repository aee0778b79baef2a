"""Network policies deny by default in both directions, select pods that are there, and name peers and ports
that are there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.network import NAMESPACE_LABEL, policy_types
from andon.deploy.objects import Json, Pods, where
from andon.deploy.rules import Scene


def network_policy_findings(scene: Scene) -> Iterator[Finding]:
    """Policies that do not do what they seem to do."""
    denied = set()
    for policy in scene.cluster.kind("NetworkPolicy"):
        spec = policy["spec"]
        selected = scene.cluster.selected(spec.get("podSelector"))
        if not selected:
            yield _finding("network-policy-selector", policy, "it selects no pods")
        for direction in policy_types(spec):
            rules = spec.get(direction.lower()) or []
            if not spec.get("podSelector") and not rules:
                denied.add(direction)
            for rule in rules:
                peers_found: list[Pods] = []
                for peer in rule.get("from" if direction == "Ingress" else "to") or []:
                    found = yield from _of_peer(scene, policy, peer)
                    peers_found += found
                # Inbound ports are those of the selected pods, outbound ones those of the peers.
                callees = selected if direction == "Ingress" else peers_found
                for port in rule.get("ports") or []:
                    yield from _of_port(policy, port, callees)
    if scene.cluster.pods:
        for direction in ("Ingress", "Egress"):
            if direction not in denied:
                yield Finding(
                    rule="default-deny",
                    where="NetworkPolicy/*",
                    message=f"no policy denies {direction.lower()} to all pods by default",
                )


def _of_peer(
    scene: Scene, policy: Manifest, peer: Mapping[str, Json]
) -> Generator[Finding, None, list[Pods]]:
    """Yields findings and returns the pods that the peer means, where these are among the manifests."""
    if "ipBlock" in peer:
        return []
    if "namespaceSelector" in peer:
        labels = (peer["namespaceSelector"] or {}).get("matchLabels") or {}
        name = labels.get(NAMESPACE_LABEL)
        if name is None:
            message = f"a peer's namespace is not named by the label {NAMESPACE_LABEL}: pods of any may call"
            yield _finding("network-policy-peer", policy, message)
        elif name not in scene.requirements.namespaces:
            yield _finding("network-policy-peer", policy, f"namespace {name} is not among the required ones")
        return []
    found = scene.cluster.selected(peer.get("podSelector"))
    if not found:
        yield _finding("network-policy-peer", policy, f"peer {peer.get('podSelector')} finds no pods")
    return found


def _of_port(policy: Manifest, port: Mapping[str, Json], callees: list[Pods]) -> Iterator[Finding]:
    wanted = port.get("port")
    if wanted is None or not callees:
        return
    for pods in callees:
        has_it = wanted in pods.ports if isinstance(wanted, str) else wanted in pods.port_numbers
        if not has_it:
            yield _finding("network-policy-port", policy, f"{pods.where} has no port {wanted}")


def _finding(rule: str, policy: Manifest, message: str) -> Finding:
    return Finding(rule=rule, where=where(policy), message=message)
