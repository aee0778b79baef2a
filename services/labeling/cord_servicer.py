"""The RPCs of CordService: pull, release, watch, read the record.

When the cord may be pulled and released is decided in ``cord``, what follows in ``cord_keeper``. A watcher
that hears nothing within the keepalive interval has lost this service, and has to stand still.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from services.labeling.accounts import Role
from services.labeling.callers import acting_as
from services.labeling.cord import CordAction, CordEvent, check_cord_act
from services.labeling.cord_keeper import CordKeeper
from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_request_id
from services.labeling.messages import cord_event_to_proto, cord_to_proto, repeatable
from services.labeling.metrics import LabelingMetrics

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
_MAX_TOKEN_DIGITS = 18

# A service may pass on who pulled; whoever lets training go on stands in for it themselves.
_ACT_FOR_ANYBODY = {
    CordAction.PULL: frozenset({Role.SERVICE, Role.ADMIN}),
    CordAction.RELEASE: frozenset({Role.ADMIN}),
}


class CordServicer(cord_grpc.CordServiceServicer):
    """The andon cord."""

    def __init__(self, cord: CordKeeper, *, keepalive_s: float, metrics: LabelingMetrics) -> None:
        self._cord = cord
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
            changes = self._cord.changes
            count = changes.count
            last = await self._cord.last()
            while True:
                yield cord_pb2.WatchCordResponse(cord=cord_to_proto(last))
                events: list[CordEvent] = []
                is_news = True
                # An announcement of what was read already is no news, and silence is filled with the state.
                while is_news and not events:
                    await changes.wait_beyond(count, timeout_s=self._keepalive_s)
                    is_news = changes.count > count
                    count = changes.count
                    events = await self._cord.events_after(0 if last is None else last.number)
                for event in events[:-1]:
                    yield cord_pb2.WatchCordResponse(cord=cord_to_proto(event))
                last = events[-1] if events else last

    async def GetCord(
        self,
        request: cord_pb2.GetCordRequest,
        context: grpc.aio.ServicerContext[cord_pb2.GetCordRequest, cord_pb2.GetCordResponse],
    ) -> cord_pb2.GetCordResponse:
        """Tell the state."""
        return cord_pb2.GetCordResponse(cord=cord_to_proto(await self._cord.last()))

    async def ListCordEvents(
        self,
        request: cord_pb2.ListCordEventsRequest,
        context: grpc.aio.ServicerContext[cord_pb2.ListCordEventsRequest, cord_pb2.ListCordEventsResponse],
    ) -> cord_pb2.ListCordEventsResponse:
        """Give a page of the record."""
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            raise InvalidFieldError(f"0 to {MAX_PAGE_SIZE:,}", reason="INVALID_PAGE", field="page_size")
        size = request.page_size or DEFAULT_PAGE_SIZE
        events = await self._cord.newest_events(size + 1, before=_before(request.page_token))
        return cord_pb2.ListCordEventsResponse(
            events=[cord_event_to_proto(event) for event in events[:size]],
            next_page_token=str(events[size - 1].number) if len(events) > size else "",
        )

    async def _act(
        self, method: str, action: CordAction, request: cord_pb2.PullCordRequest | cord_pb2.ReleaseCordRequest
    ) -> CordEvent:
        check_request_id(request.request_id)
        actor = acting_as(request.actor, may_act_for_anybody=_ACT_FOR_ANYBODY[action])
        check_cord_act(actor=actor, reason=request.reason)
        origin = repeatable(method, request.request_id, request)
        acted = await self._cord.act(origin, action, actor=actor, reason=request.reason)
        return acted.event


def _before(page_token: str) -> int | None:
    """The number below which a page begins."""
    if not page_token:
        return None
    if not (page_token.isascii() and page_token.isdigit()) or len(page_token) > _MAX_TOKEN_DIGITS:
        raise InvalidFieldError("is not one that was given out", reason="INVALID_PAGE", field="page_token")
    return int(page_token)
