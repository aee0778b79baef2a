"""The canary service as a client sees it: a version's way to the users, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from andon.api.canary.v1 import canary_service_pb2 as canary_pb2
from andon.api.canary.v1 import canary_service_pb2_grpc as canary_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id
from andon.errors import DeadlineExceededError, UnavailableError
from andon.rpc.convert import seconds_to_duration, timestamp_to_datetime

_NO_BOUNDARIES: Mapping[str, float] = {}


class RolloutPhase(StrEnum):
    """How far a rollout has come."""

    UNSPECIFIED = "unspecified"
    DEPLOYING = "deploying"
    VERIFYING = "verifying"
    OBSERVING = "observing"
    HELD = "held"  # good enough and not shown to be better: a person decides
    PROMOTING = "promoting"
    ROLLING_BACK = "rolling back"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"

    @property
    def is_final(self) -> bool:
        """Whether the rollout is over."""
        return self in (RolloutPhase.PROMOTED, RolloutPhase.ROLLED_BACK, RolloutPhase.ABORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutWish:
    """What to ship and how carefully. None takes the service's default."""

    candidate: str  # "policy/12" or an alias
    step_percents: tuple[int, ...] = ()
    least_step_s: float | None = None
    longest_step_s: float | None = None
    ready_s: float | None = None
    when_equal: Literal["promote", "hold"] = "promote"
    promotion_error_rate: float | None = None
    rollback_error_rate: float | None = None
    boundaries: Mapping[str, float] = field(default_factory=lambda: _NO_BOUNDARIES)  # by gate
    left_out_gates: tuple[str, ...] = ()
    ask_people: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateState:
    """One thing that may get worse, and what was seen of it."""

    name: str
    boundary: float
    mean: float | None
    observations: int
    least: int  # observations below which it shows nothing
    verdict: str  # "no data", "open", "passed" or "failed"
    log_evidence_above: float
    log_evidence_below: float
    is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    """A rollout as it stands."""

    rollout_id: str
    candidate: str
    stable: str
    phase: RolloutPhase
    step: int  # from 0
    step_percents: tuple[int, ...]
    canary_percent: int
    reason: str
    status: str
    gates: tuple[GateState, ...]
    promotion_error_rate: float
    create_time: datetime
    phase_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDecision:
    """One decision of the record."""

    rollout_id: str
    decision_time: datetime
    phase: RolloutPhase
    step: int
    kind: str  # "advance", "hold", "promote", "roll_back" or "abort"
    reason: str
    numbers: Mapping[str, Mapping[str, float]]  # by gate


class CanaryClient(ServiceConnection):
    """Calls the canary service."""

    def __init__(self, target: str, *, options: ChannelOptions | None = None) -> None:
        super().__init__(target, service_name="andon.api.canary.v1.CanaryService", options=options)
        self._stub = canary_grpc.CanaryServiceStub(self.channel)

    def start(
        self, wish: RolloutWish, *, request_id: str | None = None, timeout_s: float = 60.0
    ) -> RolloutState:
        """Begins a rollout; returns when it is recorded."""
        request = canary_pb2.StartRolloutRequest(
            request_id=request_id or new_request_id(), spec=_spec_to_proto(wish)
        )
        return _rollout(self.unary(self._stub.StartRollout, request, timeout_s=timeout_s).rollout)

    def get(self, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> RolloutState:
        """The newest rollout."""
        answer = self.unary(
            self._stub.GetRollout,
            canary_pb2.GetRolloutRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return _rollout(answer.rollout)

    def watch(
        self,
        *,
        stream_timeout_s: float = 3600.0,
        reconnect_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[RolloutState]:
        """The newest rollout, at once and after every change, until it is over.

        When the service goes away the stream is taken up again, waiting up to ``reconnect_s`` for the service
        to come back; then UnavailableError is raised.
        """
        lost_since: float | None = None
        while True:
            if lost_since is not None:
                self._wait_until_answering(max(lost_since + reconnect_s - clock(), 0.1))
            answers = self.stream(
                self._stub.WatchRollout, canary_pb2.WatchRolloutRequest(), timeout_s=stream_timeout_s
            )
            try:
                with closing(answers):
                    for answer in answers:
                        lost_since = None
                        yield _rollout(answer.rollout)
                return
            except DeadlineExceededError:
                lost_since = None
            except UnavailableError:
                lost_since = clock() if lost_since is None else lost_since
                if clock() - lost_since > reconnect_s:
                    raise

    def promote(self, *, actor: str, reason: str, timeout_s: float = 60.0) -> RolloutState:
        """Has the rollout promoted although the evidence does not say so yet."""
        request = canary_pb2.PromoteRolloutRequest(actor=actor, reason=reason)
        return _rollout(self.unary(self._stub.PromoteRollout, request, timeout_s=timeout_s).rollout)

    def abort(self, *, actor: str, reason: str, timeout_s: float = 60.0) -> RolloutState:
        """Has the rollout rolled back."""
        request = canary_pb2.AbortRolloutRequest(actor=actor, reason=reason)
        return _rollout(self.unary(self._stub.AbortRollout, request, timeout_s=timeout_s).rollout)

    def decisions(self, *, page_size: int = 100, timeout_s: float = 30.0) -> Iterator[RolloutDecision]:
        """The record, newest first, fetched page by page as it is read."""
        page_token = ""
        while True:
            request = canary_pb2.ListDecisionsRequest(page_size=page_size, page_token=page_token)
            answer = self.unary(self._stub.ListDecisions, request, timeout_s=timeout_s)
            yield from map(_decision, answer.decisions)
            page_token = answer.next_page_token
            if not page_token:
                return

    def _wait_until_answering(self, timeout_s: float) -> None:
        try:
            self.get(timeout_s=timeout_s, wait_for_ready=True)
        except DeadlineExceededError as error:
            raise UnavailableError(
                f"the canary service at {self.target} did not come back in time", target=self.target
            ) from error


def _spec_to_proto(wish: RolloutWish) -> canary_pb2.RolloutSpec:
    return canary_pb2.RolloutSpec(
        candidate=wish.candidate,
        step_percents=wish.step_percents,
        least_step_duration=None if wish.least_step_s is None else seconds_to_duration(wish.least_step_s),
        longest_step_duration=(
            None if wish.longest_step_s is None else seconds_to_duration(wish.longest_step_s)
        ),
        ready_duration=None if wish.ready_s is None else seconds_to_duration(wish.ready_s),
        when_equal=canary_pb2.WhenEqual.Value(f"WHEN_EQUAL_{wish.when_equal.upper()}"),
        promotion_error_rate=wish.promotion_error_rate,
        rollback_error_rate=wish.rollback_error_rate,
        boundaries=[
            canary_pb2.GateBoundary(gate=gate, boundary=boundary)
            for gate, boundary in wish.boundaries.items()
        ],
        ask_people=wish.ask_people,
        left_out_gates=wish.left_out_gates,
    )


def _rollout(rollout: canary_pb2.Rollout) -> RolloutState:
    return RolloutState(
        rollout_id=rollout.rollout_id,
        candidate=rollout.candidate,
        stable=rollout.stable,
        phase=_phase(rollout.phase),
        step=rollout.step_index,
        step_percents=tuple(rollout.step_percents),
        canary_percent=rollout.canary_percent,
        reason=rollout.reason,
        status=rollout.status_message,
        gates=tuple(map(_gate, rollout.gates)),
        promotion_error_rate=rollout.promotion_error_rate,
        create_time=timestamp_to_datetime(rollout.create_time),
        phase_time=timestamp_to_datetime(rollout.phase_time),
    )


def _gate(gate: canary_pb2.Gate) -> GateState:
    verdict = canary_pb2.GateVerdict.Name(gate.verdict).removeprefix("GATE_VERDICT_")
    return GateState(
        name=gate.name,
        boundary=gate.boundary,
        mean=gate.mean if gate.HasField("mean") else None,
        observations=gate.observation_count,
        least=gate.least_count,
        verdict=verdict.lower().replace("_", " "),
        log_evidence_above=gate.log_evidence_above,
        log_evidence_below=gate.log_evidence_below,
        is_better=gate.is_better,
    )


def _decision(decision: canary_pb2.Decision) -> RolloutDecision:
    return RolloutDecision(
        rollout_id=decision.rollout_id,
        decision_time=timestamp_to_datetime(decision.decision_time),
        phase=_phase(decision.phase),
        step=decision.step_index,
        kind=decision.kind,
        reason=decision.reason,
        numbers={name: dict(gate.numbers) for name, gate in decision.gates.items()},
    )


def _phase(phase: canary_pb2.RolloutPhase.ValueType) -> RolloutPhase:
    name = canary_pb2.RolloutPhase.Name(phase).removeprefix("ROLLOUT_PHASE_")
    return RolloutPhase(name.lower().replace("_", " "))
