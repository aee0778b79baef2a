"""Models, inference servers that are fakes over real HTTP, and the policy service before them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from tests.inference_servers import FakeServer, FakeTgi, FakeVllm
from tests.policy_stand import ARCHITECTURE, Stand, make_codec, make_store, serve_policy


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return make_codec()


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with policy/1 and policy/2."""
    return make_store(tmp_path_factory.mktemp("store"), codec, [ARCHITECTURE] * 2)


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
        fields: dict[str, Any] = {"store": store.root}
        if server is None:
            fields["model"] = "policy/1"
        else:
            fields |= {
                "backend": "tgi" if isinstance(server, FakeTgi) else "openai",
                "backend_url": server.url,
                "backend_model": "policy/1",
            }
        return serve_policy(serve, connect, **{**fields, **values})

    return start_service


@pytest.fixture(params=["tgi", "openai"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
