"""The typed clients against real servers on loopback with small fakes of the services behind them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.client import batches
from andon.client.channel import ChannelOptions
from andon.client.cord import CordClient
from andon.client.health import Health, check_health
from andon.client.labeling import AnswerDraft, LabelingClient, TaskDraft
from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.reward import RewardClient
from andon.client.trainer import Progress, RunState, StateChanged, TrainerClient
from andon.corpus.records import CandidateRecord
from andon.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)
from andon.modeling.versions import ModelVersion
from andon.rpc.errors import error_to_status

FAST = ChannelOptions(initial_backoff_s=0.01, max_backoff_s=0.02, reconnect_backoff_s=0.1)
REWARD = model_pb2.ModelVersion(name="reward", version=3, weights_sha256="ab")


@contextmanager
def serving(add: Callable[[grpc.Server], None], port: int = 0) -> Iterator[int]:
    """A server with whatever ``add`` puts on it; yields its port."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    add(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=None).wait()


def refuse(context: grpc.ServicerContext, error: Any) -> None:
    context.abort_with_status(rpc_status.to_status(error_to_status(error)))


class FakeReward(reward_grpc.RewardServiceServicer):
    """Scores a summary by its length; remembers what it was asked for."""

    def __init__(self, failures: Sequence[grpc.StatusCode] = ()) -> None:
        self.requests: list[reward_pb2.ScoreRequest] = []
        self._failures = list(failures)

    def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        self.requests.append(request)
        if self._failures:
            context.abort(self._failures.pop(0), "as told")
        return reward_pb2.ScoreResponse(
            items=[
                reward_pb2.ItemScores(
                    summaries=[
                        reward_pb2.SummaryScore(score=len(summary.text), raw_score=1, token_count=2)
                        for summary in item.summaries
                    ]
                )
                for item in request.items
            ],
            model=REWARD,
            normalization=reward_pb2.Normalization(
                method=reward_pb2.NORMALIZATION_METHOD_REFERENCE_ZERO, gain=1, bias=-2
            ),
        )


def test_scores_come_back_typed_and_in_order() -> None:
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(FakeReward(), server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        answer = client.score([("a", ["x", "xyz"]), ([1, 2], ["xy"])])
    assert [[summary.score for summary in item] for item in answer.items] == [[1, 3], [2]]
    assert answer.model == ModelVersion("reward", 3, "ab")
    assert (answer.normalization.method, answer.normalization.bias) == ("reference_zero", -2)


def test_a_long_list_is_answered_by_one_version() -> None:
    fake = FakeReward()
    items = [("d", ["s" * (1 + index % 7)]) for index in range(batches.MAX_ITEMS_PER_CALL + 5)]
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(fake, server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        answer = client.score(items)
    assert [item[0].score for item in answer.items] == [1 + index % 7 for index in range(len(items))]
    assert [len(request.items) for request in fake.requests] == [batches.MAX_ITEMS_PER_CALL, 5]
    # Between two calls the service might have got another model: the second asks for the first one's.
    assert not fake.requests[0].HasField("required_model")
    assert fake.requests[1].required_model == REWARD
    assert len({request.request_id for request in fake.requests}) == 2


def test_unavailable_is_tried_again_with_the_same_request() -> None:
    fake = FakeReward([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE])
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(fake, server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        assert client.score([("a", ["x"])]).items[0][0].score == 1
    assert len(fake.requests) == 3
    assert len({request.request_id for request in fake.requests}) == 1


def test_four_attempts_are_enough() -> None:
    fake = FakeReward([grpc.StatusCode.UNAVAILABLE] * 9)
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(fake, server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=FAST) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.score([("a", ["x"])])
    assert len(fake.requests) == 4
    assert caught.value.metadata["service"] == "RewardService"
    assert caught.value.metadata["target"] == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED]
)
def test_nothing_else_is_tried_again(code: grpc.StatusCode) -> None:
    fake = FakeReward([code])
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(fake, server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=FAST) as client,
        pytest.raises(Exception, match="as told"),
    ):
        client.score([("a", ["x"])])
    assert len(fake.requests) == 1


def test_a_message_over_the_limit_is_refused_without_harm() -> None:
    fake = FakeReward()
    options = ChannelOptions(max_message_bytes=10_000)
    with (
        serving(lambda server: reward_grpc.add_RewardServiceServicer_to_server(fake, server)) as port,
        RewardClient(f"127.0.0.1:{port}", options=options) as client,
    ):
        with pytest.raises(ResourceExhaustedError):
            client.score([("a" * 20_000, ["x"])])
        assert client.score([("a", ["x"])]).items[0][0].score == 1


def test_a_dead_peer_is_named() -> None:
    with serving(lambda server: None) as port:
        target = f"127.0.0.1:{port}"
    with (
        RewardClient(target, options=FAST) as client,
        pytest.raises(UnavailableError, match=f"RewardService at {target} cannot be reached"),
    ):
        client.score([("a", ["x"])], timeout_s=20)


def test_waiting_for_a_peer_ends_at_the_deadline() -> None:
    with serving(lambda server: None) as port:
        target = f"127.0.0.1:{port}"
    with RewardClient(target, options=FAST) as client, pytest.raises(DeadlineExceededError):
        client.score([("a", ["x"])], timeout_s=0.3, wait_for_ready=True)


def test_a_replica_that_calls_itself_unhealthy_gets_no_calls() -> None:
    fake, healthy = FakeReward(), health.HealthServicer()
    healthy.set("andon.api.reward.v1.RewardService", health_pb2.HealthCheckResponse.NOT_SERVING)

    def add(server: grpc.Server) -> None:
        reward_grpc.add_RewardServiceServicer_to_server(fake, server)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)

    with serving(add) as port, RewardClient(f"127.0.0.1:{port}", options=FAST) as client:
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            client.score([("a", ["x"])], timeout_s=1)
        assert fake.requests == []
        healthy.set("andon.api.reward.v1.RewardService", health_pb2.HealthCheckResponse.SERVING)
        assert client.score([("a", ["x"])], timeout_s=20, wait_for_ready=True).items


def test_health_is_told_apart() -> None:
    healthy = health.HealthServicer()
    with serving(lambda server: health_pb2_grpc.add_HealthServicer_to_server(healthy, server)) as port:
        target = f"127.0.0.1:{port}"
        assert check_health(target, timeout_s=10) is Health.SERVING
        healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert check_health(target, timeout_s=10) is Health.NOT_SERVING
    assert check_health(target, timeout_s=1) is Health.UNREACHABLE


class FakePolicy(policy_grpc.PolicyServiceServicer):
    """Answers with fixed samples and keeps what it received."""

    def __init__(self) -> None:
        self.sample_requests: list[policy_pb2.SampleRequest] = []
        self.weights: list[policy_pb2.UpdateWeightsRequest] = []

    def Sample(
        self, request: policy_pb2.SampleRequest, context: grpc.ServicerContext
    ) -> policy_pb2.SampleResponse:
        self.sample_requests.append(request)
        if not request.prompts:
            refuse(
                context,
                FailedPreconditionError("no model", reason="MODEL_NOT_LOADED", wanted="policy/1"),
            )
        version = model_pb2.ModelVersion(name="policy", version=1)
        drawn = policy_pb2.Sample(
            token_ids=[5, 6],
            text="hi",
            logprobs=[-0.5, -0.25],
            finish_reason=policy_pb2.FINISH_REASON_EOS,
            model=version,
        )
        result = policy_pb2.PromptSamples(prompt_token_ids=[1, 2, 3], samples=[drawn])
        return policy_pb2.SampleResponse(
            results=[result] * len(request.prompts), model=version, seed=request.parameters.seed
        )

    def UpdateWeights(
        self, request_iterator: Iterator[policy_pb2.UpdateWeightsRequest], context: grpc.ServicerContext
    ) -> policy_pb2.UpdateWeightsResponse:
        self.weights = list(request_iterator)
        return policy_pb2.UpdateWeightsResponse(model=self.weights[0].header.model)


@pytest.fixture
def fake_policy() -> Iterator[tuple[FakePolicy, PolicyClient]]:
    fake = FakePolicy()
    with (
        serving(lambda server: policy_grpc.add_PolicyServiceServicer_to_server(fake, server)) as port,
        PolicyClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        yield fake, client


def test_samples_carry_what_reinforcement_learning_needs(
    fake_policy: tuple[FakePolicy, PolicyClient],
) -> None:
    fake, client = fake_policy
    answer = client.sample(
        ["a document", [7, 8]], SamplingParameters(max_new_tokens=4, temperature=0, seed=9)
    )
    sample = answer.results[1].samples[0]
    assert sample.token_ids == (5, 6)
    assert sample.logprobs == (-0.5, -0.25)
    assert (sample.text, sample.finish_reason, str(sample.model)) == ("hi", "eos", "policy/1")
    assert (answer.seed, answer.results[0].prompt_token_ids) == (9, (1, 2, 3))
    request = fake.sample_requests[0]
    assert request.prompts[0].text == "a document"
    assert list(request.prompts[1].token_ids.ids) == [7, 8]
    # Zero is a temperature, not an absent one.
    assert request.parameters.HasField("temperature")
    assert request.parameters.temperature == 0
    assert not request.HasField("required_model")


def test_an_error_keeps_reason_and_metadata(fake_policy: tuple[FakePolicy, PolicyClient]) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        fake_policy[1].sample([], SamplingParameters(max_new_tokens=1))
    assert caught.value.reason == "MODEL_NOT_LOADED"
    assert caught.value.metadata == {"wanted": "policy/1"}


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    process_id: int
    descriptor: int
    name: str


@dataclass(frozen=True)
class Header:
    model: ModelVersion
    tensors: tuple[Spec, ...]
    size_bytes: int
    checksum: str = "ef"
    base: ModelVersion | None = None
    memory: Memory | None = None


@dataclass(frozen=True)
class Chunk:
    offset_bytes: int
    data: bytes


def test_weights_go_out_as_header_and_chunks(fake_policy: tuple[FakePolicy, PolicyClient]) -> None:
    fake, client = fake_policy
    header = Header(ModelVersion("policy", 4, "cd"), (Spec("w", "float32", (1, 2)),), 8)
    answer = client.update_weights(header, [Chunk(0, b"abcd"), Chunk(4, b"efgh")])
    assert answer.model == ModelVersion("policy", 4, "cd")
    assert list(fake.weights[0].header.tensors[0].shape) == [1, 2]
    assert b"".join(message.chunk.data for message in fake.weights[1:]) == b"abcdefgh"
    assert [message.chunk.offset_bytes for message in fake.weights[1:]] == [0, 4]
    assert fake.weights[0].header.checksum == "ef"
    assert not fake.weights[0].header.HasField("base")
    assert not fake.weights[0].header.HasField("memory")


def test_a_header_says_how_weights_come(fake_policy: tuple[FakePolicy, PolicyClient]) -> None:
    fake, client = fake_policy
    model, base = ModelVersion("policy", 4, "cd"), ModelVersion("policy", 3, "ab")
    client.update_weights(Header(model, (), 8, base=base), [])
    delta = fake.weights[0].header
    client.update_weights(Header(model, (), 8, memory=Memory(17, 5, "andon-1")), [])
    shared = fake.weights[0].header
    assert (delta.base.name, delta.base.version, delta.base.weights_sha256) == ("policy", 3, "ab")
    assert (shared.memory.process_id, shared.memory.descriptor, shared.memory.name) == (17, 5, "andon-1")


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


class FakeTrainer(trainer_grpc.TrainerServiceServicer):
    """A run of five events, of which each stream sends at most two before the process seems to die."""

    def __init__(self) -> None:
        self.watches: list[int] = []
        self.configs: list[dict[str, Any]] = []

    def GetRun(
        self, request: trainer_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.GetRunResponse:
        return trainer_pb2.GetRunResponse(run=trainer_pb2.Run(run_id=request.run_id))

    def StartRun(
        self, request: trainer_pb2.StartRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.StartRunResponse:
        run = trainer_pb2.Run(run_id="r", stage=request.stage, state=trainer_pb2.RUN_STATE_PENDING)
        run.config.CopyFrom(request.config)
        return trainer_pb2.StartRunResponse(run=run)

    def ListRuns(
        self, request: trainer_pb2.ListRunsRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.ListRunsResponse:
        start = int(request.page_token or 0)
        runs = [trainer_pb2.Run(run_id=str(number)) for number in range(start, min(start + 2, 5))]
        return trainer_pb2.ListRunsResponse(
            runs=runs, next_page_token=str(start + 2) if start + 2 < 5 else ""
        )

    def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[trainer_pb2.WatchRunResponse]:
        self.watches.append(request.after_sequence)
        for sent, sequence in enumerate(range(request.after_sequence + 1, 6)):
            if sent == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            event = trainer_pb2.RunEvent(sequence=sequence)
            if sequence == 5:
                event.state_changed.state = trainer_pb2.RUN_STATE_SUCCEEDED
            else:
                event.progress.step = sequence
                event.progress.metrics["loss"] = 1 / sequence
            yield trainer_pb2.WatchRunResponse(event=event)


@pytest.fixture
def fake_trainer() -> Iterator[tuple[FakeTrainer, TrainerClient]]:
    fake = FakeTrainer()
    with (
        serving(lambda server: trainer_grpc.add_TrainerServiceServicer_to_server(fake, server)) as port,
        TrainerClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        yield fake, client


def test_a_watch_goes_on_after_the_last_event_received(
    fake_trainer: tuple[FakeTrainer, TrainerClient],
) -> None:
    fake, client = fake_trainer
    events = list(client.watch_run("r"))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].event == StateChanged(state=RunState.SUCCEEDED, message="")
    first = events[0].event
    assert isinstance(first, Progress)
    assert first.metrics == {"loss": 1.0}
    assert fake.watches == [0, 2, 4]


def test_a_watch_gives_up_when_the_trainer_stays_away() -> None:
    with serving(lambda server: None) as port:
        target = f"127.0.0.1:{port}"
    with TrainerClient(target, options=FAST) as client, pytest.raises(UnavailableError):
        list(client.watch_run("r", reconnect_s=0.5))


def test_whole_numbers_of_a_configuration_come_back_whole(
    fake_trainer: tuple[FakeTrainer, TrainerClient],
) -> None:
    config = {"layers": 2, "rate": 0.5, "nested": {"sizes": [1, 2.5]}, "name": "x", "none": None, "on": True}
    run = fake_trainer[1].start_run("reward_model", config)
    assert run.config == config
    assert isinstance(run.config["layers"], int)
    assert (run.stage, run.state) == ("reward_model", RunState.PENDING)


def test_all_pages_are_read(fake_trainer: tuple[FakeTrainer, TrainerClient]) -> None:
    assert [run.run_id for run in fake_trainer[1].list(page_size=2)] == ["0", "1", "2", "3", "4"]


class FakeCord(cord_grpc.CordServiceServicer):
    """Sends two states and then waits for the watcher to leave."""

    def __init__(self) -> None:
        self.watcher_left = threading.Event()

    def WatchCord(
        self, request: cord_pb2.WatchCordRequest, context: grpc.ServicerContext
    ) -> Iterator[cord_pb2.WatchCordResponse]:
        context.add_callback(self.watcher_left.set)
        yield cord_pb2.WatchCordResponse(cord=cord_pb2.Cord(state=cord_pb2.CORD_STATE_RELEASED))
        pulled = cord_pb2.Cord(state=cord_pb2.CORD_STATE_PULLED, event_number=1, actor="me", reason="bad")
        pulled.event_time.FromSeconds(1_700_000_000)
        yield cord_pb2.WatchCordResponse(cord=pulled)
        self.watcher_left.wait()


def test_leaving_a_watch_ends_its_stream() -> None:
    fake = FakeCord()
    with (
        serving(lambda server: cord_grpc.add_CordServiceServicer_to_server(fake, server)) as port,
        CordClient(f"127.0.0.1:{port}", options=FAST) as client,
    ):
        watch = client.watch()
        untouched, pulled = next(watch), next(watch)
        watch.close()
        assert fake.watcher_left.wait(20)
    assert (untouched.pulled, untouched.event_time) == (False, None)
    assert (pulled.pulled, pulled.actor, pulled.event_number) == (True, "me", 1)
    assert pulled.event_time is not None
    assert pulled.event_time.timestamp() == 1_700_000_000
