"""Decides what the policy service can be told beside the common settings: which model, and how much at
once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from andon.rpc.config import Port
from andon.rpc.store_config import StoreServerConfig

# Settings that mean something to one kind of backend only; set for the other kind they would be ignored.
_OF_BUILTIN = ("model", "dtype", "device", "threads", "token_budget", "cache_mib")
_OF_SERVERS = ("backend_url", "backend_token_file", "backend_model", "backend_timeout_s")


class PolicyConfig(StoreServerConfig):
    """Settings of ``python -m services.policy``."""

    port: Port = 50051
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9101
    """Prometheus port; 0 takes a free one."""
    backend: Literal["builtin", "tgi", "openai"] = "builtin"
    """What writes the samples: the built-in engine, a text-generation-inference server, or a server with
    OpenAI's completions that gives token ids, such as vLLM.
    """
    backend_url: str | None = None
    """Where the server is, such as http://127.0.0.1:8080; with openai up to and including /v1."""
    backend_token_file: Path | None = None
    """File with the bearer token for the server. Read again at every call."""
    backend_model: str | None = None
    """The model that the server serves, such as policy/12, policy@stable or a Hugging Face name. Tokenizer
    and prompt template are read from it, and the server must say that it serves it.
    """
    backend_timeout_s: float = Field(default=300.0, gt=0)
    """How long the server may take for one sample, and at the start for getting ready."""
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

    @model_validator(mode="after")
    def _refuse_ignored_settings(self) -> PolicyConfig:
        ignored = _OF_SERVERS if self.backend == "builtin" else _OF_BUILTIN
        for field in ignored:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} would be ignored with backend {self.backend}")
        if self.backend == "builtin":
            return self
        for field in ("backend_url", "backend_model"):
            if not getattr(self, field):
                raise ValueError(f"backend {self.backend} needs {field}")
        url = urlsplit(self.backend_url or "")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("backend_url must begin with http:// or https:// and name a host")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("backend_url holds more than an address; a token stands in backend_token_file")
        if self.backend_token_file is not None and not self.backend_token_file.is_file():
            raise ValueError(f"backend_token_file {self.backend_token_file} does not exist")
        return self
