"""Decides how rules look at manifests: pods behind whatever makes them, and objects by kind and name.

Everything is looked at as it would stand in one namespace, which the objects themselves name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from andon.deploy.kustomize import Manifest

# Any, here and below: the JSON of an object's part
Json = Any

_ARGUMENT = re.compile(r"\{\{\s*args\.([\w.-]+?)\s*\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The pods that one workload makes, all alike."""

    where: str  # the workload, such as "Deployment/andon-policy"
    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Json]
    workload: Manifest
    claims: frozenset[str] = frozenset()  # names of volumes that a StatefulSet makes for each pod

    @property
    def containers(self) -> Sequence[Mapping[str, Json]]:
        """All containers, those that run before the others included."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    @property
    def ports(self) -> Mapping[str, int]:
        """Numbers of the named ports."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
            if "name" in port
        }

    @property
    def port_numbers(self) -> frozenset[int]:
        """Every port that a container names."""
        return frozenset(
            port["containerPort"] for container in self.containers for port in container.get("ports", [])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is there once the manifests are applied."""

    manifests: Sequence[Manifest]
    by_name: Mapping[tuple[str, str], Manifest] = field(repr=False)
    pods: Sequence[Pods]

    def kind(self, *kinds: str) -> Iterator[Manifest]:
        """All objects of these kinds."""
        return (manifest for manifest in self.manifests if manifest.get("kind") in kinds)

    def find(self, kind: str, name: str) -> Manifest | None:
        """The object of this name."""
        return self.by_name.get((kind, name))

    def selected(self, selector: Mapping[str, Json] | None) -> list[Pods]:
        """The pods that a label selector finds; an empty one finds all."""
        return [pods for pods in self.pods if matches(selector, pods.labels)]


def where(manifest: Manifest) -> str:
    """How findings name an object."""
    metadata = manifest.get("metadata") or {}
    return f"{manifest.get('kind', '?')}/{metadata.get('name', '?')}"


def matches(selector: Mapping[str, Json] | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector takes an object with these labels."""
    if selector is None:
        return True
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression_holds(entry, labels) for entry in selector.get("matchExpressions") or [])


def _expression_holds(expression: Mapping[str, Json], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case _:  # DoesNotExist; the schema knows no other
            return value is None


def analysis_jobs(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """The Jobs of an AnalysisTemplate, each with the name of its metric."""
    for metric in manifest["spec"].get("metrics", []):
        job = metric["provider"].get("job")
        if job is not None:
            yield metric["name"], job


def declared_arguments(manifest: Manifest) -> dict[str, str | None]:
    """The arguments of an AnalysisTemplate; None where it says no value of its own."""
    return {argument["name"]: argument.get("value") for argument in manifest["spec"].get("args", [])}


def arguments_in(text: str) -> set[str]:
    """The arguments of an analysis that a text asks Argo to put in."""
    return set(_ARGUMENT.findall(text))


def with_arguments(part: Json, values: Mapping[str, str | None]) -> Json:
    """A part of an analysis with those arguments put in whose values are known."""

    def value_of(found: re.Match[str]) -> str:
        value = values.get(found[1])
        return found[0] if value is None else json.dumps(value)[1:-1]

    return json.loads(_ARGUMENT.sub(value_of, json.dumps(part)))


def look_at(manifests: Sequence[Manifest]) -> Cluster:
    """The manifests with their pods found."""
    by_name = {
        (manifest.get("kind", "?"), (manifest.get("metadata") or {}).get("name", "?")): manifest
        for manifest in manifests
    }
    pods = [found for manifest in manifests for found in _pods_of(manifest, by_name)]
    return Cluster(manifests=manifests, by_name=by_name, pods=pods)


def _pods_of(manifest: Manifest, by_name: Mapping[tuple[str, str], Manifest]) -> Iterator[Pods]:
    spec = manifest.get("spec") or {}
    match manifest.get("kind"):
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            yield _pods(manifest, spec.get("template"))
        case "CronJob":
            yield _pods(manifest, spec.get("jobTemplate", {}).get("spec", {}).get("template"))
        case "JobSet":
            for job in spec.get("replicatedJobs", []):
                yield _pods(manifest, job["template"]["spec"].get("template"))
        case "Rollout":
            if "template" in spec:
                yield _pods(manifest, spec["template"])
        case "AnalysisTemplate":
            values = declared_arguments(manifest)
            for _metric, job in analysis_jobs(manifest):
                yield _pods(manifest, with_arguments(job["spec"].get("template"), values))


def _pods(manifest: Manifest, template: Mapping[str, Json] | None) -> Pods:
    template = template or {}
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    if manifest["kind"] == "JobSet":
        # Kubernetes numbers the pods of an indexed Job; what asks for the first finds it here.
        labels.setdefault("batch.kubernetes.io/job-completion-index", "0")
    claims = (manifest.get("spec") or {}).get("volumeClaimTemplates") or []
    return Pods(
        where=where(manifest),
        kind=manifest["kind"],
        name=manifest["metadata"]["name"],
        labels=labels,
        spec=template.get("spec") or {},
        workload=manifest,
        claims=frozenset(claim["metadata"]["name"] for claim in claims),
    )
