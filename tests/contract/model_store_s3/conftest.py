"""A model store in a bucket, with and without the proxy that may fail between."""

from pathlib import Path

import pytest

from andon.modeling.store import ModelStore
from andon.modeling.stores import bucket as bucket_module
from andon.modeling.stores import s3 as s3_module
from tests.s3_server import FaultyProxy


@pytest.fixture
def uri(s3_bucket: str) -> str:
    return f"s3://{s3_bucket}/models"


@pytest.fixture
def direct(uri: str, tmp_path: Path) -> ModelStore:
    """The store without the proxy between, with a cache of its own."""
    return ModelStore(uri, cache=tmp_path / "direct-cache")


@pytest.fixture
def store(uri: str, direct: ModelStore, s3_proxy: FaultyProxy) -> ModelStore:
    """The store behind the proxy."""
    return ModelStore(uri)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up at once, and never pauses."""
    monkeypatch.setattr(bucket_module, "RETRIES", 0)
    monkeypatch.setattr(bucket_module, "pause", lambda attempt: None)
    monkeypatch.setattr(s3_module, "pause", lambda attempt: None)
