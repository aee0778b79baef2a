"""Decides how each call of the canary service is answered. Rollouts are ``keeper``'s affair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from andon.api.canary.v1 import canary_service_pb2 as canary_pb2
from andon.api.canary.v1 import canary_service_pb2_grpc as canary_grpc
from andon.modeling.store import ModelStore
from services.canary.errors import DrainingError, NoPeopleError, NoPromptsError
from services.canary.keeper import Keeper
from services.canary.requests import (
    actor_of,
    decision_to_proto,
    page_of,
    reason_of,
    request_id_of,
    rollout_to_proto,
    spec_of,
)
from services.canary.rollout import Rollout

# Any: message types differ by call.
Context = grpc.aio.ServicerContext[Any, Any]


class CanaryServicer(canary_grpc.CanaryServiceServicer):
    """Implements ``andon.api.canary.v1.CanaryService``."""

    def __init__(self, keeper: Keeper, store: ModelStore, *, has_prompts: bool, has_people: bool) -> None:
        self._keeper = keeper
        self._store = store
        self._has_prompts = has_prompts
        self._has_people = has_people
        self._draining = False

    def end_streams(self) -> None:
        """The process ends: let every watcher go, so that it watches again at the next one."""
        self._draining = True
        self._keeper.tell()

    async def StartRollout(
        self, request: canary_pb2.StartRolloutRequest, context: Context
    ) -> canary_pb2.StartRolloutResponse:
        """Record and begin a rollout."""
        request_id = request_id_of(request.request_id)
        spec = await asyncio.to_thread(spec_of, request.spec, self._store)
        if not self._has_prompts:
            raise NoPromptsError
        if request.spec.ask_people and not self._has_people:
            raise NoPeopleError
        rollout = await asyncio.to_thread(self._keeper.start_rollout, spec, request_id=request_id)
        return canary_pb2.StartRolloutResponse(rollout=rollout_to_proto(rollout))

    async def GetRollout(
        self, request: canary_pb2.GetRolloutRequest, context: Context
    ) -> canary_pb2.GetRolloutResponse:
        """The newest rollout."""
        rollout = await asyncio.to_thread(self._keeper.newest)
        return canary_pb2.GetRolloutResponse(rollout=rollout_to_proto(rollout))

    async def WatchRollout(
        self, request: canary_pb2.WatchRolloutRequest, context: Context
    ) -> AsyncIterator[canary_pb2.WatchRolloutResponse]:
        """Stream the newest rollout until it is over."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._keeper.listening(wake):
            told: Rollout | None = None
            while True:
                rollout = await asyncio.to_thread(self._keeper.newest)
                if rollout != told:
                    yield canary_pb2.WatchRolloutResponse(rollout=rollout_to_proto(rollout))
                    told = rollout
                if rollout.phase.is_final:
                    return
                if self._draining:
                    raise DrainingError
                await woken.wait()
                woken.clear()

    async def PromoteRollout(
        self, request: canary_pb2.PromoteRolloutRequest, context: Context
    ) -> canary_pb2.PromoteRolloutResponse:
        """Note that a person wants it promoted."""
        actor, reason = actor_of(request.actor), reason_of(request.reason)
        rollout = await asyncio.to_thread(self._keeper.ask, "promote", actor=actor, reason=reason)
        return canary_pb2.PromoteRolloutResponse(rollout=rollout_to_proto(rollout))

    async def AbortRollout(
        self, request: canary_pb2.AbortRolloutRequest, context: Context
    ) -> canary_pb2.AbortRolloutResponse:
        """Note that a person wants it to end."""
        actor, reason = actor_of(request.actor), reason_of(request.reason)
        rollout = await asyncio.to_thread(self._keeper.ask, "abort", actor=actor, reason=reason)
        return canary_pb2.AbortRolloutResponse(rollout=rollout_to_proto(rollout))

    async def ListDecisions(
        self, request: canary_pb2.ListDecisionsRequest, context: Context
    ) -> canary_pb2.ListDecisionsResponse:
        """A page of the record, newest first."""
        decisions = await asyncio.to_thread(self._keeper.decisions)
        newest_first = list(decisions)[::-1]
        page = page_of(request, len(newest_first))
        remaining = len(newest_first) - page.stop
        return canary_pb2.ListDecisionsResponse(
            decisions=[decision_to_proto(newest_first[place]) for place in page],
            next_page_token=str(remaining) if remaining > 0 and len(page) else "",
        )
