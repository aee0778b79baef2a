"""Patience with services: what is waited for, what is restored, and when a run gives up."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from andon.errors import (
    AndonError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.trainer import peers
from services.trainer.errors import PeerLostError
from services.trainer.peers import AbandonedCallError, Peers
from services.trainer.stages.context import RunStopped, StageClients


class Context:
    """As much of a run as ``Peers`` looks at."""

    clients = StageClients(patience_s=10.0)

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.halt: Callable[[], None] = lambda: None
        self.asked = threading.Event()

    def waiting(self, message: str) -> None:
        self.messages.append(message)

    def asked_to_halt(self) -> bool:
        return self.asked.is_set()

    def obey(self, state: Callable[[], dict[str, Any]]) -> None:
        self.halt()


class Clock:
    """Every look takes four seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 4.0
        return self.now_s


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(peers, "LONGEST_PAUSE_S", 0.0)


def scripted(*outcomes: AndonError | str) -> Callable[[], str]:
    remaining = list(outcomes)

    def call() -> str:
        outcome = remaining.pop(0)
        if isinstance(outcome, AndonError):
            raise outcome
        return outcome

    return call


def restores(counter: list[str], *outcomes: AndonError | str) -> Callable[[], None]:
    remaining = list(outcomes)

    def restore() -> None:
        counter.append("restored")
        if remaining and isinstance(outcome := remaining.pop(0), AndonError):
            raise outcome

    return restore


NOT_LOADED = FailedPreconditionError("no model", reason="MODEL_NOT_LOADED")
OTHER_VERSION = FailedPreconditionError("another", reason="MODEL_VERSION_MISMATCH")


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("down"),
        DeadlineExceededError("slow"),
        ResourceExhaustedError("full", reason="QUEUE_FULL"),
        DataLossError("bit", reason="WEIGHTS_CHECKSUM_MISMATCH"),
    ],
)
def test_what_may_pass_is_tried_again(error: AndonError) -> None:
    restored: list[str] = []
    calls = Peers(Context(), clock=Clock())  # type: ignore[arg-type]
    assert calls.patiently("policy", scripted(error, "ok"), restore=restores(restored)) == "ok"
    assert restored == []


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("too long", reason="SEQUENCE_TOO_LONG"),
        FailedPreconditionError("other", reason="WEIGHTS_SHAPE_MISMATCH"),
        ResourceExhaustedError("message too large", reason="RESOURCE_EXHAUSTED"),
        DataLossError("NaN", reason="WEIGHTS_NOT_FINITE"),
        InternalError("defect"),
    ],
)
def test_what_will_not_pass_is_raised_at_once(error: AndonError) -> None:
    calls = Peers(Context(), clock=Clock())  # type: ignore[arg-type]
    with pytest.raises(type(error)) as caught:
        calls.patiently("policy", scripted(error, "ok"), restore=lambda: None)
    assert caught.value is error


@pytest.mark.parametrize("error", [NOT_LOADED, OTHER_VERSION])
def test_a_peer_without_the_right_model_is_given_it(error: AndonError) -> None:
    restored: list[str] = []
    calls = Peers(Context(), clock=Clock())  # type: ignore[arg-type]
    assert calls.patiently("policy", scripted(error, "ok"), restore=restores(restored)) == "ok"
    assert restored == ["restored"]


def test_restoring_is_tried_again_when_the_peer_goes_away_meanwhile() -> None:
    restored: list[str] = []
    calls = Peers(Context(), clock=Clock())  # type: ignore[arg-type]
    restore = restores(restored, UnavailableError("down again"), "ok")
    assert calls.patiently("policy", scripted(NOT_LOADED, "ok"), restore=restore) == "ok"
    assert restored == ["restored", "restored"]


def test_patience_ends() -> None:
    down = UnavailableError("down", reason="CONNECTION_REFUSED")
    calls = Peers(Context(), clock=Clock())  # type: ignore[arg-type]
    # Looks at 4 s (away since), 8 s, 12 s and 16 s: more than 10 s after the first.
    with pytest.raises(PeerLostError, match="CONNECTION_REFUSED") as caught:
        calls.patiently("reward at host:1", scripted(*[down] * 4, "too late"), restore=lambda: None)
    assert caught.value.metadata["peer"] == "reward at host:1"


def test_results_come_in_the_order_of_the_calls() -> None:
    first_may_end = threading.Event()

    def first() -> str:
        first_may_end.wait(10)
        return "first"

    def second() -> str:
        first_may_end.set()
        return "second"

    calls = Peers(Context())  # type: ignore[arg-type]
    assert calls.together([first, second], state=dict) == ["first", "second"]


def test_the_first_failure_is_raised_and_the_others_are_abandoned() -> None:
    calls = Peers(Context())  # type: ignore[arg-type]
    away = threading.Event()
    abandoned = threading.Event()

    def waits_for_ever() -> None:
        def down() -> None:
            away.set()
            raise UnavailableError("down")

        try:
            calls.patiently("reward", down, restore=lambda: None)
        except AbandonedCallError:
            abandoned.set()
            raise

    def fails() -> None:
        away.wait(10)
        raise InvalidArgumentError("no", reason="EMPTY_PROMPT")

    with pytest.raises(InvalidArgumentError, match="no"):
        calls.together([waits_for_ever, fails], state=dict)
    assert abandoned.wait(10)


def test_a_stop_is_obeyed_while_a_peer_is_waited_for() -> None:
    context = Context()
    calls = Peers(context)  # type: ignore[arg-type]

    def down() -> None:
        raise UnavailableError("down", reason="CONNECTION_REFUSED")

    def halt() -> None:
        if any("CONNECTION_REFUSED" in message for message in context.messages):
            raise RunStopped("enough")

    context.halt = halt
    with pytest.raises(RunStopped):
        calls.together([lambda: calls.patiently("reward", down, restore=lambda: None)], state=dict)
    assert context.messages[-1] == "waiting for reward (CONNECTION_REFUSED)"


def test_no_call_begins_while_the_run_is_asked_to_halt() -> None:
    """Neither for the first time nor again; the cord lets it go on from where it was."""
    context = Context()
    calls = Peers(context)  # type: ignore[arg-type]
    begun_while_halted: list[bool] = []
    obeyed: list[int] = []
    outcomes = scripted(UnavailableError("down"), "ok")

    def call() -> str:
        begun_while_halted.append(context.asked.is_set())
        context.asked.set()  # the cord is pulled while the call is under way
        return outcomes()

    def obey() -> None:
        obeyed.append(len(begun_while_halted))
        if len(obeyed) % 3 == 0:  # released after three looks
            context.asked.clear()

    context.asked.set()
    context.halt = obey
    together = calls.together([lambda: calls.patiently("policy", call, restore=lambda: None)], state=dict)
    assert together == ["ok"]
    assert begun_while_halted == [False, False]
    assert obeyed[:3] == [0, 0, 0]


def test_a_run_that_leaves_while_it_is_asked_to_halt_leaves_no_call_behind() -> None:
    context = Context()
    context.asked.set()
    calls = Peers(context)  # type: ignore[arg-type]
    calls.abandon()
    with pytest.raises(AbandonedCallError):
        calls.patiently("policy", lambda: pytest.fail("it began"), restore=lambda: None)
