"""Requests that the labeling service must refuse, for every RPC: exact status and reason, and it goes on."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.rpc.errors import error_from_rpc
from andon.rpc.server import RunningServer

TIMEOUT_S = 30
CANDIDATES = [pb.Candidate(text="a"), pb.Candidate(text="b")]
TASK = pb.Task(document="d", candidates=CANDIDATES)
FIRST = pb.Choice(best_index=0)


class Callers:
    """Stubs of both services, and the two leases of labeler "ann": one open, one answered."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.labeling = labeling_grpc.LabelingServiceStub(channel)
        self.cord = cord_grpc.CordServiceStub(channel)
        self.labeling.SubmitTasks(
            pb.SubmitTasksRequest(request_id="used", batch="b", tasks=[TASK, TASK]), timeout=TIMEOUT_S
        )
        leased = self.labeling.LeaseTasks(
            pb.LeaseTasksRequest(labeler_id="ann", max_tasks=2), timeout=TIMEOUT_S
        ).tasks
        self.open_lease, self.answered_lease = leased[0].lease_id, leased[1].lease_id
        answer = pb.Answer(lease_id=self.answered_lease, choice=FIRST)
        self.labeling.SubmitAnswers(
            pb.SubmitAnswersRequest(request_id="used", labeler_id="ann", answers=[answer]),
            timeout=TIMEOUT_S,
        )

    def call(self, method: str, request: Message) -> None:
        stub: Any = self.cord if method.endswith("Cord") else self.labeling
        answer = getattr(stub, method)(request, timeout=TIMEOUT_S)
        if method in ("ExportComparisons", "WatchCord"):
            next(iter(answer))


@pytest.fixture
def callers(
    start_labeling: Callable[..., RunningServer], connect: Callable[[RunningServer], grpc.Channel]
) -> Callers:
    running = start_labeling(max_text_chars=1000, database_lock_wait_s=0.01, max_message_bytes=4_000_000)
    return Callers(connect(running))


def submit(**fields: Any) -> pb.SubmitTasksRequest:
    return pb.SubmitTasksRequest(**{"request_id": "new", "batch": "b", "tasks": [TASK], **fields})


def with_task(**fields: Any) -> pb.SubmitTasksRequest:
    return submit(tasks=[pb.Task(**{"document": "d", "candidates": CANDIDATES, **fields})])


def with_candidate(**fields: Any) -> pb.SubmitTasksRequest:
    return with_task(candidates=[CANDIDATES[0], pb.Candidate(**{"text": "b", **fields})])


def with_writer(**fields: Any) -> pb.SubmitTasksRequest:
    return with_candidate(policy_version=model_pb2.ModelVersion(**fields))


def lease(**fields: Any) -> pb.LeaseTasksRequest:
    return pb.LeaseTasksRequest(**{"labeler_id": "ann", **fields})


def answers(*given: pb.Answer, **fields: Any) -> pb.SubmitAnswersRequest:
    return pb.SubmitAnswersRequest(**{"request_id": "new", "labeler_id": "ann", "answers": given, **fields})


def on_open(callers: Callers, **fields: Any) -> pb.SubmitAnswersRequest:
    return answers(pb.Answer(lease_id=callers.open_lease, **fields))


def ranked(callers: Callers, *tiers: list[int]) -> pb.SubmitAnswersRequest:
    ranking = pb.Ranking(tiers=[pb.Tier(candidate_indices=tier) for tier in tiers])
    return on_open(callers, ranking=ranking)


def pull(**fields: str) -> cord_pb2.PullCordRequest:
    return cord_pb2.PullCordRequest(**{"request_id": "p", "actor": "ann", "reason": "why", **fields})


def release(**fields: str) -> cord_pb2.ReleaseCordRequest:
    return cord_pb2.ReleaseCordRequest(**{"request_id": "r", "actor": "ann", "reason": "why", **fields})


Case = tuple[str, Message | Callable[[Callers], Message], str]

INVALID: list[Case] = [
    ("SubmitTasks", submit(request_id=""), "INVALID_REQUEST_ID"),
    ("SubmitTasks", submit(request_id=" "), "INVALID_REQUEST_ID"),
    ("SubmitTasks", submit(request_id="a\nb"), "INVALID_REQUEST_ID"),
    ("SubmitTasks", submit(request_id="x" * 201), "INVALID_REQUEST_ID"),
    ("SubmitTasks", submit(batch=""), "INVALID_BATCH"),
    ("SubmitTasks", submit(batch="../b"), "INVALID_BATCH"),
    ("SubmitTasks", submit(tasks=[]), "EMPTY_REQUEST"),
    ("SubmitTasks", submit(tasks=[TASK] * 10_001), "TOO_MANY_TASKS"),
    ("SubmitTasks", with_task(document=""), "EMPTY_DOCUMENT"),
    ("SubmitTasks", with_task(document=" \t\n"), "EMPTY_DOCUMENT"),
    ("SubmitTasks", with_task(document="x" * 1001), "TEXT_TOO_LONG"),
    ("SubmitTasks", with_task(document="x\0"), "INVALID_TEXT"),
    ("SubmitTasks", with_task(document_id="x" * 1001), "TEXT_TOO_LONG"),
    ("SubmitTasks", with_task(candidates=[]), "CANDIDATE_COUNT"),
    ("SubmitTasks", with_task(candidates=CANDIDATES[:1]), "CANDIDATE_COUNT"),
    ("SubmitTasks", with_task(candidates=CANDIDATES * 5), "CANDIDATE_COUNT"),
    ("SubmitTasks", with_task(overlap_count=-1), "INVALID_OVERLAP"),
    ("SubmitTasks", with_task(overlap_count=101), "INVALID_OVERLAP"),
    ("SubmitTasks", with_candidate(text=""), "EMPTY_CANDIDATE"),
    ("SubmitTasks", with_candidate(text=" "), "EMPTY_CANDIDATE"),
    ("SubmitTasks", with_candidate(text="x" * 1001), "TEXT_TOO_LONG"),
    ("SubmitTasks", with_candidate(source="x" * 65), "TEXT_TOO_LONG"),
    ("SubmitTasks", with_writer(), "INVALID_POLICY_VERSION"),
    ("SubmitTasks", with_writer(name="policy", version=-1), "INVALID_POLICY_VERSION"),
    ("SubmitTasks", with_writer(name="policy", version=1, weights_sha256="x"), "INVALID_POLICY_VERSION"),
    ("LeaseTasks", lease(labeler_id="ann or bob"), "INVALID_LABELER"),
    ("LeaseTasks", lease(batch="a b"), "INVALID_BATCH"),
    ("LeaseTasks", lease(max_tasks=-1), "INVALID_LEASE"),
    ("LeaseTasks", lease(max_tasks=1001), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration()), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration(seconds=-1)), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration(nanos=1)), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration(seconds=1, nanos=-1)), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration(seconds=1, nanos=2_000_000_000)), "INVALID_LEASE"),
    ("LeaseTasks", lease(lease_duration=Duration(seconds=2**62)), "INVALID_LEASE"),
    ("SubmitAnswers", answers(request_id=""), "INVALID_REQUEST_ID"),
    ("SubmitAnswers", answers(), "EMPTY_REQUEST"),
    ("SubmitAnswers", answers(*[pb.Answer(choice=FIRST)] * 1001), "TOO_MANY_ANSWERS"),
    ("SubmitAnswers", answers(*[pb.Answer(lease_id="l", choice=FIRST)] * 2), "INVALID_ANSWER"),
    ("SubmitAnswers", answers(pb.Answer(lease_id="x" * 201, choice=FIRST)), "INVALID_ANSWER"),
    ("SubmitAnswers", on_open, "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: on_open(c, choice=pb.Choice(best_index=2)), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: on_open(c, choice=pb.Choice(best_index=-1)), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: ranked(c), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: ranked(c, [0]), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: ranked(c, [0], [1], []), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: ranked(c, [0, 1], [1]), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: ranked(c, [0], [1], [2]), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: on_open(c, choice=FIRST, confidence=10), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: on_open(c, choice=FIRST, confidence=-1), "INVALID_ANSWER"),
    ("SubmitAnswers", lambda c: on_open(c, choice=FIRST, note="x" * 10_001), "INVALID_ANSWER"),
    (
        "SubmitAnswers",
        lambda c: on_open(c, choice=FIRST, answer_duration=Duration(seconds=-1)),
        "INVALID_ANSWER",
    ),
    ("ExportComparisons", pb.ExportComparisonsRequest(batch="a b"), "INVALID_BATCH"),
    ("ExportComparisons", pb.ExportComparisonsRequest(after_comparison_id=-1), "INVALID_CURSOR"),
    ("ExportComparisons", pb.ExportComparisonsRequest(after_comparison_id=2), "INVALID_CURSOR"),
    (
        "ExportComparisons",
        pb.ExportComparisonsRequest(after_comparison_id=2**63 - 1, follow=True),
        "INVALID_CURSOR",
    ),
    ("GetProgress", pb.GetProgressRequest(batch="a b"), "INVALID_BATCH"),
    ("PullCord", pull(request_id=""), "INVALID_REQUEST_ID"),
    ("PullCord", pull(actor=" "), "INVALID_ACTOR"),
    ("PullCord", pull(actor="x" * 201), "INVALID_ACTOR"),
    ("PullCord", pull(reason=""), "EMPTY_REASON"),
    ("PullCord", pull(reason="x" * 10_001), "TEXT_TOO_LONG"),
    ("ReleaseCord", release(request_id=""), "INVALID_REQUEST_ID"),
    ("ReleaseCord", release(actor=" "), "INVALID_ACTOR"),
    ("ReleaseCord", release(reason=" "), "EMPTY_REASON"),
]

OTHER: list[tuple[str, Message | Callable[[Callers], Message], str, str]] = [
    ("SubmitTasks", submit(request_id="used"), "ALREADY_EXISTS", "REQUEST_ID_REUSED"),
    (
        "SubmitAnswers",
        lambda c: answers(pb.Answer(lease_id=c.open_lease, choice=FIRST), request_id="used"),
        "ALREADY_EXISTS",
        "REQUEST_ID_REUSED",
    ),
    (
        "SubmitAnswers",
        answers(pb.Answer(lease_id="nowhere", choice=FIRST)),
        "NOT_FOUND",
        "LEASE_NOT_FOUND",
    ),
    (
        "SubmitAnswers",
        lambda c: answers(pb.Answer(lease_id=c.open_lease, choice=FIRST), labeler_id="bob"),
        "PERMISSION_DENIED",
        "LEASE_OF_ANOTHER_LABELER",
    ),
    (
        "SubmitAnswers",
        lambda c: answers(pb.Answer(lease_id=c.open_lease, choice=FIRST), labeler_id=""),
        "PERMISSION_DENIED",
        "LEASE_OF_ANOTHER_LABELER",
    ),
    (
        "SubmitAnswers",
        lambda c: answers(pb.Answer(lease_id=c.answered_lease, choice=FIRST)),
        "FAILED_PRECONDITION",
        "LEASE_ALREADY_ANSWERED",
    ),
    ("ReleaseCord", release(), "FAILED_PRECONDITION", "CORD_NOT_PULLED"),
]


def check_refused(callers: Callers, method: str, request: Any, code: str, reason: str) -> None:
    message = request if isinstance(request, Message) else request(callers)
    with pytest.raises(grpc.RpcError) as caught:
        callers.call(method, message)
    error = error_from_rpc(caught.value)
    assert (error.code, error.reason) == (code, reason)
    # It goes on serving, and nothing of the refused request stays.
    progress = callers.labeling.GetProgress(pb.GetProgressRequest(), timeout=TIMEOUT_S)
    assert (progress.task_count, progress.answer_count, progress.lease_count) == (2, 1, 1)


def test_invalid_requests(callers: Callers, subtests: pytest.Subtests) -> None:
    for method, request, reason in INVALID:
        with subtests.test(method=method, reason=reason):
            check_refused(callers, method, request, "INVALID_ARGUMENT", reason)


def test_requests_that_the_state_forbids(callers: Callers, subtests: pytest.Subtests) -> None:
    for method, request, code, reason in OTHER:
        with subtests.test(method=method, reason=reason):
            check_refused(callers, method, request, code, reason)


def test_an_oversized_message_is_refused_and_the_next_one_served(callers: Callers) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        callers.call("SubmitTasks", with_task(document="x" * 5_000_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    callers.call("GetProgress", pb.GetProgressRequest())


def test_bytes_that_are_no_message(callers: Callers) -> None:
    raw = callers.channel.unary_unary("/andon.api.labeling.v1.LabelingService/SubmitTasks")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff\xff\xff", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_expired_lease(callers: Callers) -> None:
    callers.call("SubmitTasks", submit())
    (leased,) = callers.labeling.LeaseTasks(
        lease(labeler_id="bob", lease_duration=Duration(nanos=1000)), timeout=TIMEOUT_S
    ).tasks  # one microsecond is over before the next call arrives
    request = answers(pb.Answer(lease_id=leased.lease_id, choice=FIRST), labeler_id="bob")
    with pytest.raises(grpc.RpcError) as caught:
        callers.call("SubmitAnswers", request)
    assert error_from_rpc(caught.value).reason == "LEASE_EXPIRED"


def test_a_locked_database_is_unavailable_until_it_is_not(callers: Callers, tmp_path: Path) -> None:
    request = on_open(callers, choice=FIRST)
    intruder = sqlite3.connect(tmp_path / "labeling.sqlite3", isolation_level=None)
    intruder.execute("BEGIN EXCLUSIVE")
    for method, message in (("SubmitAnswers", request), ("PullCord", pull()), ("LeaseTasks", lease())):
        with pytest.raises(grpc.RpcError) as caught:
            callers.call(method, message)
        error = error_from_rpc(caught.value)
        assert (error.code, error.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
    callers.call("GetCord", cord_pb2.GetCordRequest())
    intruder.execute("ROLLBACK")
    intruder.close()
    callers.call("SubmitAnswers", request)
    callers.call("PullCord", pull())
    callers.call("ReleaseCord", release())
