"""Decides what the policy service can be told beside the common settings: which model, and how much at
once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from andon.rpc.config import Port, ServerConfig


class PolicyConfig(ServerConfig):
    """Settings of ``python -m services.policy``."""

    port: Port = 50051
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9101
    """Prometheus port; 0 takes a free one."""
    store: Path = Path("andon-home/store")
    """Folder of the model store."""
    model: str | None = None
    """Model to load at the start, such as policy@stable, policy/12, a folder or a Hugging Face name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and of the cache. Log-probabilities are float32 in any case."""
    device: str = "cpu"
    """Where the model runs, such as cpu or cuda:0."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one forward pass."""
    token_budget: int = Field(default=2048, ge=1)
    """The most prompt tokens of one forward pass. More saves nothing on a CPU once its matrices are this
    tall.
    """
    max_queued_calls: int = Field(default=64, ge=1)
    """Calls that may wait for the model; further ones answer RESOURCE_EXHAUSTED with QUEUE_FULL."""
    max_running_sequences: int = Field(default=512, ge=1, le=65536)
    """Samples that are written at once."""
    max_samples_per_call: int = Field(default=8192, ge=1)
    """Samples of one call, all prompts together; more than can run at once follow each other."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """The longest response a caller may ask for, in tokens."""
    cache_mib: int = Field(default=2048, ge=1)
    """Memory for keys and values of running samples, in MiB."""
