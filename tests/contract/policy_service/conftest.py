"""A store with models of two shapes, and the policy service with its own engine before it."""

from collections.abc import Callable

import pytest

from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from tests.policy_stand import ARCHITECTURE, Stand, make_codec, make_store, serve_policy


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return make_codec()


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with policy/1 and policy/2 of one shape, and policy/3 of another."""
    shapes = [ARCHITECTURE, ARCHITECTURE, {**ARCHITECTURE, "n_positions": 32}]
    return make_store(tmp_path_factory.mktemp("store"), codec, shapes)


@pytest.fixture
def start(serve, connect, store: ModelStore) -> Callable[..., Stand]:
    """Starts a policy service with policy/1, or as told."""
    return lambda **values: serve_policy(
        serve, connect, **{"store": store.root, "model": "policy/1", **values}
    )
