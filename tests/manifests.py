"""What tests need of the Kubernetes manifests: overlays rendered once, and mistakes planted into copies."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from andon.deploy.combinations import all_combinations
from andon.deploy.kustomize import Manifest, find_kubectl
from andon.deploy.requirements import Requirements, find_requirements
from tests.monitoring import program

ROOT = Path(__file__).parents[1] / "deploy" / "k8s"


@cache
def kubectl() -> str:
    """The program; the test skips without it."""
    program("kubectl", package="kubernetes-client, of 1.27 or newer")
    return find_kubectl()


@cache
def requirements() -> Requirements:
    """What the manifests expect."""
    return find_requirements(ROOT)


@cache
def _rendered(name: str) -> list[Manifest]:
    wanted = {entry.name: entry for entry in all_combinations(ROOT, requirements())}
    return wanted[name].render(kubectl=kubectl())


def rendered(name: str) -> list[Manifest]:
    """A combination's manifests, the caller's own."""
    return copy.deepcopy(_rendered(name))


class Planting:
    """Manifests into which a test plants a mistake."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests

    def find(self, place: str) -> Any:
        """The object called, for example, "Deployment/andon-policy"; generated names without their hash."""
        kind, _slash, name = place.partition("/")
        found = [
            manifest
            for manifest in self.manifests
            if manifest["kind"] == kind
            and (manifest["metadata"]["name"] == name or _unhashed(manifest["metadata"]["name"]) == name)
        ]
        exact = [manifest for manifest in found if manifest["metadata"]["name"] == name]
        (only,) = exact or found
        return only

    def remove(self, place: str) -> None:
        """Take an object out."""
        self.manifests.remove(self.find(place))

    def pod(self, place: str) -> Any:
        """The pod's spec of a workload, or of an analysis's first Job."""
        spec = self.find(place)["spec"]
        if "metrics" in spec:
            spec = self.job(place)["spec"]
        return spec["template"]["spec"]

    def job(self, place: str) -> Any:
        """The Job of an analysis's first metric."""
        return self.find(place)["spec"]["metrics"][0]["provider"]["job"]

    def container(self, place: str) -> Any:
        """Its first container."""
        return self.pod(place)["containers"][0]


def _unhashed(name: str) -> str:
    stem, _dash, end = name.rpartition("-")
    return stem if len(end) == 10 else name
