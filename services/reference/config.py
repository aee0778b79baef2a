"""Decides what the reference service can be told: the common settings, which model, how much at a time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from andon.rpc.config import Port
from andon.rpc.store_config import StoreServerConfig


class ReferenceConfig(StoreServerConfig):
    """Settings of ``python -m services.reference``."""

    port: Port = 50052
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9102
    """Prometheus port; 0 takes a free one."""
    model: str | None = None
    """Model to load at the start, such as sft@latest, sft/1, a folder or a Hugging Face name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights. Log-probabilities are float32 in any case."""
    device: str = "cpu"
    """Where the model runs, such as cpu or cuda:0."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one forward pass."""
    token_budget: int = Field(default=1536, ge=1)
    """The most tokens of one forward pass, prompts and responses together; bounds the memory of a call."""
    max_queued_calls: int = Field(default=64, ge=1)
    """Calls that may wait for the model; further ones answer RESOURCE_EXHAUSTED with QUEUE_FULL."""
