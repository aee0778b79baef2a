"""Bearer tokens that tests give to the labeling service, and channels that carry them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc

# By name; the admin and the service may act for anybody.
TOKENS: Mapping[str, str] = {
    "admin": "token-of-the-admin-0001",
    "service": "token-of-the-service-0001",
    "rita": "token-of-researcher-rita-0001",
    "lara": "token-of-labeler-lara-0001",
}
ROLES: Mapping[str, str] = {
    "admin": "admin",
    "service": "service",
    "rita": "researcher",
    "lara": "labeler",
}


def write_tokens(folder: Path) -> Path:
    """The tokens as a file for ``LabelingConfig.tokens_file``."""
    path = folder / "tokens.json"
    entries = [{"name": name, "role": ROLES[name], "token": token} for name, token in TOKENS.items()]
    path.touch(mode=0o600)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Token(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _add(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), self._entry]
        return continuation(
            _Details(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    intercept_unary_unary = _add
    intercept_unary_stream = _add
    intercept_stream_unary = _add
    intercept_stream_stream = _add


def with_token(channel: grpc.Channel, token: str) -> grpc.Channel:
    """The channel, with the token on every call."""
    return grpc.intercept_channel(channel, _Token(token))
