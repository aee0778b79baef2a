"""CordService over gRPC: pull, release, watch, repeat, restart."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.rpc.server import RunningServer

TIMEOUT_S = 30
PULLED, RELEASED = cord_pb2.CORD_STATE_PULLED, cord_pb2.CORD_STATE_RELEASED


@pytest.fixture
def start(
    start_labeling: Callable[..., RunningServer], connect: Callable[[RunningServer], grpc.Channel]
) -> Callable[..., Any]:
    """``start(cord_keepalive_s=…)`` gives a stub of a service on the test's one database."""
    return lambda **fields: cord_grpc.CordServiceStub(connect(start_labeling(**fields)))


def pull(stub: Any, request_id: str, *, reason: str = "it rambles") -> cord_pb2.Cord:
    request = cord_pb2.PullCordRequest(request_id=request_id, actor="ann", reason=reason)
    return stub.PullCord(request, timeout=TIMEOUT_S).cord


def release(stub: Any, request_id: str) -> cord_pb2.Cord:
    request = cord_pb2.ReleaseCordRequest(request_id=request_id, actor="bob", reason="fixed")
    return stub.ReleaseCord(request, timeout=TIMEOUT_S).cord


def get(stub: Any) -> cord_pb2.Cord:
    return stub.GetCord(cord_pb2.GetCordRequest(), timeout=TIMEOUT_S).cord


def watch(stub: Any) -> Iterator[tuple[int, int]]:
    for response in stub.WatchCord(cord_pb2.WatchCordRequest(), timeout=TIMEOUT_S):
        yield response.cord.event_number, response.cord.state


def test_a_cord_that_nobody_touched(start: Callable[..., Any]) -> None:
    assert get(start()) == cord_pb2.Cord(state=RELEASED)


def test_pull_and_release(start: Callable[..., Any]) -> None:
    stub = start()
    pulled = pull(stub, "1")
    assert (pulled.state, pulled.event_number, pulled.actor, pulled.reason) == (
        PULLED,
        1,
        "ann",
        "it rambles",
    )
    assert pulled.event_time.ToNanoseconds() > 0
    assert get(stub) == pulled
    released = release(stub, "2")
    assert (released.state, released.event_number, released.actor) == (RELEASED, 2, "bob")
    assert get(stub) == released


def test_a_repeated_pull_is_one_pull(start: Callable[..., Any]) -> None:
    stub = start()
    first = pull(stub, "1")
    release(stub, "2")
    assert pull(stub, "1", reason="other words") == first
    assert get(stub).state == RELEASED


def test_watchers_hear_every_event_at_once(start: Callable[..., Any]) -> None:
    stub = start(cord_keepalive_s=3600)  # nothing but an announcement can wake them in this test
    watchers = [watch(stub), watch(stub)]
    assert [next(watcher) for watcher in watchers] == [(0, RELEASED)] * 2
    pull(stub, "1")
    assert [next(watcher) for watcher in watchers] == [(1, PULLED)] * 2
    pull(stub, "2")
    release(stub, "3")
    pull(stub, "4")
    for watcher in watchers:
        assert [next(watcher) for _ in range(3)] == [(2, PULLED), (3, RELEASED), (4, PULLED)]


def test_silence_is_filled_with_the_state(start: Callable[..., Any]) -> None:
    stub = start(cord_keepalive_s=0.01)
    watcher = watch(stub)
    assert [next(watcher) for _ in range(3)] == [(0, RELEASED)] * 3
    pull(stub, "1")
    while (heard := next(watcher)) == (0, RELEASED):
        pass
    assert heard == (1, PULLED)
    assert next(watcher) == (1, PULLED)


def test_another_process_on_the_same_database_is_heard(start: Callable[..., Any]) -> None:
    here, there = start(cord_keepalive_s=0.01), start()
    watcher = watch(here)
    next(watcher)
    pull(there, "1")
    while (heard := next(watcher)) == (0, RELEASED):
        pass
    assert heard == (1, PULLED)
    assert get(here).state == PULLED
