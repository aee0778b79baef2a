"""What every typed client does, shown by the reward's: one version, retries, limits, dead peers, health."""

from collections.abc import Sequence

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from andon.api.common.v1 import model_pb2
from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.client import batches
from andon.client.channel import ChannelOptions
from andon.client.health import Health, check_health
from andon.client.reward import RewardClient
from andon.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from andon.modeling.versions import ModelVersion
from tests.client_servers import FAST, serving

REWARD = model_pb2.ModelVersion(name="reward", version=3, weights_sha256="ab")


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
