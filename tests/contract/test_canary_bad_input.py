"""Requests that the canary service must refuse, for every RPC and field: status and reason; it goes on."""

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from andon.api.canary.v1 import canary_service_pb2 as pb
from andon.api.canary.v1 import canary_service_pb2_grpc as canary_grpc
from andon.rpc.errors import error_from_rpc
from tests.canary_models import BETTER, STABLE
from tests.canary_world import CanaryWorld, canary_world

__all__ = ["canary_world"]

TIMEOUT_S = 30
INVALID, MISSING, REFUSED = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"


def start(*, request_id: str = "r", **spec: Any) -> pb.StartRolloutRequest:
    return pb.StartRolloutRequest(request_id=request_id, spec=pb.RolloutSpec(**{"candidate": BETTER, **spec}))


def boundaries(**moved: float) -> pb.StartRolloutRequest:
    return start(
        boundaries=[pb.GateBoundary(gate=gate, boundary=boundary) for gate, boundary in moved.items()]
    )


SECOND = Duration(seconds=1)
ALL_GATES = ["score", "kl", "longer", "shorter", "repetition", "latency", "calls"]

# What is asked, and how it is refused.
STARTS: list[tuple[str, Message, str, str]] = [
    ("no request id", start(request_id=""), INVALID, "INVALID_REQUEST_ID"),
    ("a long request id", start(request_id="r" * 129), INVALID, "INVALID_REQUEST_ID"),
    ("no spec", pb.StartRolloutRequest(request_id="r"), INVALID, "INVALID_MODEL_NAME"),
    ("no candidate", start(candidate=""), INVALID, "INVALID_MODEL_NAME"),
    ("a family", start(candidate="policy"), INVALID, "INVALID_MODEL_NAME"),
    ("version 0", start(candidate="policy/0"), INVALID, "INVALID_MODEL_NAME"),
    ("a negative version", start(candidate="policy/-1"), INVALID, "INVALID_MODEL_NAME"),
    ("half a version", start(candidate="policy/1.5"), INVALID, "INVALID_MODEL_NAME"),
    ("a version that is not there", start(candidate="policy/99"), MISSING, "MODEL_NOT_FOUND"),
    ("a family that is not there", start(candidate="nothing/1"), MISSING, "MODEL_NOT_FOUND"),
    ("an alias that is not there", start(candidate="policy@nobody"), MISSING, "MODEL_NOT_FOUND"),
    ("a large number", start(candidate=f"policy/{10**30}"), INVALID, "INVALID_MODEL_NAME"),
    ("a path upwards", start(candidate="../policy/1"), INVALID, "INVALID_MODEL_NAME"),
    ("an absolute path", start(candidate="/etc"), INVALID, "INVALID_MODEL_NAME"),
    ("a folder", start(candidate="."), INVALID, "INVALID_MODEL_NAME"),
    ("a public name", start(candidate="hf:gpt2"), INVALID, "INVALID_MODEL_NAME"),
    ("a long name", start(candidate="p" * 5000), INVALID, "INVALID_MODEL_NAME"),
    ("a long family", start(candidate="p" * 5000 + "/1"), INVALID, "INVALID_MODEL_NAME"),
    ("a null character", start(candidate="policy/1\0"), INVALID, "INVALID_MODEL_NAME"),
    ("a line's end", start(candidate="policy/1\n"), INVALID, "INVALID_MODEL_NAME"),
    ("a reward model", start(candidate="reward/1"), REFUSED, "NOT_A_LANGUAGE_MODEL"),
    ("what is stable", start(candidate=STABLE), REFUSED, "ALREADY_STABLE"),
    ("share 0", start(step_percents=[0]), INVALID, "INVALID_ROLLOUT"),
    ("a negative share", start(step_percents=[-5]), INVALID, "INVALID_ROLLOUT"),
    ("a share above all", start(step_percents=[5, 101]), INVALID, "INVALID_ROLLOUT"),
    ("falling shares", start(step_percents=[50, 5]), INVALID, "INVALID_ROLLOUT"),
    ("equal shares", start(step_percents=[5, 5]), INVALID, "INVALID_ROLLOUT"),
    ("a negative least", start(least_step_duration=Duration(seconds=-1)), INVALID, "INVALID_ROLLOUT"),
    ("no longest", start(longest_step_duration=Duration()), INVALID, "INVALID_ROLLOUT"),
    ("a longest below the least", start(longest_step_duration=SECOND), INVALID, "INVALID_ROLLOUT"),
    (
        "a longest at the least",
        start(least_step_duration=SECOND, longest_step_duration=SECOND),
        INVALID,
        "INVALID_ROLLOUT",
    ),
    ("no time to be ready", start(ready_duration=Duration()), INVALID, "INVALID_ROLLOUT"),
    ("a negative time to be ready", start(ready_duration=Duration(nanos=-1)), INVALID, "INVALID_ROLLOUT"),
    (
        "a duration that is none",
        start(ready_duration=Duration(seconds=1, nanos=-5)),
        INVALID,
        "INVALID_ROLLOUT",
    ),
    (
        "a duration longer than any",
        start(longest_step_duration=Duration(seconds=2**62)),
        INVALID,
        "INVALID_ROLLOUT",
    ),
    ("an unknown wish", start(when_equal=99), INVALID, "INVALID_ROLLOUT"),
    *(
        (f"{field} {rate}", start(**{field: rate}), INVALID, "INVALID_ROLLOUT")
        for field in ("promotion_error_rate", "rollback_error_rate")
        # The smallest ones could not be divided among the gates any more.
        for rate in (0.0, 1.0, -0.05, 1.5, float("nan"), float("inf"), 5e-324, 1e-12)
    ),
    ("a gate that is not there", boundaries(beauty=0.0), INVALID, "INVALID_ROLLOUT"),
    ("a gate without a name", boundaries(**{"": 0.0}), INVALID, "INVALID_ROLLOUT"),
    ("people who are not asked", boundaries(people=0.5), INVALID, "INVALID_ROLLOUT"),
    ("no number", boundaries(score=float("nan")), INVALID, "INVALID_ROLLOUT"),
    ("no finite number", boundaries(kl=float("-inf")), INVALID, "INVALID_ROLLOUT"),
    ("a boundary outside the bounds", boundaries(kl=-50.0), INVALID, "INVALID_ROLLOUT"),
    ("a boundary that an equal one fails", boundaries(score=0.0), INVALID, "INVALID_ROLLOUT"),
    (
        "two boundaries of one gate",
        start(boundaries=[pb.GateBoundary(gate="score", boundary=at) for at in (-0.1, -0.2)]),
        INVALID,
        "INVALID_ROLLOUT",
    ),
    (
        "a boundary of a gate that is left out",
        start(boundaries=[pb.GateBoundary(gate="score", boundary=-0.1)], left_out_gates=["score"]),
        INVALID,
        "INVALID_ROLLOUT",
    ),
    ("an unknown gate left out", start(left_out_gates=["beauty"]), INVALID, "INVALID_ROLLOUT"),
    ("a gate left out twice", start(left_out_gates=["kl", "kl"]), INVALID, "INVALID_ROLLOUT"),
    ("all gates left out", start(left_out_gates=ALL_GATES), INVALID, "INVALID_ROLLOUT"),
    ("nobody to ask", start(ask_people=True), REFUSED, "NO_PEOPLE"),
]


def words(method: str, *, request: type[Message]) -> list[tuple[str, str, Message, str, str]]:
    return [
        (what, method, request(actor=actor, reason=reason), INVALID, expected)
        for what, actor, reason, expected in (
            ("no actor", "", "why", "EMPTY_ACTOR"),
            ("a blank actor", " \t\n", "why", "EMPTY_ACTOR"),
            ("a long actor", "a" * 101, "why", "TEXT_TOO_LONG"),
            ("no reason", "rita", "", "EMPTY_REASON"),
            ("a blank reason", "rita", " ", "EMPTY_REASON"),
            ("a long reason", "rita", "w" * 2001, "TEXT_TOO_LONG"),
        )
    ]


WORDS = [
    *words("PromoteRollout", request=pb.PromoteRolloutRequest),
    *words("AbortRollout", request=pb.AbortRolloutRequest),
]
PAGES: list[tuple[str, str, Message, str, str]] = [
    *(
        (
            f"{size} a page",
            "ListDecisions",
            pb.ListDecisionsRequest(page_size=size),
            INVALID,
            "INVALID_PAGE_SIZE",
        )
        for size in (-1, 501, 2**31 - 1)
    ),
    *(
        (
            f"token {token[:8]!r}",
            "ListDecisions",
            pb.ListDecisionsRequest(page_token=token),
            INVALID,
            "INVALID_PAGE_TOKEN",
        )
        for token in ("x", "0", "-1", "1", "1.0", " ", "9" * 30, "9" * 5000, "\0")
    ),
]
NOTHING: list[tuple[str, str, Message, str, str]] = [
    ("no rollout", "GetRollout", pb.GetRolloutRequest(), MISSING, "NO_ROLLOUT"),
    ("no rollout", "WatchRollout", pb.WatchRolloutRequest(), MISSING, "NO_ROLLOUT"),
    (
        "no rollout",
        "PromoteRollout",
        pb.PromoteRolloutRequest(actor="rita", reason="why"),
        REFUSED,
        "NO_ROLLOUT_IN_PROGRESS",
    ),
    (
        "no rollout",
        "AbortRollout",
        pb.AbortRolloutRequest(actor="rita", reason="why"),
        REFUSED,
        "NO_ROLLOUT_IN_PROGRESS",
    ),
]


def refusal(stub: canary_grpc.CanaryServiceStub, method: str, request: Message) -> tuple[str, str]:
    """Status and reason; ("OK", "") where the call is answered."""
    try:
        answer = getattr(stub, method)(request, timeout=TIMEOUT_S)
        if method == "WatchRollout":
            next(iter(answer))
    except grpc.RpcError as error:
        known = error_from_rpc(error)
        return known.code, known.reason
    return "OK", ""


def answered_otherwise(
    stub: canary_grpc.CanaryServiceStub, calls: list[tuple[str, str, Message, str, str]]
) -> dict[str, tuple[str, str]]:
    """The calls that did not end as they should, and how they ended."""
    ends = {
        f"{method}: {what}": (refusal(stub, method, request), expected)
        for what, method, request, *expected in calls
    }
    return {call: end for call, (end, expected) in ends.items() if [*end] != expected}


def test_what_makes_no_sense_is_refused(canary_world: CanaryWorld) -> None:
    canary_world.start_controller()
    with grpc.insecure_channel(canary_world.controller.target) as channel:
        stub = canary_grpc.CanaryServiceStub(channel)
        starts = [(what, "StartRollout", request, status, reason) for what, request, status, reason in STARTS]
        assert answered_otherwise(stub, [*starts, *WORDS, *PAGES, *NOTHING]) == {}
        # Nothing of all that was begun, and it goes on.
        assert refusal(stub, "GetRollout", pb.GetRolloutRequest()) == (MISSING, "NO_ROLLOUT")
        assert refusal(stub, "StartRollout", start(least_step_duration=Duration(seconds=50))) == ("OK", "")
        # The same id for another wish, and another rollout beside it.
        assert refusal(stub, "StartRollout", start(step_percents=[7])) == (
            "ALREADY_EXISTS",
            "REQUEST_ID_REUSED",
        )
        assert refusal(stub, "StartRollout", start(request_id="s")) == (REFUSED, "ROLLOUT_IN_PROGRESS")
        assert answered_otherwise(stub, WORDS) == {}
        newest = stub.GetRollout(pb.GetRolloutRequest(), timeout=TIMEOUT_S).rollout
        assert newest.phase in (
            pb.ROLLOUT_PHASE_DEPLOYING,
            pb.ROLLOUT_PHASE_VERIFYING,
            pb.ROLLOUT_PHASE_OBSERVING,
        )
