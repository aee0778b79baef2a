"""A running policy service as tests call it, whatever writes its samples."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from andon.api.common.v1.sequence_pb2 import Prompt, TokenIds
from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.api.policy.v1 import policy_service_pb2_grpc as pb_grpc
from tests.inference_servers import Answer, FakeServer, Received

TIMEOUT_S = 60
POSITIONS = 64  # of the models
PATHS = {"tgi": "/generate", "openai": "/v1/completions"}


class Stand:
    """A running policy service."""

    def __init__(self, stub: pb_grpc.PolicyServiceStub, registry: CollectorRegistry) -> None:
        self.stub = stub
        self.registry = registry

    def sample(self, *prompts: list[int] | str, **fields: Any) -> pb.SampleResponse:
        return self.stub.Sample(request_of(*prompts, **fields), timeout=TIMEOUT_S)

    def info(self) -> pb.GetModelInfoResponse:
        return self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def request_of(*prompts: list[int] | str, **fields: Any) -> pb.SampleRequest:
    required = fields.pop("required_model", None)
    return pb.SampleRequest(
        prompts=[
            Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=TokenIds(ids=prompt))
            for prompt in prompts
        ],
        parameters=pb.SamplingParameters(**{"max_new_tokens": 8, **fields}),
        required_model=required,
    )


def tokens_of(response: pb.SampleResponse) -> list[list[list[int]]]:
    return [[list(sample.token_ids) for sample in result.samples] for result in response.results]


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, Any]:
    """The code, the reason and the status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info, status


def replace_answers(server: FakeServer, make: Callable[[Received, Answer], Answer]) -> None:
    """From now on change what is written; what is said about the model stays."""
    paths = set(PATHS.values())
    server.change = lambda request, answer: make(request, answer) if request.path in paths else answer
