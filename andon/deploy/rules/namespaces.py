"""All objects stand in one namespace, which is there; none is left to where somebody happens to apply it."""

from __future__ import annotations

from collections.abc import Iterator

from andon.deploy.findings import Finding
from andon.deploy.objects import where
from andon.deploy.rules import Scene

# Of the kinds that the manifests may hold, those that belong to no namespace.
OF_THE_CLUSTER = frozenset(
    {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "StorageClass", "PersistentVolume"}
)


def namespace_findings(scene: Scene) -> Iterator[Finding]:
    """Objects that would land beside the others."""
    spaces = {manifest["metadata"]["name"] for manifest in scene.cluster.kind("Namespace")}
    used: set[str] = set()
    for manifest in scene.cluster.manifests:
        if manifest["kind"] in OF_THE_CLUSTER:
            continue
        name = manifest["metadata"].get("namespace")
        if name is None:
            message = "it names no namespace: an overlay says `namespace: ...`"
            yield Finding(rule="namespace", where=where(manifest), message=message)
        elif spaces and name not in spaces:
            message = f"namespace {name} is not the one of the others ({', '.join(sorted(spaces))})"
            yield Finding(rule="namespace", where=where(manifest), message=message)
        else:
            used.add(name)
    if len(used) > 1:
        message = f"the objects stand in several namespaces: {', '.join(sorted(used))}"
        yield Finding(rule="namespace", where="Namespace/*", message=message)
