"""What is read from Kubernetes' objects and what is changed in them: pure functions over their JSON.

``kubernetes_platform`` calls these between a read and a conditional write. A change is given as a patch of
exactly the fields that a rollout owns, or None when the object is already as wanted; whatever else operators,
autoscalers and the server keep in an object stays theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.canary.cluster_errors import ClusterShapeError
from services.canary.kubernetes_calls import Object

CONTAINER = "policy"
MODEL_VARIABLE = "ANDON_POLICY_MODEL"
TERM_ANNOTATION = "andon/canary-term"

# Why a container does not run and will not by waiting a little longer.
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentState:
    """How far a Deployment is with what it was last told."""

    wanted: int
    """Replicas that were asked for."""
    ready: int
    """Of the present template and ready. Below ``wanted`` also while older ones still run."""
    message: str
    """What keeps it, for people; "" when nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAddress:
    """Where a ready pod serves."""

    name: str
    target: str
    """host:port of gRPC."""
    metrics_url: str


# --- terms -------------------------------------------------------------------------------------------------


def term_of(one: Object) -> str:
    """The term of the controller that has claimed this object; "" when none has."""
    term: str = (one["metadata"].get("annotations") or {}).get(TERM_ANNOTATION, "")
    return term


def with_term(patch: Object | None, one: Object, term: str) -> Object:
    """A patch that also claims the object for ``term`` and holds only for the version that was read."""
    result = copy.deepcopy(patch) if patch is not None else {}
    metadata = result.setdefault("metadata", {})
    metadata["resourceVersion"] = one["metadata"]["resourceVersion"]
    metadata.setdefault("annotations", {})[TERM_ANNOTATION] = term
    return result


# --- Deployments -------------------------------------------------------------------------------------------


def model_of(deployment: Object) -> str:
    """The model that a Deployment's policy containers are told to serve.

    Raises ClusterShapeError when there is no such container, or its model comes from elsewhere.
    """
    model = given_model(deployment)
    if model is None:
        raise ClusterShapeError(
            f"the container {CONTAINER} of {_name(deployment)} has no value for {MODEL_VARIABLE}",
            object=_name(deployment),
        )
    return model


def given_model(deployment: Object) -> str | None:
    """The same; None when it comes from elsewhere."""
    for variable in _container(deployment).get("env", []):
        if variable["name"] == MODEL_VARIABLE:
            return str(variable["value"]) if "value" in variable else None
    return None


def deployment_patch(
    deployment: Object, *, model: str | None = None, replicas: int | None = None
) -> Object | None:
    """A strategic merge patch to this model and these replicas; None for what may stay as it is."""
    spec: Object = {}
    if replicas is not None and deployment["spec"].get("replicas", 1) != replicas:
        spec["replicas"] = replicas
    if model is not None and model != given_model(deployment):
        # A variable may have one source only: what it took its value from before goes.
        variable = {"name": MODEL_VARIABLE, "value": model, "valueFrom": None}
        spec["template"] = {"spec": {"containers": [{"name": CONTAINER, "env": [variable]}]}}
    return {"spec": spec} if spec else None


def state_of(deployment: Object, pods: Sequence[Object]) -> DeploymentState:
    """What ``kubectl rollout status`` would say, and what keeps the pods that are not ready."""
    wanted = int(deployment["spec"].get("replicas", 1))
    status = deployment.get("status") or {}
    name = _name(deployment)
    if int(status.get("observedGeneration", 0)) < int(deployment["metadata"]["generation"]):
        return DeploymentState(wanted=wanted, ready=0, message=f"{name} has not been looked at yet")
    updated, ready = int(status.get("updatedReplicas", 0)), int(status.get("readyReplicas", 0))
    older = int(status.get("replicas", 0)) - updated
    if older > 0:
        # Which of the ready ones are old is not told, so none that may be old counts.
        ready = min(max(ready - older, 0), wanted - 1)
    problems = [_problem_of(condition) for condition in status.get("conditions", [])]
    problems += [problem for pod in pods for problem in _pod_problems(pod)]
    problems = [problem for problem in problems if problem]
    if older > 0:
        problems.append(f"{older} older replicas of {name} still run")
    if ready < wanted and not problems:
        problems.append(f"{ready} of {wanted} replicas of {name} are ready")
    return DeploymentState(wanted=wanted, ready=min(ready, updated, wanted), message="; ".join(problems))


def _container(deployment: Object) -> Object:
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            found: Object = container
            return found
    raise ClusterShapeError(
        f"{_name(deployment)} has no container named {CONTAINER}", object=_name(deployment)
    )


def _problem_of(condition: Object) -> str:
    kind, status = condition["type"], condition["status"]
    if (kind, status) in (("Progressing", "False"), ("ReplicaFailure", "True")):
        return f"{condition.get('reason', kind)}: {condition.get('message', '')}"
    return ""


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


# --- Pods --------------------------------------------------------------------------------------------------


def address_of(pod: Object) -> PodAddress | None:
    """Where a pod serves; None while it is not ready or when it is going.

    Raises ClusterShapeError when its container names no ports grpc and metrics.
    """
    status = pod.get("status") or {}
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
    ip = status.get("podIP", "")
    if not ready or not ip or "deletionTimestamp" in pod["metadata"]:
        return None
    ports = {
        port.get("name", ""): port["containerPort"]
        for container in pod["spec"]["containers"]
        if container["name"] == CONTAINER
        for port in container.get("ports", [])
    }
    missing = {"grpc", "metrics"} - ports.keys()
    if missing:
        raise ClusterShapeError(
            f"the container {CONTAINER} of pod {_name(pod)} has no port named {sorted(missing)[0]}",
            object=_name(pod),
        )
    host = f"[{ip}]" if ":" in ip else ip
    return PodAddress(
        name=_name(pod),
        target=f"{host}:{ports['grpc']}",
        metrics_url=f"http://{host}:{ports['metrics']}/metrics",
    )


def _pod_problems(pod: Object) -> list[str]:
    found = []
    status = pod.get("status") or {}
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("lastState") or {}).get("terminated") or {}
        restarts = int(container.get("restartCount", 0))
        reason = waiting.get("reason", "")
        if reason in _STUCK or (restarts and not container.get("ready", False)):
            last = f", last exit code {ended['exitCode']}" if "exitCode" in ended else ""
            found.append(f"pod {_name(pod)}: {reason or 'not ready'}, {restarts} restarts{last}")
    return found


# --- GRPCRoutes --------------------------------------------------------------------------------------------


def canary_percent_of(route: Object, *, stable: str, canary: str) -> int:
    """The canary's share of the calls, rounded up, so that 0 means none; the largest of several rules.

    Raises ClusterShapeError when no rule has both backends.
    """
    shares = []
    for place in _weighted_rules(route, stable=stable, canary=canary):
        weights = _weights(route["spec"]["rules"][place])
        total = sum(weights.values())
        shares.append(-(-100 * weights[canary] // total) if total else 0)
    return max(shares)


def route_patch(route: Object, *, stable: str, canary: str, canary_percent: int) -> Object | None:
    """A merge patch to these weights in every rule that has both backends; None when they stand already.

    A merge patch replaces lists as wholes, so it carries all rules as they were read; that the write is
    conditional keeps it from undoing a change in between.
    """
    wanted = {stable: 100 - canary_percent, canary: canary_percent}
    rules = copy.deepcopy(route["spec"]["rules"])
    for place in _weighted_rules(route, stable=stable, canary=canary):
        for backend in rules[place]["backendRefs"]:
            if backend["name"] in wanted:
                backend["weight"] = wanted[backend["name"]]
    return None if rules == route["spec"]["rules"] else {"spec": {"rules": rules}}


def _weighted_rules(route: Object, *, stable: str, canary: str) -> list[int]:
    places = [
        place
        for place, rule in enumerate(route["spec"].get("rules", []))
        if {stable, canary} <= _weights(rule).keys()
    ]
    if not places:
        raise ClusterShapeError(
            f"no rule of GRPCRoute {_name(route)} has both {stable} and {canary} as backends",
            object=_name(route),
        )
    return places


def _weights(rule: Object) -> Mapping[str, int]:
    """By name of the backend; a weight that is not written is 1."""
    return {str(backend["name"]): int(backend.get("weight", 1)) for backend in rule.get("backendRefs", [])}
