"""A running policy service as tests call it, whatever writes its samples, and a store with its models."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from andon.api.common.v1 import model_pb2
from andon.api.common.v1.sequence_pb2 import Prompt, TokenIds
from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.api.policy.v1 import policy_service_pb2_grpc as pb_grpc
from andon.modeling.loading import new_causal_lm, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from tests.inference_servers import Answer, FakeServer, Received
from tests.rpc_errors import reason_of

TIMEOUT_S = 60
POSITIONS = 64  # of the models
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.4,
}
PATHS = {"tgi": "/generate", "openai": "/v1/completions"}


def make_codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)], max_document_tokens=20)


def make_store(
    folder: Path, codec: TextCodec, architectures: Sequence[Mapping[str, Any]], *, family: str = "policy"
) -> ModelStore:
    """A store with policy/1, policy/2 and so on, of these architectures and different weights."""
    torch.set_num_threads(1)
    models = ModelStore(folder)
    for seed, architecture in enumerate(architectures, 1):
        model = new_causal_lm(architecture, codec, seed=seed)
        models.publish(
            family,
            lambda folder, model=model: save_model(model, codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
    return models


class Stand:
    """A running policy service."""

    def __init__(self, stub: pb_grpc.PolicyServiceStub, registry: CollectorRegistry) -> None:
        self.stub = stub
        self.registry = registry

    def sample(self, *prompts: list[int] | str, **fields: Any) -> pb.SampleResponse:
        return self.stub.Sample(request_of(*prompts, **fields), timeout=TIMEOUT_S)

    def info(self) -> pb.GetModelInfoResponse:
        return self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S)

    def version(self) -> model_pb2.ModelVersion:
        return self.info().info.model

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def serve_policy(serve: Callable[..., Any], connect: Callable[..., grpc.Channel], **fields: Any) -> Stand:
    """Starts a policy service of this configuration; ``serve`` and ``connect`` are the fixtures."""
    config = PolicyConfig(**{"port": 0, "metrics_port": 0, **fields})
    registry = CollectorRegistry()
    channel = connect(serve(PolicyService(config, registry), config, registry))
    return Stand(pb_grpc.PolicyServiceStub(channel), registry)


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
    return caught.value.code(), reason_of(caught.value), rpc_status.from_call(caught.value)


def replace_answers(server: FakeServer, make: Callable[[Received, Answer], Answer]) -> None:
    """From now on change what is written; what is said about the model stays."""
    paths = set(PATHS.values())
    server.change = lambda request, answer: make(request, answer) if request.path in paths else answer
