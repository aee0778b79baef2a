"""What a cluster does with the fake API's Deployments: pods that get ready, wait or crash, as the test says.

Deployments, the route and the Role are those of the manifests in deploy/k8s, so that what is tested is what
is shipped. Pods come at once, inside the write that caused them, unless those of the model are told to wait.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from tests.kubernetes_api import FakeKubernetes
from tests.kubernetes_objects import (
    DEPLOYMENTS,
    EVENTS,
    PODS,
    ROUTES,
    Change,
    Object,
    ObjectStore,
    has_labels,
)

MANIFESTS = Path(__file__).parents[1] / "deploy" / "k8s"
STABLE, CANARY, ROUTE = "andon-policy", "andon-policy-canary", "andon-policy"

Behaviour = Literal["ready", "waiting", "crashing"]


def manifest(path: str, kind: str) -> Object:
    """The first object of a kind in a file of deploy/k8s."""
    return copy.deepcopy(next(one for one in _documents(path) if one["kind"] == kind))


@cache
def _documents(path: str) -> list[Object]:
    return list(yaml.safe_load_all((MANIFESTS / path).read_text()))


def role_rules() -> list[Object]:
    """What the canary controller may do in the cluster."""
    rules: list[Object] = manifest("base/canary-rbac.yaml", "Role")["rules"]
    return rules


class Workloads:
    """Plays the Deployment controller for the two tracks of the policy."""

    def __init__(
        self,
        api: FakeKubernetes,
        *,
        stable_model: str = "policy/1",
        address: Callable[[str], tuple[str, int, int]] | None = None,
    ) -> None:
        """``address`` gives IP and ports (gRPC, metrics) of a model's pods, which are made up without it."""
        self.behaviours: dict[str, Behaviour] = {}  # by model; ready for those not named
        self._address = address
        self.rolled: list[
            tuple[str, str, int]
        ] = []  # deployment, model, replicas: every change, creation too
        self.routed: list[int] = []  # the canary's weight: every change of the route
        self._objects: ObjectStore = api.objects
        self._numbers = itertools.count(1)
        self._objects.listeners.append(self._changed)
        stable, canary = (manifest(f"base/{name}.yaml", "Deployment") for name in ("policy", "policy-canary"))
        stable["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = stable_model
        stable["spec"]["replicas"] = 2
        for deployment in (stable, canary):
            self._objects.create(DEPLOYMENTS, deployment)
        self._objects.create(ROUTES, manifest("components/gateway/grpcroute.yaml", "GRPCRoute"))

    # --- what the test looks at ----------------------------------------------------------------------------

    def model(self, deployment: str) -> str:
        return _model(self._objects.get(DEPLOYMENTS, deployment))

    def replicas(self, deployment: str) -> int:
        count: int = self._objects.get(DEPLOYMENTS, deployment)["spec"]["replicas"]
        return count

    def weights(self) -> tuple[int, int]:
        """Of stable and canary in the rule for everybody."""
        backends = self._objects.get(ROUTES, ROUTE)["spec"]["rules"][1]["backendRefs"]
        return backends[0]["weight"], backends[1]["weight"]

    def models_served(self, deployment: str) -> list[str]:
        """By ready pods."""
        return [_model({"spec": {"template": pod}}) for pod in self._pods(deployment) if _is_ready(pod)]

    def events(self) -> list[Object]:
        """What was told of the rollouts, oldest first."""
        events, _ = self._objects.list(EVENTS)
        return sorted(events, key=lambda event: int(event["metadata"]["resourceVersion"]))

    # --- what the cluster does -----------------------------------------------------------------------------

    def set_behaviour(self, model: str, behaviour: Behaviour) -> None:
        """From now on, also of the pods that run already."""
        with self._objects.changed:
            self.behaviours[model] = behaviour
            for deployment in (STABLE, CANARY):
                self._roll(self._objects.get(DEPLOYMENTS, deployment))

    def _changed(self, change: Change) -> None:
        if change.kind is ROUTES:
            weight = change.object["spec"]["rules"][1]["backendRefs"][1]["weight"]
            if self.routed[-1:] != [weight]:
                self.routed.append(weight)
        if change.kind is not DEPLOYMENTS or change.type == "DELETED":
            return
        deployment = change.object
        observed = deployment.get("status", {}).get("observedGeneration", 0)
        if observed < deployment["metadata"]["generation"]:
            self.rolled.append(
                (deployment["metadata"]["name"], _model(deployment), deployment["spec"]["replicas"])
            )
            self._roll(deployment)

    def _roll(self, deployment: Object) -> None:
        """Pods of the present template replace the others as they get ready."""
        name, model = deployment["metadata"]["name"], _model(deployment)
        wanted = deployment["spec"]["replicas"]
        behaviour = self.behaviours.get(model, "ready")
        fresh = [pod for pod in self._pods(name) if _model({"spec": {"template": pod}}) == model]
        for _ in range(wanted - len(fresh)):
            self._start(deployment)
        for pod in fresh[wanted:]:
            self._objects.delete(PODS, pod["metadata"]["name"])
        pods = self._pods(name)
        fresh = [pod for pod in pods if _model({"spec": {"template": pod}}) == model]
        for pod in fresh:
            self._objects.set_status(PODS, pod["metadata"]["name"], self._pod_status(pod, behaviour))
        if behaviour == "ready" or not wanted:
            for pod in pods:
                if pod not in fresh:
                    self._objects.delete(PODS, pod["metadata"]["name"])
        pods = self._pods(name)
        ready = sum(_is_ready(pod) for pod in pods)
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(fresh),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(wanted - ready, 0),
        }
        self._objects.set_status(DEPLOYMENTS, name, {key: value for key, value in status.items() if value})

    def _start(self, deployment: Object) -> None:
        name = deployment["metadata"]["name"]
        pod = copy.deepcopy(deployment["spec"]["template"])
        number = next(self._numbers)
        pod["metadata"]["name"] = f"{name}-{number:05x}"
        if self._address is not None:
            _, grpc_port, metrics_port = self._address(_model(deployment))
            ports = {"grpc": grpc_port, "metrics": metrics_port}
            for port in pod["spec"]["containers"][0]["ports"]:
                port["containerPort"] = ports.get(port["name"], port["containerPort"])
        self._objects.create(PODS, pod)

    def _pod_status(self, pod: Object, behaviour: Behaviour) -> Object:
        number = int(pod["metadata"]["name"].rpartition("-")[2], 16)
        model = _model({"spec": {"template": pod}})
        ip = f"10.0.0.{number}" if self._address is None else self._address(model)[0]
        state: Object = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        container = {
            "name": "policy",
            "image": "andon/model",
            "imageID": "",
            "ready": behaviour == "ready",
            "restartCount": 3 if behaviour == "crashing" else 0,
            "state": state,
        }
        if behaviour == "crashing":
            container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
            container["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
        return {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if behaviour == "ready" else "False"}],
            "containerStatuses": [container],
        }

    def _pods(self, deployment: str) -> list[Object]:
        pods, _ = self._objects.list(PODS)
        return [pod for pod in pods if has_labels(pod, {"app.kubernetes.io/name": deployment})]


def _model(deployment: Object) -> str:
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(one["value"] for one in variables if one["name"] == "ANDON_POLICY_MODEL"))


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
