"""Reads rendered manifests as a kubelet on one node would, and says each pod as arguments of ``podman run``.

Everything comes from the manifests: user, security context, limits, variables, volumes, probes. A field that
podman would need to be told of and is not known here is an error, so that nothing is left out silently. What
one machine without a cluster cannot act on is listed in ``ONLY_IN_A_CLUSTER``.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Manifest: TypeAlias = dict[str, Any]

ONLY_IN_A_CLUSTER = {
    "serviceAccountName",  # no API server
    "priorityClassName",
    "topologySpreadConstraints",
    "enableServiceLinks",  # podman sets no such variables
}
POD_FIELDS = ONLY_IN_A_CLUSTER | {
    "automountServiceAccountToken",
    "containers",
    "securityContext",
    "terminationGracePeriodSeconds",
    "volumes",
}
CONTAINER_FIELDS = {
    "args",
    "env",
    "envFrom",
    "image",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "volumeMounts",
}
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question that the kubelet asks over grpc.health.v1; times as the API's defaults."""

    port: int
    service: str
    period_s: float
    timeout_s: float
    failures: int

    @property
    def patience_s(self) -> float:
        """After how long a pod that never answers is given up."""
        return self.period_s * self.failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder of this machine, or memory where ``source`` is None, in a container."""

    source: Path | None
    place: str
    read_only: bool
    size_bytes: int | None = None  # of memory
    files: Mapping[str, bytes] | None = None  # what is in it from the beginning
    file_mode: int | None = None

    def make(self, group: int) -> None:
        """Makes the folder as ``fsGroup`` has it: the group may write and owns what is made in it."""
        if self.source is None:
            return
        self.source.mkdir(parents=True, exist_ok=True)
        shutil.chown(self.source, group=group)
        self.source.chmod(0o2775)
        for name, content in (self.files or {}).items():
            path = self.source / name
            path.write_bytes(content)
            shutil.chown(path, group=group)
            path.chmod(self.file_mode or 0o644)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod with its only container."""

    name: str
    workload: str
    host_names: tuple[str, ...]  # under which others of the namespace reach it
    image: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    user: int
    group: int
    volume_group: int
    memory_bytes: int
    cpu_shares: int
    grace_s: int
    mounts: tuple[Mount, ...]
    probes: Mapping[str, Probe]

    def make_folders(self) -> None:
        """What the mounts need on this machine; as root, who alone may give a folder to any group."""
        for mount in self.mounts:
            mount.make(self.volume_group)

    def run_arguments(self, network: str) -> list[str]:
        """What follows ``podman run``."""
        arguments = ["--detach", f"--name={self.name}", f"--hostname={self.name}", f"--network={network}"]
        arguments += [f"--network-alias={name}" for name in self.host_names]
        arguments += [f"--user={self.user}:{self.group}", f"--group-add={self.volume_group}"]
        # seccomp: podman's default profile is the runtime's.
        arguments += ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all"]
        arguments += ["--security-opt=no-new-privileges", "--restart=always", "--pull=never"]
        arguments += [f"--memory={self.memory_bytes}", f"--memory-swap={self.memory_bytes}"]
        arguments += [f"--cpu-shares={self.cpu_shares}", f"--stop-timeout={self.grace_s}"]
        arguments += [f"--env={name}={value}" for name, value in self.environment.items()]
        for mount in self.mounts:
            read_only = ",ro=true" if mount.read_only else ""
            if mount.source is None:
                arguments.append(
                    f"--mount=type=tmpfs,destination={mount.place},tmpfs-size={mount.size_bytes},tmpfs-mode=1777"
                )
            else:
                arguments.append(
                    f"--mount=type=bind,source={mount.source},destination={mount.place}{read_only}"
                )
        return [*arguments, self.image, *self.arguments]


class Node:
    """The folders of one node and the objects of one namespace."""

    def __init__(self, objects: Iterable[Manifest], folder: Path) -> None:
        """``objects`` are the manifests and the Secrets; volumes lie below ``folder``."""
        self._objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self._folder = folder

    def pods(self, scaled: Mapping[str, int] | None = None) -> list[Pod]:
        """All pods of all workloads: as many as each asks for, or as ``scaled`` says by name."""
        return [
            self._pod(workload, index)
            for (kind, name), workload in self._objects.items()
            if kind in ("Deployment", "StatefulSet")
            for index in range((scaled or {}).get(name, workload["spec"]["replicas"]))
        ]

    def claim(self, name: str) -> Path:
        """The folder of a PersistentVolumeClaim."""
        self._object("PersistentVolumeClaim", name)
        return self._folder / "claims" / name

    def _pod(self, workload: Manifest, index: int) -> Pod:
        name = f"{workload['metadata']['name']}-{index}"
        spec = workload["spec"]["template"]["spec"]
        _refuse_unknown(name, spec, POD_FIELDS)
        (container,) = spec["containers"]
        _refuse_unknown(name, container, CONTAINER_FIELDS)
        security, own = spec["securityContext"], container["securityContext"]
        _refuse_unknown(
            name,
            security,
            {"fsGroup", "fsGroupChangePolicy", "runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile"},
        )
        # What ``run_arguments`` always says must be what the manifest says.
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }, name
        assert spec["automountServiceAccountToken"] is False, name
        limits = container["resources"]["limits"]
        assert set(limits) == {"memory"}, name
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        return Pod(
            name=name,
            workload=workload["metadata"]["name"],
            host_names=tuple(self._host_names(workload, name)),
            image=container["image"],
            arguments=tuple(container["args"]),
            environment=self._environment(container),
            user=security["runAsUser"],
            group=security["runAsGroup"],
            volume_group=security["fsGroup"],
            memory_bytes=size_bytes(limits["memory"]),
            cpu_shares=round(cores(container["resources"]["requests"]["cpu"]) * 1024),  # as a kubelet does
            grace_s=spec["terminationGracePeriodSeconds"],
            mounts=tuple(
                self._mount(name, mount, volumes[mount["name"]]) for mount in container["volumeMounts"]
            ),
            probes={kind: _probe(container[kind]) for kind in PROBES},
        )

    def _host_names(self, workload: Manifest, pod_name: str) -> Iterator[str]:
        """Names of headless Services. They are not translated, so ports must be the container's own."""
        labels = workload["spec"]["template"]["metadata"]["labels"]
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for (kind, name), service in self._objects.items():
            if kind != "Service" or not service["spec"]["selector"].items() <= labels.items():
                continue
            assert service["spec"]["clusterIP"] == "None", name
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"], name
            yield name
            if workload["spec"].get("serviceName") == name:
                yield f"{pod_name}.{name}"

    def _environment(self, container: Manifest) -> dict[str, str]:
        values: dict[str, str] = {}
        for source in container.get("envFrom", []):
            values.update(self._object("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in container.get("env", []):
            if "value" in variable:
                values[variable["name"]] = variable["value"]
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                values[variable["name"]] = self._secret(reference["name"])[reference["key"]].decode()
        return values

    def _mount(self, pod_name: str, mount: Manifest, volume: Manifest) -> Mount:
        place, read_only = mount["mountPath"], mount.get("readOnly", False)
        own_folder = self._folder / "pods" / pod_name / mount["name"]
        match volume:
            case {"emptyDir": {"medium": "Memory", "sizeLimit": limit}}:
                return Mount(source=None, place=place, read_only=read_only, size_bytes=size_bytes(limit))
            case {"emptyDir": {"sizeLimit": _}}:
                return Mount(source=own_folder, place=place, read_only=read_only)
            case {"persistentVolumeClaim": {"claimName": claim}}:
                return Mount(source=self.claim(claim), place=place, read_only=read_only)
            case {"secret": {"secretName": secret, "defaultMode": mode}}:
                return Mount(
                    source=own_folder,
                    place=place,
                    read_only=read_only,
                    files=self._secret(secret),
                    file_mode=mode,
                )
            case _:
                raise AssertionError(f"{pod_name}: a volume of a kind that is not known here: {volume}")

    def _secret(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self._object("Secret", name)["data"].items()}

    def _object(self, kind: str, name: str) -> Manifest:
        return self._objects[(kind, name)]


def size_bytes(quantity: str) -> int:
    """A quantity of the API such as 2Gi."""
    number = quantity.rstrip("KMGi")
    return int(number) * UNITS[quantity.removeprefix(number)]


def cores(quantity: str) -> float:
    """A quantity of the API such as 200m or 2."""
    return int(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)


def _probe(described: Manifest) -> Probe:
    _refuse_unknown("probe", described, {"grpc", "periodSeconds", "timeoutSeconds", "failureThreshold"})
    return Probe(
        port=described["grpc"]["port"],
        service=described["grpc"].get("service", ""),
        period_s=described.get("periodSeconds", 10),
        timeout_s=described.get("timeoutSeconds", 1),
        failures=described.get("failureThreshold", 3),
    )


def _refuse_unknown(name: str, described: Manifest, known: set[str]) -> None:
    unknown = described.keys() - known
    assert not unknown, f"{name}: {sorted(unknown)} would be left out"
