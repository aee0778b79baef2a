"""Decides what a container's process sees: which service it runs, its variables, which paths are files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from andon.deploy.objects import Json, Pods, arguments_in
from andon.deploy.rules import Scene
from andon.deploy.rules.references import volume_keys

# The judge is a program of the canary service and has settings of its own: services.canary.judge.
_SERVICE = re.compile(r"services\.(?:[a-z]+\.)?([a-z]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable; the value is None where it comes from a Secret, the pod's own facts or an analysis's
    arguments.
    """

    value: str | None


def service_of(container: Mapping[str, Json]) -> str | None:
    """Which service of Andon the container runs; None for any other program."""
    for word in (*container.get("command", []), *container.get("args", [])):
        if (found := _SERVICE.fullmatch(word)) is not None:
            return found[1]
    return None


def environment_of(scene: Scene, container: Mapping[str, Json]) -> dict[str, Variable]:
    """All variables; what stands in ``env`` is stronger than what a ConfigMap brings."""
    variables: dict[str, Variable] = {}
    for source in container.get("envFrom", []):
        reference = source.get("configMapRef")
        found = None if reference is None else scene.cluster.find("ConfigMap", reference["name"])
        prefix = source.get("prefix", "")
        for name, value in ((found or {}).get("data") or {}).items():
            variables[prefix + name] = Variable(value=value)
    for entry in container.get("env", []):
        variables[entry["name"]] = Variable(value=_value_of(scene, entry))
    return variables


def _value_of(scene: Scene, entry: Mapping[str, Json]) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        text = str(entry.get("value", ""))
        return None if arguments_in(text) else text
    reference = source.get("configMapKeyRef")
    if reference is None:
        return None
    found = scene.cluster.find("ConfigMap", reference["name"]) or {}
    value = (found.get("data") or {}).get(reference["key"])
    return None if value is None else str(value)


def settings_of(service: str, variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """The service's settings by the names of its fields."""
    prefix = f"ANDON_{service.upper()}_"
    return {
        name.removeprefix(prefix).lower(): variable
        for name, variable in variables.items()
        if name.startswith(prefix)
    }


def path_problem(
    scene: Scene, pods: Pods, container: Mapping[str, Json], path: str, *, is_written: bool
) -> str | None:
    """What is wrong with a path that the process uses; None where it lies on a volume that has it."""
    place = PurePosixPath(path)
    if not place.is_absolute():
        return f"{path} is relative, and the image's folder cannot be written"
    mounts = [
        mount
        for mount in container.get("volumeMounts", [])
        if place.is_relative_to(PurePosixPath(mount["mountPath"]))
    ]
    if not mounts:
        return f"{path} lies on no volume"
    mount = max(mounts, key=lambda candidate: len(candidate["mountPath"]))
    if is_written and mount.get("readOnly"):
        return f"{path} lies on volume {mount['name']}, which is mounted read-only"
    for volume in pods.spec.get("volumes", []):
        if volume["name"] == mount["name"]:
            keys = volume_keys(scene, volume)
            name = str(place.relative_to(PurePosixPath(mount["mountPath"])))
            if keys is not None and name not in keys:
                return f"{path}: volume {volume['name']} has no file {name}"
    return None
