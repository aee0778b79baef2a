"""Decides what the reference service consists of, how it starts and how it ends. ``__main__`` runs it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
import torch
from prometheus_client import CollectorRegistry
from transformers.utils.logging import disable_progress_bar

from andon.api.reference.v1 import reference_service_pb2 as reference_pb2
from andon.api.reference.v1 import reference_service_pb2_grpc as reference_grpc
from andon.rpc.worker import ModelWorker
from services.reference.access import ROLES_BY_METHOD
from services.reference.config import ReferenceConfig
from services.reference.metrics import ReferenceMetrics
from services.reference.servicer import ReferenceServicer


class ReferenceService:
    """The servicer, the model thread and the metrics, as ``andon.rpc.server`` runs them."""

    name = "reference"
    roles_by_method = ROLES_BY_METHOD

    def __init__(self, config: ReferenceConfig, registry: CollectorRegistry) -> None:
        metrics = ReferenceMetrics(registry)
        self._config = config
        self.worker = ModelWorker(
            name=self.name, max_queued_calls=config.max_queued_calls, metrics=metrics.worker
        )
        self._servicer = ReferenceServicer(config, self.worker, metrics)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        reference_grpc.add_ReferenceServiceServicer_to_server(self._servicer, server)
        return [reference_pb2.DESCRIPTOR.services_by_name["ReferenceService"].full_name]

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
