"""Decides how a service that loads models is told where the model store is."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from andon.modeling.store import ModelStore
from andon.modeling.stores.location import S3Location, StoreLocation, parse_location
from andon.rpc.config import ServerConfig


class StoreServerConfig(ServerConfig):
    """Settings of services with models."""

    store: StoreLocation = "andon-home/store"
    """The model store, shared with the other services: a folder, or s3://bucket/prefix."""
    store_cache: Path | None = None
    """Folder of this machine for models loaded from s3://; processes may share it. By default andon/models
    in the user's folder for caches.
    """

    @model_validator(mode="after")
    def _refuse_ignored_cache(self) -> StoreServerConfig:
        if self.store_cache is not None and not isinstance(parse_location(self.store), S3Location):
            raise ValueError("store_cache would be ignored: the store is a folder")
        return self

    def open_store(self) -> ModelStore:
        """The store; no connection is opened yet. Raises StoreRefusedError."""
        return ModelStore(self.store, cache=self.store_cache)
