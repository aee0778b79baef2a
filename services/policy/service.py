"""Decides what the policy service consists of, how it starts and how it ends. ``__main__`` runs it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
from prometheus_client import CollectorRegistry

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from services.policy.access import ROLES_BY_METHOD
from services.policy.backends.backend import Backend
from services.policy.backends.builtin import BuiltinBackend
from services.policy.config import PolicyConfig
from services.policy.metrics import PolicyMetrics
from services.policy.servicer import PolicyServicer


class PolicyService:
    """The servicer, the backend and the metrics, as ``andon.rpc.server`` runs them."""

    name = "policy"
    roles_by_method = ROLES_BY_METHOD

    def __init__(self, config: PolicyConfig, registry: CollectorRegistry) -> None:
        metrics = PolicyMetrics(registry)
        self._backend = _make_backend(config, metrics)
        self._servicer = PolicyServicer(config, self._backend)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        policy_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)
        return [policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name]

    async def start(self) -> None:
        """Load the configured model, or find the server that has it."""
        await self._backend.start()

    async def drain(self) -> None:
        """Let every call that has arrived come to its end."""
        await self._backend.drain()

    async def close(self) -> None:
        """End the threads and connections."""
        await self._backend.close()
        self._servicer.close()


def _make_backend(config: PolicyConfig, metrics: PolicyMetrics) -> Backend:
    if config.backend == "builtin":
        return BuiltinBackend(config, metrics)
    # The clients of servers take a second to import, which the built-in engine need not wait for.
    from services.policy.backends.remote import RemoteBackend

    return RemoteBackend(config, metrics)
