"""How the parts of the trainer are put together, started and ended.

``andon.rpc.server`` calls the methods of ``TrainerService`` in the order of its protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import grpc.aio
from prometheus_client import CollectorRegistry

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from services.trainer.access import ROLES_BY_METHOD
from services.trainer.clients import RunClients, open_cord_client
from services.trainer.config import TrainerConfig
from services.trainer.followers import say_farewell
from services.trainer.guards.cord import CordGuard
from services.trainer.metrics import TrainerMetrics
from services.trainer.ranks import Ranks
from services.trainer.run_records import StageName
from services.trainer.run_thread import RunSettings
from services.trainer.runner import Runner
from services.trainer.runs import RunRegistry
from services.trainer.servicer import TrainerServicer
from services.trainer.stages.catalogue import STAGES, StageKind


class TrainerService:
    """TrainerService over one folder of runs."""

    name = "trainer"
    roles_by_method = ROLES_BY_METHOD

    def __init__(
        self,
        config: TrainerConfig,
        registry: CollectorRegistry,
        *,
        stages: Mapping[StageName, StageKind] = STAGES,
        ranks: Ranks | None = None,
    ) -> None:
        """``stages`` are the kinds of training that StartRun knows; ``ranks``, led by this process, train."""
        self._config = config
        self._ranks = Ranks(device=config.device) if ranks is None else ranks
        self._store = config.open_store()
        runs = RunRegistry(config.runs)
        self._runner = Runner(
            registry=runs,
            store=self._store,
            stages=stages,
            settings=RunSettings(
                threads=config.threads,
                precision=config.precision,
                ranks=self._ranks,
                kept_checkpoints=config.kept_checkpoints,
                checkpoint_interval_s=config.checkpoint_interval_s,
            ),
            metrics=TrainerMetrics(registry),
            open_clients=lambda: RunClients(config),
            open_cord_guard=self._open_cord_guard if config.watch_cord else None,
        )
        self._servicer = TrainerServicer(self._runner, runs)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        trainer_grpc.add_TrainerServiceServicer_to_server(self._servicer, server)
        return [trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name]

    async def start(self) -> None:
        """Take up what a dead process left behind. Raises the store's errors where it cannot be written."""
        await asyncio.to_thread(self._store.check_writable)
        await asyncio.to_thread(
            self._runner.recover, auto_resume=self._config.auto_resume, limit=self._config.auto_resume_limit
        )

    async def drain(self) -> None:
        """Let watchers go, have the running run save a checkpoint and leave, and end the other ranks."""
        self._servicer.end_streams()
        has_left = await asyncio.to_thread(self._runner.interrupt, grace_s=self._config.interrupt_grace_s)
        if has_left:  # else its thread may be speaking with them; they end when this process does
            await asyncio.to_thread(say_farewell, self._ranks)

    async def close(self) -> None:
        """Nothing is left to free: a run closes its connections when it leaves."""

    def _open_cord_guard(self, changed: Callable[[], None]) -> CordGuard:
        return CordGuard(
            open_cord_client(self._config), hold_after_s=self._config.cord_hold_s, changed=changed
        )
