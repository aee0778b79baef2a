"""Decides who may call whom, by the network policies: what is not asked for is denied once a policy selects
the pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from andon.deploy.objects import Cluster, Json, Pods, matches

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
Direction = Literal["Ingress", "Egress"]


def denials(cluster: Cluster, caller: Pods, callee: Pods, port: int) -> list[Direction]:
    """The directions in which a TCP call is denied: none where it passes."""
    denied: list[Direction] = []
    if not _passes(cluster, "Egress", of=caller, peer=callee, callee=callee, port=port):
        denied.append("Egress")
    if not _passes(cluster, "Ingress", of=callee, peer=caller, callee=callee, port=port):
        denied.append("Ingress")
    return denied


def may_leave(cluster: Cluster, caller: Pods, port: int) -> bool:
    """Whether some rule lets TCP calls to this port out, to whomever."""
    specs = list(policies_for(cluster, caller, "Egress"))
    rules = [rule for spec in specs for rule in spec.get("egress") or []]
    return not specs or any(_has_port(rule.get("ports"), caller, port) for rule in rules)


def policies_for(cluster: Cluster, pods: Pods, direction: Direction) -> Iterator[Mapping[str, Json]]:
    """The specs of the policies that say something about these pods."""
    for policy in cluster.kind("NetworkPolicy"):
        spec = policy["spec"]
        if direction in policy_types(spec) and matches(spec.get("podSelector"), pods.labels):
            yield spec


def policy_types(spec: Mapping[str, Json]) -> Sequence[str]:
    """The directions that a policy is about."""
    if "policyTypes" in spec:
        types: Sequence[str] = spec["policyTypes"]
        return types
    return ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]


def _passes(cluster: Cluster, direction: Direction, *, of: Pods, peer: Pods, callee: Pods, port: int) -> bool:
    specs = list(policies_for(cluster, of, direction))
    if not specs:
        return True
    rules = [rule for spec in specs for rule in spec.get(direction.lower()) or []]
    return any(
        _has_peer(rule.get("from" if direction == "Ingress" else "to"), peer)
        and _has_port(rule.get("ports"), callee, port)
        for rule in rules
    )


def _has_peer(peers: Sequence[Mapping[str, Json]] | None, pods: Pods) -> bool:
    if not peers:
        return True
    # A peer in another namespace is somebody else, whatever its labels; blocks of addresses may hold anybody.
    return any(
        not {"namespaceSelector", "ipBlock"} & peer.keys() and matches(peer.get("podSelector"), pods.labels)
        for peer in peers
    )


def _has_port(ports: Sequence[Mapping[str, Json]] | None, callee: Pods, number: int) -> bool:
    if not ports:
        return True
    for port in ports:
        wanted = port.get("port")
        if port.get("protocol", "TCP") != "TCP":
            continue
        if wanted is None:
            return True
        if isinstance(wanted, str):
            wanted = callee.ports.get(wanted)
        if wanted is not None and wanted <= number <= port.get("endPort", wanted):
            return True
    return False
