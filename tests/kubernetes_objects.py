"""The objects behind the fake Kubernetes API: versions, preconditions, patches and the history for watches.

Follows what the API conventions promise (https://github.com/kubernetes/community, api-conventions.md): every
write gives a new resourceVersion, ``generation`` counts changes of ``spec`` only, a write that names an old
resourceVersion is a conflict, a patch that changes nothing writes nothing. What is stored must pass the
strict schema of its kind, so a field that a real server would refuse or drop is refused here too.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import kubernetes_validate

SCHEMA_VERSION = "1.33"

# One object of JSON.
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where its API has it."""

    group: str  # "" for the core
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")
PODS = Kind("", "v1", "pods", "Pod")
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap")
EVENTS = Kind("", "v1", "events", "Event")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
ROUTES = Kind("gateway.networking.k8s.io", "v1", "grpcroutes", "GRPCRoute")
KINDS = (DEPLOYMENTS, PODS, CONFIG_MAPS, EVENTS, LEASES, ROUTES)


class ApiError(Exception):
    """An answer that is not a success, as a Status object."""

    def __init__(
        self, code: int, reason: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch."""

    version: int
    type: str  # ADDED, MODIFIED, DELETED
    kind: Kind
    object: Object


class ObjectStore:
    """All objects of one namespace. Every method may be called from any thread."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.changed = threading.Condition()
        self.history: list[Change] = []
        self.oldest_version = 0  # watches may begin here; a later compaction moves it
        self.version = 100
        self._objects: dict[tuple[Kind, str], Object] = {}
        self._names = itertools.count(1)
        self.listeners: list[Callable[[Change], None]] = []

    # --- reading -------------------------------------------------------------------------------------------

    def get(self, kind: Kind, name: str) -> Object:
        with self.changed:
            found = self._objects.get((kind, name))
            if found is None:
                raise ApiError(404, "NotFound", f'{kind.plural} "{name}" not found')
            return copy.deepcopy(found)

    def list(self, kind: Kind, labels: Mapping[str, str] | None = None) -> tuple[list[Object], int]:
        with self.changed:
            found = [
                copy.deepcopy(one)
                for (its_kind, _), one in sorted(self._objects.items(), key=lambda item: item[0][1])
                if its_kind == kind and has_labels(one, labels or {})
            ]
            return found, self.version

    # --- writing -------------------------------------------------------------------------------------------

    def create(self, kind: Kind, new: Object) -> Object:
        metadata = new.setdefault("metadata", {})
        if "resourceVersion" in metadata:
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        with self.changed:
            if "generateName" in metadata and "name" not in metadata:
                metadata["name"] = f"{metadata['generateName']}{next(self._names):05x}"
            name = metadata.get("name", "")
            if (kind, name) in self._objects:
                raise ApiError(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
            new.setdefault("apiVersion", kind.api_version)
            new.setdefault("kind", kind.kind)
            metadata |= {
                "namespace": self.namespace,
                "uid": str(uuid.UUID(int=next(self._names))),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            }
            if kind in (DEPLOYMENTS, ROUTES):
                metadata["generation"] = 1
            return self._put("ADDED", kind, name, new)

    def replace(self, kind: Kind, name: str, new: Object) -> Object:
        with self.changed:
            return self._update(kind, name, new)

    def patch(self, kind: Kind, name: str, patch: Object, *, strategic: bool) -> Object:
        with self.changed:
            patched = merge_patch(self.get(kind, name), patch, keys=_MERGE_KEYS if strategic else {})
            return self._update(kind, name, patched)

    def set_status(self, kind: Kind, name: str, status: Object) -> Object:
        """As the controller of that kind does, through the subresource."""
        with self.changed:
            return self._update(kind, name, self.get(kind, name) | {"status": status}, status_too=True)

    def delete(self, kind: Kind, name: str) -> None:
        with self.changed:
            old = self.get(kind, name)
            del self._objects[kind, name]
            self._record("DELETED", kind, old)

    def touch(self, kind: Kind, name: str) -> None:
        """What another writer does: the object gets a new version and no change that matters."""
        with self.changed:
            one = self.get(kind, name)
            notes = one["metadata"].setdefault("annotations", {})
            notes["example.com/touched"] = str(self.version)
            self._update(kind, name, one)

    def compact(self) -> None:
        """Forget the history: watches that begin earlier are told that it is gone."""
        with self.changed:
            self.oldest_version = self.version
            self.history.clear()

    def _update(self, kind: Kind, name: str, new: Object, *, status_too: bool = False) -> Object:
        old = self.get(kind, name)
        wanted = new["metadata"].get("resourceVersion")
        if wanted not in (None, "", old["metadata"]["resourceVersion"]):
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {kind.plural} "{name}": the object has been modified; '
                "please apply your changes to the latest version and try again",
            )
        if new["metadata"].get("name") != name:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        if "status" in old and not status_too:
            new["status"] = old["status"]  # only its subresource changes it
        for field in ("uid", "creationTimestamp", "namespace", "resourceVersion", "generation"):
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
        if new == old:
            return old
        if new.get("spec") != old.get("spec") and "generation" in old["metadata"]:
            new["metadata"]["generation"] += 1
        return self._put("MODIFIED", kind, name, new)

    def _put(self, type_: str, kind: Kind, name: str, new: Object) -> Object:
        check_schema(kind, new)
        self._objects[kind, name] = new
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self._record(type_, kind, new, counted=True)
        return copy.deepcopy(new)

    def _record(self, type_: str, kind: Kind, one: Object, *, counted: bool = False) -> None:
        if not counted:
            self.version += 1
            one["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, type_, kind, copy.deepcopy(one))
        self.history.append(change)
        self.changed.notify_all()
        for listener in self.listeners:
            listener(change)


def has_labels(one: Object, labels: Mapping[str, str]) -> bool:
    """Whether an object carries all of these labels."""
    own = one["metadata"].get("labels", {})
    return all(own.get(key) == value for key, value in labels.items())


# The validation costs more than everything else here together, and these schemas say of a text only that it
# is one: what has passed once with other texts passes.
_valid_shapes: set[tuple[Kind, str]] = set()


def _shape(value: Any) -> Any:
    """The value with all texts emptied."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape(one) for one in value]
    return "" if isinstance(value, str) else value


def check_schema(kind: Kind, one: Object) -> None:
    """Refuse what a real server would, with its code 422."""
    if kind is ROUTES:
        _check_route(one)
        return
    shape = (kind, json.dumps(_shape(one), sort_keys=True))
    if shape in _valid_shapes:
        return
    try:
        kubernetes_validate.validate(one, SCHEMA_VERSION, strict=True)
        _valid_shapes.add(shape)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        raise ApiError(422, "Invalid", f"{kind.kind} is invalid: {place}: {error.message}") from error


def _check_route(route: Object) -> None:
    """The part of GRPCRoute's schema and rules that a change of weights can break."""
    for rule in route["spec"].get("rules", []):
        for backend in rule.get("backendRefs", []):
            weight = backend.get("weight", 1)
            if not isinstance(weight, int) or not 0 <= weight <= 1_000_000:
                raise ApiError(422, "Invalid", f"spec.rules.backendRefs.weight: Invalid value: {weight!r}")
            if "port" not in backend:
                raise ApiError(422, "Invalid", "spec.rules.backendRefs: Must have port for Service reference")


# By which field the elements of a list are told apart in a strategic merge patch ("patchMergeKey").
_MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name"}


def merge_patch(old: Any, patch: Any, *, keys: Mapping[str, str]) -> Any:
    """A JSON merge patch (RFC 7386); with ``keys`` the lists named there merge, as in a strategic one."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if any(key.startswith("$") for key in patch):
        raise ApiError(400, "BadRequest", "directives of strategic merge patches are not taken here")
    result = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif key in keys and isinstance(value, list):
            result[key] = _merge_list(result.get(key, []), value, name=keys[key], keys=keys)
        else:
            result[key] = merge_patch(result.get(key), value, keys=keys)
    return result


def _merge_list(
    old: list[Object], patch: list[Object], *, name: str, keys: Mapping[str, str]
) -> list[Object]:
    result = copy.deepcopy(old)
    for element in patch:
        for place, existing in enumerate(result):
            if existing[name] == element[name]:
                result[place] = merge_patch(existing, element, keys=keys)
                break
        else:
            result.append(merge_patch({}, element, keys=keys))
    return result
