"""Decides what the reward service consists of, how it starts and how it ends. ``__main__`` runs it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
import torch
from prometheus_client import CollectorRegistry
from transformers.utils.logging import disable_progress_bar

from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.rpc.worker import ModelWorker
from services.reward.access import ROLES_BY_METHOD
from services.reward.config import RewardConfig
from services.reward.metrics import RewardMetrics
from services.reward.servicer import RewardServicer


class RewardService:
    """The servicer, the model thread and the metrics, as ``andon.rpc.server`` runs them."""

    name = "reward"
    roles_by_method = ROLES_BY_METHOD

    def __init__(self, config: RewardConfig, registry: CollectorRegistry) -> None:
        metrics = RewardMetrics(registry)
        self._config = config
        self.worker = ModelWorker(
            name=self.name, max_queued_calls=config.max_queued_calls, metrics=metrics.worker
        )
        self._servicer = RewardServicer(config, self.worker, metrics)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        reward_grpc.add_RewardServiceServicer_to_server(self._servicer, server)
        return [reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name]

    async def start(self) -> None:
        """Load the configured model; without one calls answer MODEL_NOT_LOADED until LoadModel."""
        disable_progress_bar()  # of transformers, in between the lines of the log
        torch.set_num_threads(self._config.threads)
        if self._config.model is not None:
            await self._servicer.load(self._config.model)

    async def drain(self) -> None:
        """Nothing to end: calls are short, and the server waits for them."""

    async def close(self) -> None:
        """End the threads."""
        await self.worker.close()
        self._servicer.close()
