"""A store of two models, and policy services that serve the first of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.trainer import peers
from tests.policy_stand import make_store
from tests.weight_sending import ARCHITECTURE, INITIAL, Replica, RoadTo


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)])


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return make_store(tmp_path_factory.mktemp("store"), codec, [ARCHITECTURE] * 2, family="sft")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def start(serve, store: ModelStore) -> Iterator[Callable[..., Replica]]:
    with ExitStack() as clients:

        def start_replica(**values: object) -> Replica:
            fields = {"port": 0, "metrics_port": 0, "store": store.root, "model": INITIAL, **values}
            config, registry = PolicyConfig(**fields), CollectorRegistry()
            service = PolicyService(config, registry)
            running = serve(service, config, registry)
            return Replica(service, running, clients.enter_context(RoadTo(running.target)), registry)

        yield start_replica
