"""The labeling client against a small fake on loopback: tasks, answers, an export that breaks."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.client.labeling import AnswerDraft, LabelingClient, TaskDraft
from andon.corpus.records import CandidateRecord
from tests.client_servers import FAST, serving


@dataclass
class FakeLabeling(labeling_grpc.LabelingServiceServicer):
    """Keeps tasks and answers; its export breaks after every third comparison."""

    submissions: list[labeling_pb2.SubmitTasksRequest] = field(default_factory=list)
    answers: list[labeling_pb2.SubmitAnswersRequest] = field(default_factory=list)
    exports: list[int] = field(default_factory=list)
    recorded: int = 7

    def SubmitTasks(
        self, request: labeling_pb2.SubmitTasksRequest, context: grpc.ServicerContext
    ) -> labeling_pb2.SubmitTasksResponse:
        self.submissions.append(request)
        return labeling_pb2.SubmitTasksResponse(task_ids=[task.document_id for task in request.tasks])

    def SubmitAnswers(
        self, request: labeling_pb2.SubmitAnswersRequest, context: grpc.ServicerContext
    ) -> labeling_pb2.SubmitAnswersResponse:
        self.answers.append(request)
        return labeling_pb2.SubmitAnswersResponse(comparison_ids=range(1, 1 + len(request.answers)))

    def ExportComparisons(
        self, request: labeling_pb2.ExportComparisonsRequest, context: grpc.ServicerContext
    ) -> Iterator[labeling_pb2.ExportComparisonsResponse]:
        self.exports.append(request.after_comparison_id)
        for sent, number in enumerate(range(request.after_comparison_id + 1, self.recorded + 1)):
            if sent == 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            comparison = labeling_pb2.Comparison(
                comparison_id=number,
                document="d",
                candidates=[labeling_pb2.Candidate(text=text) for text in "abc"],
            )
            if number % 2:
                comparison.choice.best_index = 1
            else:
                comparison.ranking.tiers.add(candidate_indices=[2])
                comparison.ranking.tiers.add(candidate_indices=[0, 1])
            yield labeling_pb2.ExportComparisonsResponse(comparison=comparison)


@pytest.fixture
def fake_labeling() -> Iterator[tuple[FakeLabeling, LabelingClient]]:
    fake = FakeLabeling()
    with (
        serving(lambda server: labeling_grpc.add_LabelingServiceServicer_to_server(fake, server)) as port,
        LabelingClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        yield fake, client


def test_an_export_goes_on_after_the_last_comparison_received(
    fake_labeling: tuple[FakeLabeling, LabelingClient],
) -> None:
    fake, client = fake_labeling
    records = list(client.export_comparisons(batch="b"))
    assert [record.comparison_id for record in records] == [str(number) for number in range(1, 8)]
    assert fake.exports == [0, 3, 6]


def test_decisions_become_tiers(fake_labeling: tuple[FakeLabeling, LabelingClient]) -> None:
    first, second = list(fake_labeling[1].export_comparisons())[:2]
    assert (first.tiers, first.only_best_known) == (((1,), (0, 2)), True)
    assert (second.tiers, second.only_best_known) == (((2,), (0, 1)), False)
    assert second.untied_pairs() == [(2, 0), (2, 1)]


def test_many_tasks_are_submitted_in_parts_that_can_be_repeated(
    fake_labeling: tuple[FakeLabeling, LabelingClient],
) -> None:
    fake, client = fake_labeling
    candidates = (CandidateRecord(text="x", policy_version="sft/2"), CandidateRecord(text="y"))
    drafts = [
        TaskDraft(document="d", candidates=candidates, document_id=str(number)) for number in range(1001)
    ]
    assert client.submit_tasks(drafts, batch="b", request_id="r") == [str(n) for n in range(1001)]
    assert [len(request.tasks) for request in fake.submissions] == [1000, 1]
    client.submit_tasks(drafts, batch="b", request_id="r")
    ids = [request.request_id for request in fake.submissions]
    assert ids[0] != ids[1]
    assert ids[:2] == ids[2:]
    sent = fake.submissions[0].tasks[0].candidates
    assert (sent[0].policy_version.name, sent[0].policy_version.version) == ("sft", 2)
    assert not sent[1].HasField("policy_version")


def test_an_answer_is_a_choice_or_a_ranking(fake_labeling: tuple[FakeLabeling, LabelingClient]) -> None:
    fake, client = fake_labeling
    drafts = [AnswerDraft(lease_id="1", best_index=0), AnswerDraft(lease_id="2", tiers=((1,), (0,)))]
    assert client.submit_answers("me", drafts) == [1, 2]
    choice, ranking = fake.answers[0].answers
    assert (choice.WhichOneof("decision"), choice.choice.best_index) == ("choice", 0)
    assert [list(tier.candidate_indices) for tier in ranking.ranking.tiers] == [[1], [0]]
    with pytest.raises(ValueError, match="either"):
        client.submit_answers("me", [AnswerDraft(lease_id="3")])
