"""The cord: state, record, repetitions, restarts."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.cord import CordAction, CordEvent, check_cord_act, is_pulled
from services.labeling.cord_store import CordStore
from services.labeling.errors import CordNotPulledError, InvalidFieldError
from services.labeling.requests import RepeatableRequest


def act(store: CordStore, action: CordAction, request_id: str, *, actor: str = "ann") -> CordEvent:
    origin = RepeatableRequest(method=action.value, request_id=request_id, digest=actor)
    return store.act(origin, action, actor=actor, reason=f"reason {request_id}").event


def test_pull_release_and_the_record(open_store: Callable[..., Any]) -> None:
    opened = open_store()
    store = opened.cord
    assert store.last() is None
    assert not is_pulled(None)
    with pytest.raises(CordNotPulledError):
        act(store, CordAction.RELEASE, "0")
    pulled = act(store, CordAction.PULL, "1")
    assert pulled == CordEvent(
        number=1, action=CordAction.PULL, actor="ann", reason="reason 1", event_us=opened.clock.now_us
    )
    opened.clock.advance_s(1)
    act(store, CordAction.PULL, "2", actor="bob")
    assert is_pulled(store.last())
    released = act(store, CordAction.RELEASE, "3")
    assert released.number == 3
    assert not is_pulled(store.last())
    with pytest.raises(CordNotPulledError):
        act(store, CordAction.RELEASE, "4")
    record = open_store().cord.events_after(0)  # as after a restart
    assert [(event.number, event.action.value, event.actor, event.reason) for event in record] == [
        (1, "pull", "ann", "reason 1"),
        (2, "pull", "bob", "reason 2"),
        (3, "release", "ann", "reason 3"),
    ]
    assert store.events_after(2) == [released]


def test_a_repeated_pull_gets_the_first_answer_whatever_it_says(open_store: Callable[..., Any]) -> None:
    store = open_store().cord
    first = act(store, CordAction.PULL, "1")
    act(store, CordAction.RELEASE, "1")
    assert act(store, CordAction.PULL, "1", actor="somebody else") == first
    assert not is_pulled(store.last())
    assert len(store.events_after(0)) == 2


@pytest.mark.parametrize(
    ("actor", "reason", "expected"),
    [
        ("", "r", "INVALID_ACTOR"),
        (" ", "r", "INVALID_ACTOR"),
        ("a" * 201, "r", "INVALID_ACTOR"),
        ("a\0", "r", "INVALID_ACTOR"),
        ("a", "", "EMPTY_REASON"),
        ("a", "\n ", "EMPTY_REASON"),
        ("a", "r" * 10_001, "TEXT_TOO_LONG"),
        ("a", "r\0", "INVALID_TEXT"),
    ],
)
def test_bad_acts(actor: str, reason: str, expected: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_cord_act(actor=actor, reason=reason)
    assert caught.value.reason == expected


def test_the_longest_act_passes() -> None:
    check_cord_act(actor="a" * 200, reason="r" * 10_000)
