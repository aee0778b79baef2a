"""ImportComparisons over gRPC on both engines: every value comes back as it went in, whatever its
characters; a stream that is repeated or broken off records each row once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.rpc.server import RunningServer
from benchmarks import labeling_volume
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService

TIMEOUT_S = 60
ODD_TEXTS = (
    "plain",
    'it\'s "quoted" with \\ and \\n and \\u0041',
    "two\nlines\r\nand\ttabs \x01\x1f\x7f",
    "Zürich 漢字 🙂 e\u0301 \u2028 \u202e \ufffd",
    "NULL",
    "{1,2}",
    '{"a": [null, true]}',
    "'; DROP TABLE comparisons; --",
    " %s :rows $1 ",
    "",
)


@pytest.fixture
def stub(
    serve: Callable[..., RunningServer],
    connect: Callable[..., grpc.Channel],
    database_url: str,
    tokens_file: Path,
) -> Any:
    config = LabelingConfig(
        port=0, metrics_port=0, web_port=0, tokens_file=tokens_file, database=database_url
    )
    return labeling_grpc.LabelingServiceStub(
        connect(serve(LabelingService(config, CollectorRegistry()), config), "service")
    )


def bring_in(stub: Any, *messages: list[pb.ImportedComparison]) -> pb.ImportComparisonsResponse:
    def requests() -> Iterator[pb.ImportComparisonsRequest]:
        for number, rows in enumerate(messages):
            yield pb.ImportComparisonsRequest(
                request_id=f"message-{number}", project="default", batch="b", comparisons=rows
            )

    return stub.ImportComparisons(requests(), timeout=TIMEOUT_S)


def bring_out(stub: Any) -> list[pb.Comparison]:
    request = pb.ExportComparisonsRequest(batch="b")
    return [answer.comparison for answer in stub.ExportComparisons(request, timeout=TIMEOUT_S)]


def odd_row(number: int, text: str) -> pb.ImportedComparison:
    return pb.ImportedComparison(
        row=number,
        document_id=f"{number} {text}",
        document=text,
        candidates=[
            pb.Candidate(
                text=text,
                policy_version=model_pb2.ModelVersion(
                    name=f"f{text}", version=number, weights_sha256="a" * 64
                ),
            ),
            pb.Candidate(text=f"other {text}", source=text[:64]),
            pb.Candidate(text=f"third {text}"),
        ],
        ranking=pb.Ranking(tiers=[pb.Tier(candidate_indices=[2]), pb.Tier(candidate_indices=[0, 1])]),
        confidence=number % 10,
        note=text,
        labeler_id="somebody, known as 'x'",
        ratings=[
            pb.Rating(accuracy=1, flags=[pb.FLAG_MADE_UP], naive_reading=text),
            pb.Rating(overall=7, coherence=2),
            pb.Rating(flags=[pb.FLAG_HARMFUL, pb.FLAG_PERSONAL_DATA]),
        ],
        answer_time=Timestamp(seconds=1_600_000_000 + number, nanos=123_456_000),
    )


def plain_row(number: int, *, document: str | None = None, labeler: str = "a") -> pb.ImportedComparison:
    name = document if document is not None else f"document {number}"
    return pb.ImportedComparison(
        row=number,
        document=name,
        candidates=[pb.Candidate(text=f"{name}/{index}") for index in range(2)],
        choice=pb.Choice(best_index=number % 2),
        labeler_id=labeler,
    )


def test_every_value_comes_back_as_it_went_in(stub: Any) -> None:
    rows = [odd_row(number, text) for number, text in enumerate(ODD_TEXTS)]
    assert bring_in(stub, rows).recorded_count == len(rows)
    found = bring_out(stub)
    assert [one.document for one in found] == list(ODD_TEXTS)
    for row, one in zip(rows, found, strict=True):
        for name in ("document_id", "document", "ranking", "confidence", "note", "labeler_id", "answer_time"):
            assert getattr(one, name) == getattr(row, name), name
        assert list(one.candidates) == list(row.candidates)
        assert list(one.ratings) == list(row.ratings)
        assert list(one.shown_order) == [0, 1, 2]


def test_rows_about_the_same_texts_are_answers_to_one_task(stub: Any) -> None:
    first = [plain_row(0, document="x", labeler="a"), plain_row(1, document="x", labeler="b")]
    second = [plain_row(2, document="y", labeler="a"), plain_row(3, document="x", labeler="a")]
    answer = bring_in(stub, first, second)
    assert (answer.recorded_count, answer.task_count) == (4, 2)
    found = [(one.document, one.labeler_id, one.round) for one in bring_out(stub)]
    assert found == [("x", "a", 0), ("x", "b", 0), ("y", "a", 0), ("x", "a", 1)]
    assert len({one.task_id for one in bring_out(stub)}) == 2


def test_a_repeated_stream_records_nothing_twice(stub: Any) -> None:
    messages = [[plain_row(3 * number + place) for place in range(3)] for number in range(4)]
    assert bring_in(stub, *messages[:2]).recorded_count == 6
    answer = bring_in(stub, *messages)
    assert (answer.recorded_count, answer.repeated_count) == (6, 6)
    assert [one.document for one in bring_out(stub)] == [f"document {number}" for number in range(12)]


def test_messages_before_a_refused_one_stay_recorded_in_their_order(stub: Any) -> None:
    good = [[plain_row(2 * number + place) for place in range(2)] for number in range(5)]
    too_many = [plain_row(number) for number in range(100, 1_101)]
    with pytest.raises(grpc.RpcError) as refused:
        bring_in(stub, *good, too_many, [plain_row(5_000)])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [one.document for one in bring_out(stub)] == [f"document {number}" for number in range(10)]


def test_a_row_that_breaks_a_rule_is_reported_and_the_others_are_recorded(stub: Any) -> None:
    no_decision = plain_row(7)
    no_decision.ClearField("choice")
    nul = plain_row(8, document="a\x00b")
    answer = bring_in(stub, [plain_row(6), no_decision, nul, plain_row(9)])
    assert (answer.recorded_count, answer.refused_count) == (2, 2)
    assert [(one.row, one.reason) for one in answer.refused] == [(7, "INVALID_ANSWER"), (8, "INVALID_TEXT")]


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_the_benchmark_of_volume_counts_every_row_both_ways(
    engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "postgresql":
        request.getfixturevalue("postgres_server")  # skips or fails where PostgreSQL is not installed
    ways = labeling_volume.measure(engine, 2_000, answers_per_task=3)
    assert [(row["way"], row["comparisons"]) for row in ways] == [("import", 2_000), ("export", 2_000)]
