"""What a rollout does to the cluster, step by step: two Deployments, a route, two aliases, and the record.

``kubernetes_platform`` turns the controller's words into these. Every method may be repeated after a crash
at any point in it: each first looks what is there. Methods block. Those that change something need the lead
and a ``load_state`` in the same term, and raise NotLeaderError otherwise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import structlog

from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from services.canary.cluster_errors import ClusterConflictError, ClusterMissingError, RevisionConflictError
from services.canary.kubernetes_calls import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    GRPC_ROUTES,
    PODS,
    KubernetesCalls,
    Object,
    Resource,
)
from services.canary.kubernetes_objects import (
    DeploymentState,
    PodAddress,
    address_of,
    canary_percent_of,
    deployment_patch,
    given_model,
    model_of,
    route_patch,
    state_of,
)
from services.canary.kubernetes_record import (
    StoredState,
    Values,
    decisions_in,
    empty_record,
    same_state,
    stored_state,
    with_decision,
    with_state,
)
from services.canary.kubernetes_writes import ClaimedObjects, Leadership, Patience

log = structlog.get_logger(__name__)

POD_LABELS = {"app.kubernetes.io/component": "policy"}
MAX_EVENT_CHARS = 1024  # of a message, by the API's own rule

Track = Literal["stable", "canary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNames:
    """What the objects of a rollout are called. The defaults are those of the manifests."""

    stable: str = "andon-policy"
    """Deployment of the stable replicas, and the Service before them."""
    canary: str = "andon-policy-canary"
    """Deployment of the canary's replicas, and the Service before them."""
    route: str = "andon-policy"
    """GRPCRoute whose weights are moved."""
    record: str = "andon-rollout"
    """ConfigMap of the record."""

    def deployment(self, track: Track) -> str:
        """The Deployment of a track."""
        return self.stable if track == "stable" else self.canary


@dataclass(frozen=True, slots=True, kw_only=True)
class EventText:
    """What an Event says of a decision."""

    reason: str
    """CamelCase, for example RolloutPromoted."""
    message: str
    warning: bool


class Cluster:
    """The objects of a rollout in one namespace."""

    def __init__(
        self,
        calls: KubernetesCalls,
        leadership: Leadership,
        *,
        names: ClusterNames,
        store: ModelStore,
        canary_replicas: int,
        patience: Patience,
    ) -> None:
        self._calls = calls
        self._leadership = leadership
        self._names = names
        self._store = store
        self._canary_replicas = canary_replicas
        self._objects = ClaimedObjects(calls, leadership, patience=patience)
        self._claims: tuple[tuple[Resource, str], ...] = (
            (CONFIG_MAPS, names.record),
            (GRPC_ROUTES, names.route),
            (DEPLOYMENTS, names.canary),
            (DEPLOYMENTS, names.stable),
        )

    # --- what is there -------------------------------------------------------------------------------------

    def readiness(self, track: Track) -> DeploymentState:
        """How far a track's replicas are with what was last asked of them."""
        deployment = self._objects.read(DEPLOYMENTS, self._names.deployment(track))
        return state_of(deployment, self._pods(track))

    def addresses(self, track: Track) -> list[PodAddress]:
        """Where a track's ready replicas serve, by name."""
        found = [address_of(pod) for pod in self._pods(track)]
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    def model(self, track: Track) -> ModelVersion:
        """The version that a track was last told to serve; an alias is followed to where it points."""
        named = model_of(self._objects.read(DEPLOYMENTS, self._names.deployment(track)))
        return self._store.resolve(named).version

    def canary_percent(self) -> int:
        """The canary's share of the calls."""
        route = self._objects.read(GRPC_ROUTES, self._names.route)
        return canary_percent_of(route, stable=self._names.stable, canary=self._names.canary)

    # --- what is changed -----------------------------------------------------------------------------------

    def deploy(self, model: str) -> None:
        """Let the canary serve this version; the alias ``<family>@canary`` names it too."""
        version = self._store.resolve(model).version  # before pods would look for it in vain
        self._change_deployment("canary", model=str(version), replicas=self._canary_replicas)
        self._move_alias("canary", version)

    def remove(self) -> None:
        """No replica of the canary any more. What it would serve stays written, for who asks why."""
        self._change_deployment("canary", replicas=0)

    def set_stable(self, model: str) -> None:
        """Let the stable replicas serve this version, by a rolling update; ``<family>@stable`` names it.

        A Deployment that names an alias of this version stays as it is: its pods serve it already.
        """
        version = self._store.resolve(model).version

        def decide(deployment: Object) -> Object | None:
            pointed_to = self._store.aliases().get(given_model(deployment) or "")
            if pointed_to is not None and pointed_to.is_same_name(version):
                return None
            return deployment_patch(deployment, model=str(version))

        self._objects.change(DEPLOYMENTS, self._names.stable, decide)
        self._move_alias("stable", version)

    def route(self, canary_percent: int) -> None:
        """Give the canary this share of the calls."""
        names = self._names
        self._objects.change(
            GRPC_ROUTES,
            names.route,
            lambda route: route_patch(
                route, stable=names.stable, canary=names.canary, canary_percent=canary_percent
            ),
        )

    # --- the record ----------------------------------------------------------------------------------------

    def load_state(self) -> StoredState | None:
        """The rollout as it was last saved; None before the first.

        For the leader this begins its term: everything is claimed, so that no former leader changes the
        record, or anything else, after it has been read here.
        """
        if not self._objects.claim(self._claims, makes=empty_record(self._names.record)):
            try:
                return stored_state(self._calls.get(CONFIG_MAPS, self._names.record))
            except ClusterMissingError:
                return None
        return stored_state(self._objects.read(CONFIG_MAPS, self._names.record))

    def save_state(self, rollout: Values, *, revision: int) -> int:
        """Store the rollout in the place of ``revision`` (0: of none); the new revision.

        Raises RevisionConflictError when another revision is stored.
        """
        wanted = StoredState(revision=revision + 1, rollout=rollout)

        def decide(config_map: Object) -> Object | None:
            stored = stored_state(config_map)
            found = 0 if stored is None else stored.revision
            if found == wanted.revision and same_state(stored, rollout):
                return None  # by this very call, whose answer was lost
            if found != revision:
                raise RevisionConflictError(
                    f"the rollout's record is of revision {found}, not {revision}; load it again",
                    found=found,
                    expected=revision,
                )
            return with_state(config_map, wanted)

        self._objects.change(CONFIG_MAPS, self._names.record, decide)
        return wanted.revision

    def add_decision(self, decision: Values, *, key: str, event: EventText) -> None:
        """Add to the log and tell by an Event on the canary's Deployment; each once for a key."""
        self._objects.change(
            CONFIG_MAPS,
            self._names.record,
            lambda config_map: with_decision(config_map, key=key, decision=decision),
        )
        deployment = self._objects.read(DEPLOYMENTS, self._names.canary)
        new = _event(deployment, self._calls.namespace, key=key, event=event)
        self._objects.patiently(lambda: self._create_event(new))

    def decisions(self) -> list[Values]:
        """The log, oldest first."""
        return decisions_in(self._objects.read(CONFIG_MAPS, self._names.record))

    # --- parts ---------------------------------------------------------------------------------------------

    def _pods(self, track: Track) -> tuple[Object, ...]:
        labels = {**POD_LABELS, "track": track}
        return self._objects.patiently(lambda: self._calls.list(PODS, labels=labels)).items

    def _change_deployment(
        self, track: Track, *, model: str | None = None, replicas: int | None = None
    ) -> None:
        self._objects.change(
            DEPLOYMENTS,
            self._names.deployment(track),
            lambda deployment: deployment_patch(deployment, model=model, replicas=replicas),
        )

    def _move_alias(self, alias: str, version: ModelVersion) -> None:
        """The store cannot refuse a former leader as the cluster does, so the API is asked just before."""
        name = f"{version.family}@{alias}"
        present = self._store.aliases().get(name)
        if present is not None and present.is_same_name(version):
            return
        term = self._objects.claimed_term
        self._objects.patiently(lambda: self._leadership.confirm(term))
        self._store.set_alias(name, version)
        log.info("alias_moved", alias=name, model=str(version))

    def _create_event(self, new: Object) -> None:
        try:
            self._calls.create(EVENTS, new)
        except ClusterConflictError as error:
            if error.reason != "CLUSTER_NAME_TAKEN":  # else it was told before
                raise


def _event(deployment: Object, namespace: str, *, key: str, event: EventText) -> Object:
    """An Event whose name follows from the decision, so that it is made once."""
    name = deployment["metadata"]["name"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = event.message
    if len(message) > MAX_EVENT_CHARS:
        message = f"{message[: MAX_EVENT_CHARS - 1]}…"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:20]}"},
        "involvedObject": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "namespace": namespace,
            "name": name,
            "uid": deployment["metadata"]["uid"],
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": message,
        "source": {"component": "andon-canary"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
