"""Decides what a caller's request means, and refuses what makes no sense. Messages stop here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from andon.api.canary.v1 import canary_service_pb2 as canary_pb2
from andon.modeling.store import ModelStore
from andon.rpc.auth import current_caller
from andon.rpc.convert import datetime_to_timestamp, duration_to_seconds
from services.canary.errors import InvalidFieldError, InvalidRolloutError, NotALanguageModelError
from services.canary.gates.gate import ErrorRates, Gate, Verdict
from services.canary.gates.standard import chosen_gates
from services.canary.platform import RecordedDecision
from services.canary.rollout import Phase, Rollout, RolloutSpec

MAX_REQUEST_ID_CHARS = 128
MAX_ACTOR_CHARS = 100
MAX_REASON_CHARS = 2000
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 500

_WHEN_EQUAL: dict[int, Literal["promote", "hold"]] = {
    canary_pb2.WHEN_EQUAL_UNSPECIFIED: "promote",
    canary_pb2.WHEN_EQUAL_PROMOTE: "promote",
    canary_pb2.WHEN_EQUAL_HOLD: "hold",
}
_PHASES: dict[Phase, canary_pb2.RolloutPhase.ValueType] = {
    phase: canary_pb2.RolloutPhase.Value(f"ROLLOUT_PHASE_{phase.name}") for phase in Phase
}
_VERDICTS: dict[Verdict, canary_pb2.GateVerdict.ValueType] = {
    verdict: canary_pb2.GateVerdict.Value(f"GATE_VERDICT_{verdict.name}") for verdict in Verdict
}


def request_id_of(request_id: str) -> str:
    """A request id that can be kept."""
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARS:
        raise InvalidFieldError(
            f"1 to {MAX_REQUEST_ID_CHARS} characters", reason="INVALID_REQUEST_ID", field="request_id"
        )
    return request_id


def spec_of(message: canary_pb2.RolloutSpec, store: ModelStore) -> RolloutSpec:
    """What is asked for, defaults filled in; an alias is resolved here, once."""
    stored = store.resolve(message.candidate)
    candidate = str(stored.version)
    if stored.manifest.draft.kind != "causal_lm":
        raise NotALanguageModelError(candidate)
    if message.when_equal not in _WHEN_EQUAL:
        raise InvalidRolloutError("when_equal is not one of its values")
    boundaries = {moved.gate: moved.boundary for moved in message.boundaries}
    if len(boundaries) < len(message.boundaries):
        raise InvalidRolloutError("boundaries name a gate twice")
    try:
        gates = chosen_gates(
            with_people=message.ask_people,
            boundaries=boundaries,
            left_out=message.left_out_gates,
        )
        spec = RolloutSpec(candidate=candidate, gates=gates)
        given = {field.name: value for field, value in message.ListFields()}

        def seconds(field: str, default: float) -> float:
            if field not in given:
                return default
            given[field].ToJsonString()  # raises ValueError for what is no duration, such as 1 s and -5 ns
            return duration_to_seconds(given[field])

        return replace(
            spec,
            steps=tuple(message.step_percents) or spec.steps,
            rates=ErrorRates(
                promotion=given.get("promotion_error_rate", spec.rates.promotion),
                rollback=given.get("rollback_error_rate", spec.rates.rollback),
            ),
            least_s=seconds("least_step_duration", spec.least_s),
            longest_s=seconds("longest_step_duration", spec.longest_s),
            ready_s=seconds("ready_duration", spec.ready_s),
            when_equal=_WHEN_EQUAL[message.when_equal],
        )
    except ValueError as error:
        raise InvalidRolloutError(str(error)) from error


def actor_of(actor: str) -> str:
    """Who acts: the token's holder where there are tokens, else whom the caller names."""
    caller = current_caller()
    named = actor.strip() if caller is None else caller.name
    return _text(named, field="actor", empty="EMPTY_ACTOR", most=MAX_ACTOR_CHARS)


def reason_of(reason: str) -> str:
    """Why somebody acts."""
    return _text(reason.strip(), field="reason", empty="EMPTY_REASON", most=MAX_REASON_CHARS)


def page_of(request: canary_pb2.ListDecisionsRequest, total: int) -> range:
    """Which places, counted from the newest, a page of ``total`` decisions has.

    A token says how many decisions there were, so that later ones do not move the pages.
    """
    size = request.page_size or DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidFieldError(f"1 to {MAX_PAGE_SIZE}", reason="INVALID_PAGE_SIZE", field="page_size")
    first = 0
    if request.page_token:
        try:
            remaining = int(request.page_token)
        except ValueError:
            remaining = -1
        if not 0 < remaining <= total:
            raise InvalidFieldError(
                "not one that was given out", reason="INVALID_PAGE_TOKEN", field="page_token"
            )
        first = total - remaining
    return range(first, min(first + size, total))


def rollout_to_proto(rollout: Rollout) -> canary_pb2.Rollout:
    """A rollout as a message."""
    return canary_pb2.Rollout(
        rollout_id=rollout.rollout_id,
        candidate=rollout.spec.candidate,
        stable=rollout.stable,
        phase=_PHASES[rollout.phase],
        step_index=rollout.step,
        step_percents=rollout.spec.steps,
        canary_percent=rollout.canary_percent,
        reason=rollout.reason,
        status_message=rollout.status,
        gates=[_gate_to_proto(gate) for gate in rollout.gates],
        create_time=datetime_to_timestamp(_moment(rollout.began_s)),
        phase_time=datetime_to_timestamp(_moment(rollout.phase_began_s)),
        promotion_error_rate=rollout.spec.rates.promotion,
    )


def decision_to_proto(recorded: RecordedDecision) -> canary_pb2.Decision:
    """A decision as a message."""
    return canary_pb2.Decision(
        rollout_id=recorded.rollout_id,
        decision_time=datetime_to_timestamp(_moment(recorded.time_s)),
        phase=_PHASES[Phase(recorded.phase)],
        step_index=recorded.step,
        kind=recorded.decision.kind.value,
        reason=recorded.decision.reason,
        gates={
            gate: canary_pb2.GateNumbers(numbers=numbers)
            for gate, numbers in recorded.decision.numbers.items()
        },
    )


def _gate_to_proto(gate: Gate) -> canary_pb2.Gate:
    return canary_pb2.Gate(
        name=gate.rule.name,
        boundary=gate.rule.boundary,
        mean=gate.mean,
        observation_count=gate.count,
        verdict=_VERDICTS[gate.verdict],
        log_evidence_above=gate.above.log_evidence,
        log_evidence_below=gate.below.log_evidence,
        is_better=gate.is_better,
        least_count=gate.rule.least,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _text(text: str, *, field: str, empty: str, most: int) -> str:
    if not text:
        raise InvalidFieldError("must not be empty", reason=empty, field=field)
    if len(text) > most:
        raise InvalidFieldError(f"at most {most} characters", reason="TEXT_TOO_LONG", field=field)
    return text
