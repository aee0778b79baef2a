"""A service that does what the request id says: unary, client-streaming and server-streaming methods."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import grpc

from andon.api.labeling.v1 import cord_service_pb2, cord_service_pb2_grpc
from andon.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from andon.errors import DataLossError, InvalidArgumentError, NotFoundError
from services.policy.access import ROLES_BY_METHOD

POLICY = "andon.api.policy.v1.PolicyService"
CORD = "andon.api.labeling.v1.CordService"


class ScriptedService(
    policy_service_pb2_grpc.PolicyServiceServicer, cord_service_pb2_grpc.CordServiceServicer
):
    """Takes the place of the policy service and of the cord's."""

    name = "scripted"
    # The policy's own table; nobody has a role for the cord.
    roles_by_method = ROLES_BY_METHOD

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.starting = threading.Event()
        self.may_start = threading.Event()
        self.may_start.set()
        self.entered = threading.Event()
        self.may_answer = asyncio.Event()
        self.cancelled = threading.Event()
        self.draining = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)
        cord_service_pb2_grpc.add_CordServiceServicer_to_server(self, server)
        return [POLICY, CORD]

    async def start(self) -> None:
        self.starting.set()
        await asyncio.get_running_loop().run_in_executor(None, self.may_start.wait)
        self.steps.append("start")

    async def drain(self) -> None:
        self.steps.append("drain")
        self.draining.set()
        self.may_answer.set()

    async def close(self) -> None:
        self.steps.append("close")

    async def Sample(self, request, context):
        match request.request_id:
            case "bad":
                raise InvalidArgumentError("no prompts", reason="EMPTY_REQUEST", field="prompts")
            case "long error":
                raise NotFoundError(
                    "ü" * 20_000, reason="MODEL_NOT_FOUND", **{f"k{i}": "ß" * 9000 for i in range(99)}
                )
            case "defect":
                raise ZeroDivisionError("a secret of the inside")
            case "wait":
                self.entered.set()
                try:
                    await self.may_answer.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
                self.steps.append("answer")
            case "abort":
                await context.abort(grpc.StatusCode.ABORTED, "by hand")
            case "own timeout":
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
        return policy_service_pb2.SampleResponse(seed=7)

    async def UpdateWeights(self, request_iterator, context):
        count = 0
        async for _ in request_iterator:
            count += 1
        if count == 0:
            raise DataLossError("nothing came", reason="WEIGHTS_TRUNCATED")
        return policy_service_pb2.UpdateWeightsResponse()

    async def WatchCord(self, request, context) -> AsyncIterator[cord_service_pb2.WatchCordResponse]:
        yield cord_service_pb2.WatchCordResponse()
        self.entered.set()
        await self.draining.wait()
        raise NotFoundError("no more cord", reason="CORD_GONE")
