"""The platform of a rollout on Kubernetes, and what it is told about the cluster.

``open_cluster`` gives the platform and the lead that it needs; ``service`` starts and stops both. The words
of ``platform`` become steps of ``kubernetes_cluster`` here, and its values JSON in the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from andon.errors import DataLossError
from andon.modeling.store import ModelStore
from andon.modeling.stores.location import StoreLocation
from services.canary.decisions import Decision, Kind
from services.canary.kubernetes_calls import PODS, KubernetesCalls, connect
from services.canary.kubernetes_cluster import POD_LABELS, Cluster, ClusterNames, EventText
from services.canary.kubernetes_record import Values
from services.canary.kubernetes_watch import ChangeWatch
from services.canary.kubernetes_writes import Patience
from services.canary.lease import LeaseLeadership, LeaseTimes
from services.canary.platform import Readiness, RecordedDecision, Replica, StoredRollout, Track
from services.canary.rollout import Rollout

T = TypeVar("T")

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "andon"
# What Events are called, in the words of ``kubectl get events``.
_EVENT_REASONS = {
    Kind.CONTINUE: "RolloutContinued",
    Kind.ADVANCE: "RolloutAdvanced",
    Kind.HOLD: "RolloutHeld",
    Kind.PROMOTE: "RolloutPromoted",
    Kind.ROLL_BACK: "RolloutRolledBack",
    Kind.ABORT: "RolloutAborted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """Which cluster, and how patient to be with it."""

    store: StoreLocation
    """The model store, for aliases."""
    kubeconfig: Path | None = None
    """Credentials; None: those of the pod's service account."""
    context: str | None = None
    """Of the kubeconfig; None: its current one."""
    namespace: str | None = None
    """Of all objects; None: the pod's own, or "andon" outside a pod."""
    names: ClusterNames = field(default_factory=ClusterNames)
    lease: str = "andon-canary"
    """Name of the Lease that lets one controller act."""
    lease_times: LeaseTimes = field(default_factory=LeaseTimes)
    canary_replicas: int = 1
    """Replicas of the canary while a rollout goes on."""
    request_timeout_s: float = 10.0
    """Of one request to the API."""
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCluster:
    """A platform, and who may use it."""

    platform: KubernetesPlatform
    leadership: LeaseLeadership
    """To be started and stopped by its owner, and asked before each act."""
    watch: Callable[[Callable[[], None]], ChangeWatch]
    """Makes a watch that tells when pods of the policy have changed; to be started and stopped too."""


def open_cluster(options: KubernetesOptions) -> OpenedCluster:
    """Connect; nothing is asked of the API yet. Raises InvalidArgumentError KUBERNETES_CREDENTIALS."""
    client = connect(kubeconfig=options.kubeconfig, context=options.context)
    namespace = options.namespace or _own_namespace()
    calls = KubernetesCalls(client, namespace=namespace, timeout_s=options.request_timeout_s)
    # A renewal that hangs must leave time for another before the deadline.
    lease_timeout_s = min(options.request_timeout_s, options.lease_times.renew_deadline_s / 3)
    leadership = LeaseLeadership(
        KubernetesCalls(client, namespace=namespace, timeout_s=lease_timeout_s),
        name=options.lease,
        times=options.lease_times,
    )
    cluster = Cluster(
        calls,
        leadership,
        names=options.names,
        store=ModelStore(options.store),
        canary_replicas=options.canary_replicas,
        patience=options.patience,
    )
    return OpenedCluster(
        platform=KubernetesPlatform(cluster),
        leadership=leadership,
        watch=lambda on_change: ChangeWatch(calls, PODS, labels=POD_LABELS, on_change=on_change),
    )


class KubernetesPlatform:
    """A ``platform.Platform`` whose replicas are pods and whose traffic a GRPCRoute shares out."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def stable_version(self) -> str:
        """The version that stable is told to serve; the alias in its manifest is followed."""
        return str(self._cluster.model("stable"))

    def deploy(self, version: str) -> None:
        """Make the canary's replicas run this version."""
        self._cluster.deploy(version)

    def readiness(self, track: Track) -> Readiness:
        """How far a side has come."""
        state = self._cluster.readiness(track.value)
        return Readiness(wanted=state.wanted, ready=state.ready, problem=state.message)

    def replicas(self, track: Track) -> Sequence[Replica]:
        """The pods of a side that are ready."""
        return [
            Replica(name=one.name, target=one.target, metrics_url=one.metrics_url)
            for one in self._cluster.addresses(track.value)
        ]

    def route(self, canary_percent: int) -> None:
        """Give the canary this share of the traffic."""
        self._cluster.route(canary_percent)

    def routed(self) -> int:
        """The canary's present share of the traffic."""
        return self._cluster.canary_percent()

    def set_stable(self, version: str) -> None:
        """Have stable move to this version, and the alias with it."""
        self._cluster.set_stable(version)

    def remove(self) -> None:
        """Let the canary's replicas end."""
        self._cluster.remove()

    def load(self) -> StoredRollout | None:
        """The newest rollout in the record. For a leader this begins its term; see ``kubernetes_writes``."""
        state = self._cluster.load_state()
        if state is None:
            return None
        rollout = _read(lambda: Rollout.from_values(state.rollout))
        return StoredRollout(rollout=rollout, revision=state.revision)

    def save(self, rollout: Rollout, *, revision: int) -> int:
        """Record how a rollout stands."""
        return self._cluster.save_state(rollout.to_values(), revision=revision)

    def record(self, decision: RecordedDecision) -> None:
        """Add a decision to the record and tell it by an Event."""
        self._cluster.add_decision(asdict(decision), key=_key(decision), event=_event_text(decision))

    def decisions(self) -> Sequence[RecordedDecision]:
        """The newest decisions, oldest first."""
        return _read(lambda: [_decision_of(values) for values in self._cluster.decisions()])


def _own_namespace() -> str:
    return _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else _DEFAULT_NAMESPACE


def _key(decision: RecordedDecision) -> str:
    """What makes a decision the same when it is taken again after a crash.

    A rollout leaves a phase and a step once by each way. Looking on may be decided any number of times.
    """
    parts = [decision.rollout_id, decision.phase, str(decision.step), decision.decision.kind.value]
    if decision.decision.kind is Kind.CONTINUE:
        parts.append(f"{decision.time_s:.3f}")
    return "/".join(parts)


def _event_text(decision: RecordedDecision) -> EventText:
    kind = decision.decision.kind
    numbers = f" {json.dumps(decision.decision.numbers)}" if decision.decision.numbers else ""
    return EventText(
        reason=_EVENT_REASONS[kind],
        message=f"rollout {decision.rollout_id}, {decision.phase}, step {decision.step + 1}: "
        f"{decision.decision.reason}{numbers}",
        warning=kind in (Kind.ROLL_BACK, Kind.ABORT),
    )


def _decision_of(values: Values) -> RecordedDecision:
    inner: dict[str, Any] = dict(values["decision"])
    decision = Decision(**{**inner, "kind": Kind(inner["kind"])})
    return RecordedDecision(**{**values, "decision": decision})


def _read(read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(
            f"the rollout's record cannot be read: {error!r}", reason="ROLLOUT_RECORD_DAMAGED"
        ) from error
