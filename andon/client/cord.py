"""The andon cord as a client sees it: anyone pulls, a researcher releases, the trainer watches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id
from andon.rpc.convert import timestamp_to_datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Cord:
    """Whether training may run, and how that came about."""

    pulled: bool
    event_number: int  # grows with every pull and release; 0 when the cord was never touched
    actor: str
    reason: str
    event_time: datetime | None  # None when the cord was never touched


@dataclass(frozen=True, slots=True, kw_only=True)
class CordEvent:
    """One entry of the record, which is only ever added to."""

    event_number: int  # from 1, without gaps
    action: Literal["pull", "release"]
    actor: str
    reason: str
    event_time: datetime


class CordClient(ServiceConnection):
    """Calls the cord service, which lives in the labeling service."""

    def __init__(
        self, target: str, *, options: ChannelOptions | None = None, token: str | None = None
    ) -> None:
        """``token`` is the bearer token; ANDON_TOKEN when left out."""
        super().__init__(
            target,
            service_name="andon.api.labeling.v1.CordService",
            options=options,
            token=token,
        )
        self._stub = cord_grpc.CordServiceStub(self.channel)

    def pull(
        self, *, actor: str, reason: str, request_id: str | None = None, timeout_s: float = 30.0
    ) -> Cord:
        """Stops training."""
        request = cord_pb2.PullCordRequest(
            request_id=request_id or new_request_id(), actor=actor, reason=reason
        )
        answer = self.unary(self._stub.PullCord, request, timeout_s=timeout_s)
        return _cord(answer.cord)

    def release(
        self, *, actor: str, reason: str, request_id: str | None = None, timeout_s: float = 30.0
    ) -> Cord:
        """Lets training go on."""
        request = cord_pb2.ReleaseCordRequest(
            request_id=request_id or new_request_id(), actor=actor, reason=reason
        )
        answer = self.unary(self._stub.ReleaseCord, request, timeout_s=timeout_s)
        return _cord(answer.cord)

    def get(self, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> Cord:
        """The state now."""
        answer = self.unary(
            self._stub.GetCord,
            cord_pb2.GetCordRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return _cord(answer.cord)

    def watch(self, *, timeout_s: float | None = None, wait_for_ready: bool = False) -> Iterator[Cord]:
        """The state at once, and again after every change.

        Without ``timeout_s`` the stream lasts until it breaks. What a broken stream means is the caller's to
        decide: a trainer that cannot hear the cord has to stand still.
        """
        for answer in self.stream(
            self._stub.WatchCord,
            cord_pb2.WatchCordRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        ):
            yield _cord(answer.cord)

    def events(self, *, page_size: int = 100, timeout_s: float = 30.0) -> Iterator[CordEvent]:
        """The whole record, newest first, fetched page by page as it is read."""
        page_token = ""
        while True:
            answer = self.unary(
                self._stub.ListCordEvents,
                cord_pb2.ListCordEventsRequest(page_size=page_size, page_token=page_token),
                timeout_s=timeout_s,
            )
            yield from map(_event, answer.events)
            page_token = answer.next_page_token
            if not page_token:
                return


def _event(event: cord_pb2.CordEvent) -> CordEvent:
    return CordEvent(
        event_number=event.event_number,
        action="release" if event.action == cord_pb2.CORD_ACTION_RELEASE else "pull",
        actor=event.actor,
        reason=event.reason,
        event_time=timestamp_to_datetime(event.event_time),
    )


def _cord(cord: cord_pb2.Cord) -> Cord:
    return Cord(
        pulled=cord.state == cord_pb2.CORD_STATE_PULLED,
        event_number=cord.event_number,
        actor=cord.actor,
        reason=cord.reason,
        event_time=timestamp_to_datetime(cord.event_time) if cord.HasField("event_time") else None,
    )
