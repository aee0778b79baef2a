"""How the parts of the canary service are put together, started and ended.

``andon.rpc.server`` calls the methods of ``CanaryService`` in the order of its protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from prometheus_client import CollectorRegistry

from andon.api.canary.v1 import canary_service_pb2 as canary_pb2
from andon.api.canary.v1 import canary_service_pb2_grpc as canary_grpc
from andon.modeling.store import ModelStore
from services.canary.access import ROLES_BY_METHOD
from services.canary.config import CanaryConfig
from services.canary.controller import Controller
from services.canary.keeper import Keeper, Wanted
from services.canary.kubernetes_cluster import ClusterNames
from services.canary.kubernetes_platform import KubernetesOptions, open_cluster
from services.canary.metrics import CanaryMetrics
from services.canary.platform import Platform, Track
from services.canary.senses import Senses, probe_documents
from services.canary.servicer import CanaryServicer
from services.canary.static_platform import StaticPlatform, StaticReplicas


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedPlatform:
    """Where the samplers run, and who may act there."""

    platform: Platform
    is_leader: Callable[[], bool]
    start: Callable[[Callable[[], None]], None]  # with what to call when replicas have changed
    close: Callable[[], None]


class CanaryService:
    """The keeper of rollouts and all that it looks with."""

    name = "canary"
    roles_by_method = ROLES_BY_METHOD

    def __init__(self, config: CanaryConfig, registry: CollectorRegistry) -> None:
        self._config = config
        self._metrics = CanaryMetrics(registry)
        self._store = ModelStore(config.store)
        self._opened = open_platform(config, self._store)
        self._wanted = Wanted()
        documents = [] if config.prompts is None else probe_documents(config.prompts)
        self._senses = Senses(
            config,
            store=self._store,
            documents=documents,
            # Pods are dialled by address; the certificate of either side names stable's Service too.
            tls_server_name=ClusterNames().stable if config.platform == "kubernetes" else None,
            stable_replicas=lambda: self._opened.platform.replicas(Track.STABLE),
            on_stop=lambda: self._keeper.wake(),
            gives_up=self._wanted.is_set,
            failed=self._metrics.had_problem,
        )
        controller = Controller(
            self._opened.platform,
            self._senses.gatherer,
            is_leader=self._opened.is_leader,
            emergency=self._senses.emergency.why,
            clock=time.time,
            listener=self._metrics,
        )
        self._keeper = Keeper(
            self._opened.platform,
            controller,
            metrics=self._metrics,
            is_leader=self._opened.is_leader,
            emergency=self._senses.emergency.why,
            when_idle=self._senses.emergency.forget,
            wanted=self._wanted,
            look_interval_s=config.look_interval_s,
            clock=time.time,
        )
        self._servicer = CanaryServicer(
            self._keeper,
            self._store,
            has_prompts=bool(documents),
            has_people=config.labeling_target is not None,
        )

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        canary_grpc.add_CanaryServiceServicer_to_server(self._servicer, server)
        return [canary_pb2.DESCRIPTOR.services_by_name["CanaryService"].full_name]

    async def start(self) -> None:
        """Listen for emergencies first, then take up what a dead process left behind."""
        self._senses.start()
        self._opened.start(self._keeper.wake)
        self._keeper.start()

    async def drain(self) -> None:
        """Let watchers go and stop looking. The rollout stays as it stands, for the next process."""
        self._servicer.end_streams()
        await asyncio.to_thread(self._keeper.close)

    async def close(self) -> None:
        """End the threads and the connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._keeper.close()
        self._senses.close()
        self._opened.close()


def open_platform(config: CanaryConfig, store: ModelStore) -> OpenedPlatform:
    """What the settings say. Raises InvalidArgumentError KUBERNETES_CREDENTIALS."""
    if config.platform == "static":
        static = StaticPlatform(
            config.record_folder,
            replicas=StaticReplicas.of(
                stable_targets=config.stable_targets,
                canary_targets=config.canary_targets,
                stable_metrics_urls=config.stable_metrics_urls,
                canary_metrics_urls=config.canary_metrics_urls,
            ),
            routes_folder=config.routes_folder,
            store=store,
            load_timeout_s=config.call_timeout_s,
        )
        return OpenedPlatform(
            platform=static,
            is_leader=static.is_leader,
            start=lambda _changed: None,
            close=static.close,
        )
    cluster = open_cluster(
        KubernetesOptions(
            store=config.store,
            kubeconfig=config.kubeconfig,
            context=config.kube_context,
            namespace=config.namespace,
            canary_replicas=config.canary_replicas,
        )
    )
    stops: list[Callable[[], None]] = []

    def start(changed: Callable[[], None]) -> None:
        watch = cluster.watch(changed)
        cluster.leadership.start()
        watch.start()
        stops.extend((watch.stop, cluster.leadership.stop))

    def close() -> None:
        for stop in stops:
            stop()

    return OpenedPlatform(
        platform=cluster.platform, is_leader=cluster.leadership.is_leader, start=start, close=close
    )
