"""The policy's client against a small fake on loopback: samples, errors, weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from andon.api.common.v1 import model_pb2
from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from andon.client.policy import PolicyClient, SamplingParameters
from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion
from andon.rpc.errors import error_to_status
from tests.client_servers import FAST, serving


def refuse(context: grpc.ServicerContext, error: Any) -> None:
    context.abort_with_status(rpc_status.to_status(error_to_status(error)))


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
