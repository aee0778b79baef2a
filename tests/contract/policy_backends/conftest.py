"""Models, inference servers that are fakes over real HTTP, and the policy service before them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from andon.api.policy.v1 import policy_service_pb2_grpc as pb_grpc
from andon.modeling.loading import new_causal_lm, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from tests.inference_servers import FakeServer, FakeTgi, FakeVllm
from tests.policy_stand import POSITIONS, Stand

ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)], max_document_tokens=20)


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with policy/1 and policy/2."""
    torch.set_num_threads(1)
    models = ModelStore(tmp_path_factory.mktemp("store"))
    for seed in (1, 2):
        model = new_causal_lm(ARCHITECTURE, codec, seed=seed)
        models.publish(
            "policy",
            lambda folder, model=model: save_model(model, codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
    return models


@pytest.fixture
def fake(store: ModelStore, codec: TextCodec) -> Iterator[Callable[..., FakeServer]]:
    """``fake("tgi", ...)`` starts a server that serves policy/1, with a tokenizer of its own."""
    with ExitStack() as servers:

        def start(backend: str, **values: Any) -> FakeServer:
            path = store.resolve("policy/1").path
            fields = {"model_id": f"/models/{path.parent.name}/{path.name}", **values}
            kind = FakeTgi if backend == "tgi" else FakeVllm
            return servers.enter_context(kind(path, copy.deepcopy(codec.tokenizer), **fields))

        yield start


@pytest.fixture
def start(serve, connect, store: ModelStore) -> Callable[..., Stand]:
    """``start(server)`` starts a policy service before a fake, ``start(None)`` the built-in engine."""

    def start_service(server: FakeServer | None, **values: Any) -> Stand:
        fields: dict[str, Any] = {"port": 0, "metrics_port": 0, "store": store.root}
        if server is None:
            fields["model"] = "policy/1"
        else:
            fields |= {
                "backend": "tgi" if isinstance(server, FakeTgi) else "openai",
                "backend_url": server.url,
                "backend_model": "policy/1",
            }
        config = PolicyConfig(**{**fields, **values})
        registry = CollectorRegistry()
        channel = connect(serve(PolicyService(config, registry), config, registry))
        return Stand(pb_grpc.PolicyServiceStub(channel), registry)

    return start_service


@pytest.fixture(params=["tgi", "openai"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
