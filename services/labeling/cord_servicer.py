"""The RPCs of CordService: pull, release, watch.

When the cord may be pulled and released is decided in ``cord``. A watcher that hears nothing within the
keepalive interval has lost this service, and has to stand still.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

import grpc.aio
import structlog

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from services.labeling.accounts import Role
from services.labeling.callers import acting_as
from services.labeling.changes import Changes
from services.labeling.cord import CordAction, CordEvent, check_cord_act, is_pulled
from services.labeling.cord_store import CordStore
from services.labeling.limits import check_request_id
from services.labeling.messages import cord_to_proto, repeatable
from services.labeling.metrics import LabelingMetrics
from services.labeling.threads import DatabaseThreads

# A service may pass on who pulled; whoever lets training go on stands in for it themselves.
_ACT_FOR_ANYBODY = {
    CordAction.PULL: frozenset({Role.SERVICE, Role.ADMIN}),
    CordAction.RELEASE: frozenset({Role.ADMIN}),
}

_log = structlog.get_logger(__name__)


class CordServicer(cord_grpc.CordServiceServicer):
    """The andon cord."""

    def __init__(
        self,
        store: CordStore,
        *,
        threads: DatabaseThreads,
        cord_changes: Changes,
        keepalive_s: float,
        metrics: LabelingMetrics,
    ) -> None:
        self._store = store
        self._threads = threads
        self._cord_changes = cord_changes
        self._keepalive_s = keepalive_s
        self._metrics = metrics

    async def PullCord(
        self,
        request: cord_pb2.PullCordRequest,
        context: grpc.aio.ServicerContext[cord_pb2.PullCordRequest, cord_pb2.PullCordResponse],
    ) -> cord_pb2.PullCordResponse:
        """Stop training."""
        event = await self._act("PullCord", CordAction.PULL, request)
        return cord_pb2.PullCordResponse(cord=cord_to_proto(event))

    async def ReleaseCord(
        self,
        request: cord_pb2.ReleaseCordRequest,
        context: grpc.aio.ServicerContext[cord_pb2.ReleaseCordRequest, cord_pb2.ReleaseCordResponse],
    ) -> cord_pb2.ReleaseCordResponse:
        """Let training go on."""
        event = await self._act("ReleaseCord", CordAction.RELEASE, request)
        return cord_pb2.ReleaseCordResponse(cord=cord_to_proto(event))

    async def WatchCord(
        self,
        request: cord_pb2.WatchCordRequest,
        context: grpc.aio.ServicerContext[cord_pb2.WatchCordRequest, cord_pb2.WatchCordResponse],
    ) -> AsyncIterator[cord_pb2.WatchCordResponse]:
        """Send the state, every later event, and the state again when nothing happens."""
        with self._metrics.streams.labels("cord").track_inprogress():
            count = self._cord_changes.count
            last = await self._threads.read(self._store.last)
            while True:
                yield cord_pb2.WatchCordResponse(cord=cord_to_proto(last))
                events: list[CordEvent] = []
                is_news = True
                # An announcement of what was read already is no news, and silence is filled with the state.
                while is_news and not events:
                    await self._cord_changes.wait_beyond(count, timeout_s=self._keepalive_s)
                    is_news = self._cord_changes.count > count
                    count = self._cord_changes.count
                    seen = 0 if last is None else last.number
                    events = await self._threads.read(functools.partial(self._store.events_after, seen))
                for event in events[:-1]:
                    yield cord_pb2.WatchCordResponse(cord=cord_to_proto(event))
                last = events[-1] if events else last

    async def GetCord(
        self,
        request: cord_pb2.GetCordRequest,
        context: grpc.aio.ServicerContext[cord_pb2.GetCordRequest, cord_pb2.GetCordResponse],
    ) -> cord_pb2.GetCordResponse:
        """Tell the state."""
        return cord_pb2.GetCordResponse(cord=cord_to_proto(await self._threads.read(self._store.last)))

    async def _act(
        self, method: str, action: CordAction, request: cord_pb2.PullCordRequest | cord_pb2.ReleaseCordRequest
    ) -> CordEvent:
        check_request_id(request.request_id)
        actor = acting_as(request.actor, may_act_for_anybody=_ACT_FOR_ANYBODY[action])
        check_cord_act(actor=actor, reason=request.reason)
        origin = repeatable(method, request.request_id, request)
        acted = await self._threads.write(
            lambda: self._store.act(origin, action, actor=actor, reason=request.reason),
            then=self._cord_changes.announce,
        )
        if acted.repeated:
            self._metrics.requests_repeated.labels(method).inc()
        else:
            self._metrics.cord_events.labels(action.value).inc()
            self._metrics.cord_pulled.set(is_pulled(acted.event))
            _log.warning("cord_acted", action=action.value, actor=actor, event_number=acted.event.number)
        return acted.event
