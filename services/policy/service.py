"""Decides what the policy service consists of, how it starts and how it ends. ``__main__`` runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
import torch
from prometheus_client import CollectorRegistry

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from services.policy.access import ROLES_BY_METHOD
from services.policy.config import PolicyConfig
from services.policy.metrics import PolicyMetrics
from services.policy.requests import MAX_STOP_TOKENS
from services.policy.runner import RunnerSettings, SamplingRunner
from services.policy.servicer import PolicyServicer


class PolicyService:
    """The servicer, the model's thread and the metrics, as ``andon.rpc.server`` runs them."""

    name = "policy"
    roles_by_method = ROLES_BY_METHOD

    def __init__(self, config: PolicyConfig, registry: CollectorRegistry) -> None:
        metrics = PolicyMetrics(registry)
        self._config = config
        self._runner = SamplingRunner(
            RunnerSettings(
                running_sequences=config.max_running_sequences,
                cache_bytes=config.cache_mib * 1024 * 1024,
                waiting_calls=config.max_queued_calls,
                max_new_tokens=config.max_new_tokens,
                max_stop_tokens=MAX_STOP_TOKENS,
                prefill_tokens=config.token_budget,
            ),
            metrics,
        )
        self._servicer = PolicyServicer(config, self._runner, metrics)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        policy_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)
        return [policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name]

    async def start(self) -> None:
        """Load the configured model; without one calls answer MODEL_NOT_LOADED until LoadModel."""
        torch.set_num_threads(self._config.threads)
        self._runner.start()
        if self._config.model is not None:
            await self._servicer.load(self._config.model)

    async def drain(self) -> None:
        """Let every call that has arrived come to its end."""
        pending = [asyncio.wrap_future(future) for future in self._runner.pending()]
        await asyncio.gather(*pending, return_exceptions=True)

    async def close(self) -> None:
        """End the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._runner.close)
        self._servicer.close()
