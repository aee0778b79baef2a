"""LabelingService over gRPC: the whole way of a task, exports that follow, drain, metrics."""

import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.rpc.server import RunningServer

TIMEOUT_S = 30


@pytest.fixture
def running(start_labeling: Callable[..., RunningServer]) -> RunningServer:
    return start_labeling()


@pytest.fixture
def stub(running: RunningServer, connect: Callable[[RunningServer], grpc.Channel]) -> Any:
    return labeling_grpc.LabelingServiceStub(connect(running))


def task(name: str, *, num_candidates: int = 2, overlap: int = 0) -> labeling_pb2.Task:
    return labeling_pb2.Task(
        document=f"document {name}",
        document_id=name,
        candidates=[labeling_pb2.Candidate(text=f"{name}/{index}") for index in range(num_candidates)],
        overlap_count=overlap,
    )


def submit(stub: Any, *tasks: labeling_pb2.Task, request_id: str = "s", batch: str = "b") -> list[str]:
    request = labeling_pb2.SubmitTasksRequest(request_id=request_id, batch=batch, tasks=tasks)
    return list(stub.SubmitTasks(request, timeout=TIMEOUT_S).task_ids)


def lease(stub: Any, labeler: str, *, max_tasks: int = 100) -> list[labeling_pb2.LeasedTask]:
    request = labeling_pb2.LeaseTasksRequest(labeler_id=labeler, max_tasks=max_tasks)
    return list(stub.LeaseTasks(request, timeout=TIMEOUT_S).tasks)


def choose_first(
    stub: Any, labeler: str, leased: list[labeling_pb2.LeasedTask], *, request_id: str
) -> list[int]:
    request = labeling_pb2.SubmitAnswersRequest(
        request_id=request_id,
        labeler_id=labeler,
        answers=[
            labeling_pb2.Answer(lease_id=item.lease_id, choice=labeling_pb2.Choice(best_index=0))
            for item in leased
        ],
    )
    return list(stub.SubmitAnswers(request, timeout=TIMEOUT_S).comparison_ids)


def export(stub: Any, **fields: Any) -> Iterator[labeling_pb2.Comparison]:
    request = labeling_pb2.ExportComparisonsRequest(**fields)
    for response in stub.ExportComparisons(request, timeout=TIMEOUT_S):
        yield response.comparison


def test_the_whole_way_of_a_task(stub: Any) -> None:
    version = model_pb2.ModelVersion(name="policy", version=12, weights_sha256="a" * 64)
    submitted = labeling_pb2.Task(
        document="Le café était fermé. 🙂",
        document_id="post/1",
        candidates=[
            labeling_pb2.Candidate(text="zero", policy_version=version, source="policy"),
            labeling_pb2.Candidate(text="one", source="reference"),
            labeling_pb2.Candidate(text="two"),
        ],
    )
    (task_id,) = submit(stub, submitted, batch="week-1")
    (leased,) = lease(stub, "ann@example.org")
    assert leased.document == submitted.document
    assert sorted(leased.candidates) == ["one", "two", "zero"]
    places = {text: place for place, text in enumerate(leased.candidates)}
    answer = labeling_pb2.Answer(
        lease_id=leased.lease_id,
        ranking=labeling_pb2.Ranking(
            tiers=[
                labeling_pb2.Tier(candidate_indices=[places["one"]]),
                labeling_pb2.Tier(candidate_indices=[places["two"], places["zero"]]),
            ]
        ),
        confidence=9,
        note="clear",
        answer_duration=Duration(seconds=3, nanos=500_000_000),
    )
    request = labeling_pb2.SubmitAnswersRequest(
        request_id="a", labeler_id="ann@example.org", answers=[answer]
    )
    assert list(stub.SubmitAnswers(request, timeout=TIMEOUT_S).comparison_ids) == [1]

    (comparison,) = export(stub, batch="week-1")
    assert comparison.task_id == task_id
    assert list(comparison.candidates) == list(submitted.candidates)
    assert not comparison.candidates[1].HasField("policy_version")
    assert [list(tier.candidate_indices) for tier in comparison.ranking.tiers] == [[1], [0, 2]]
    assert [comparison.candidates[index].text for index in comparison.shown_order] == list(leased.candidates)
    assert (comparison.document_id, comparison.batch, comparison.labeler_id) == (
        "post/1",
        "week-1",
        "ann@example.org",
    )
    assert (comparison.confidence, comparison.note) == (9, "clear")
    assert comparison.answer_duration.ToMilliseconds() == 3500
    assert comparison.lease_time.ToNanoseconds() <= comparison.answer_time.ToNanoseconds()
    assert comparison.answer_time.ToNanoseconds() < leased.expire_time.ToNanoseconds()


def test_an_untimed_choice_says_no_more_than_it_knows(stub: Any) -> None:
    submit(stub, task("x"))
    choose_first(stub, "ann", lease(stub, "ann"), request_id="a")
    (comparison,) = export(stub)
    assert comparison.WhichOneof("decision") == "choice"
    assert comparison.choice.best_index == comparison.shown_order[0]
    assert comparison.confidence == 0
    assert not comparison.HasField("answer_duration")


def test_progress(stub: Any) -> None:
    submit(stub, task("x", overlap=3), task("y"))
    leased = lease(stub, "ann")
    choose_first(stub, "ann", leased[:1], request_id="a")
    progress = stub.GetProgress(labeling_pb2.GetProgressRequest(batch="b"), timeout=TIMEOUT_S)
    assert progress == labeling_pb2.GetProgressResponse(
        task_count=2, slot_count=4, answer_count=1, lease_count=1, labeler_count=1
    )


def test_an_export_continues_after_a_cursor_over_several_pages(
    start_labeling: Callable[..., RunningServer], connect: Callable[[RunningServer], grpc.Channel]
) -> None:
    stub = labeling_grpc.LabelingServiceStub(connect(start_labeling(export_page_comparisons=3)))
    submit(stub, *(task(str(number)) for number in range(10)))
    choose_first(stub, "ann", lease(stub, "ann"), request_id="a")
    assert [comparison.comparison_id for comparison in export(stub)] == list(range(1, 11))
    assert [c.comparison_id for c in export(stub, after_comparison_id=7)] == [8, 9, 10]
    assert list(export(stub, after_comparison_id=10)) == []


def test_a_follower_hears_of_new_answers_without_polling(
    start_labeling: Callable[..., RunningServer], connect: Callable[[RunningServer], grpc.Channel]
) -> None:
    stub = labeling_grpc.LabelingServiceStub(connect(start_labeling(export_poll_s=3600)))
    submit(stub, *(task(str(number)) for number in range(4)))
    leased = lease(stub, "ann")
    choose_first(stub, "ann", leased[:1], request_id="a1")
    following = export(stub, follow=True)
    assert next(following).comparison_id == 1
    choose_first(stub, "ann", leased[1:3], request_id="a2")
    assert [next(following).comparison_id, next(following).comparison_id] == [2, 3]
    choose_first(stub, "ann", leased[3:], request_id="a3")
    assert next(following).comparison_id == 4


def test_a_drain_lets_followers_go_and_a_restart_knows_everything(
    start_labeling: Callable[..., RunningServer],
    connect: Callable[[RunningServer], grpc.Channel],
    server_loop: Any,
) -> None:
    import asyncio

    first = start_labeling()
    stub = labeling_grpc.LabelingServiceStub(connect(first))
    submit(stub, task("x"), task("y"))
    leased = lease(stub, "ann")
    ids = choose_first(stub, "ann", leased[:1], request_id="a")
    following = export(stub, follow=True)
    assert next(following).comparison_id == 1
    asyncio.run_coroutine_threadsafe(first.stop(grace_s=30), server_loop).result(TIMEOUT_S)
    with pytest.raises(grpc.RpcError) as ended:
        next(following)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    again = labeling_grpc.LabelingServiceStub(connect(start_labeling()))
    assert choose_first(again, "ann", leased[:1], request_id="a") == ids
    assert choose_first(again, "ann", leased[1:], request_id="b") == [2]
    assert [comparison.comparison_id for comparison in export(again, after_comparison_id=1)] == [2]


def test_health_and_metrics(
    running: RunningServer, stub: Any, connect: Callable[[RunningServer], grpc.Channel]
) -> None:
    submit(stub, task("x"))
    submit(stub, task("x"))
    choose_first(stub, "ann", lease(stub, "ann"), request_id="a")
    list(export(stub))
    health = health_pb2_grpc.HealthStub(connect(running))
    for name in ("", "andon.api.labeling.v1.LabelingService", "andon.api.labeling.v1.CordService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics") as page:
        lines = page.read().decode().splitlines()
    for line in (
        "andon_labeling_tasks_submitted_total 1.0",
        'andon_labeling_requests_repeated_total{method="SubmitTasks"} 1.0',
        'andon_labeling_requests_repeated_total{method="SubmitAnswers"} 0.0',
        "andon_labeling_leases_granted_total 1.0",
        'andon_labeling_answers_recorded_total{decision="choice"} 1.0',
        "andon_labeling_comparisons_exported_total 1.0",
        "andon_labeling_database_failures_total 0.0",
        "andon_cord_pulled 0.0",
    ):
        assert line in lines


def test_concurrent_labelers_over_the_network_fill_every_slot_once(stub: Any) -> None:
    submit(stub, *(task(str(number), overlap=2) for number in range(50)))

    def label(labeler: str) -> None:
        part = 0
        while leased := lease(stub, labeler, max_tasks=7):
            choose_first(stub, labeler, leased, request_id=f"{labeler}-{part}")
            part += 1

    threads = [threading.Thread(target=label, args=(f"labeler-{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = list(export(stub))
    assert [comparison.comparison_id for comparison in recorded] == list(range(1, 101))
    assert len({(comparison.task_id, comparison.labeler_id) for comparison in recorded}) == 100
