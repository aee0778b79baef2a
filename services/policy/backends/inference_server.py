"""Decides how an inference server looks to the remote backend, whatever protocol it speaks.

``tgi`` and ``openai_server`` implement ``InferenceServer`` with the maintained clients. They translate and
check the form of answers; what an answer means is ``answers``'s affair. One request asks for one sample:
its seed is then its own, and the server batches and shares prompts better than we could.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.policy.errors import (
    BackendOverloadedError,
    BackendRefusedError,
    BackendUnavailableError,
)

DEFAULT_RETRY_AFTER_S = 1.0  # where an overloaded server does not say when to come back
MAX_RETRY_AFTER_S = 60.0
MAX_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerModel:
    """A model that a server says it serves."""

    names: tuple[str, ...]  # all it goes by, the one that requests must give first
    revision: str  # of a public model; "" when the server does not say
    dtype: str  # of the weights; "" when the server does not say
    max_prompt_tokens: int | None
    max_sequence_tokens: int | None
    max_stop_texts: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOrder:
    """One sample to be written."""

    model: str  # ServerModel.names[0]
    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int  # at least 1
    stop_texts: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int = 0  # also those of so many most probable tokens, at each position


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSample:
    """What a server wrote. A log-probability that is no number is NaN."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str  # the server's own word, for messages
    prompt_token_ids: tuple[int, ...] | None  # what the server read; None when it did not say
    top_logprobs: tuple[Mapping[int, float], ...] = ()  # by token id; [] when not asked for


class InferenceServer(Protocol):
    """A server of one model."""

    name: str  # "tgi" or "openai"
    takes_token_ids: bool
    takes_stop_token_ids: bool
    min_temperature: float

    async def models(self) -> tuple[ServerModel, ...]:
        """What it serves now."""
        ...

    async def write(self, order: SampleOrder) -> WrittenSample:
        """One sample. Raises the errors of ``services.policy.errors`` that begin with Backend."""
        ...

    def check_prompt(self, prompt: tuple[int, ...], *, field: str) -> None:
        """Raise InvalidSampleRequestError UNSUPPORTED_BY_BACKEND for a prompt that cannot be sent."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


NO_TOKEN = "none"  # what the clients send where there is none; a server that wants none ignores it


class TokenFile:
    """A bearer token that is read anew each time, so that it can be changed while the service runs."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> str:
        """The token; "" without a file. Raises BackendUnavailableError when it cannot be read."""
        if self._path is None:
            return ""
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BackendUnavailableError(
                backend="token", problem=f"{self._path} cannot be read: {type(error).__name__}"
            ) from error


def status_error(
    *, backend: str, status: int, message: str, headers: Mapping[str, str]
) -> BackendOverloadedError | BackendUnavailableError | BackendRefusedError:
    """The error of ours that an HTTP status stands for.

    429 is overload, 408, 424 and 5xx pass, and every other says that the request itself does not fit.
    """
    message = message[:MAX_MESSAGE_CHARACTERS]
    if status == 429:
        return BackendOverloadedError(
            backend=backend, status=status, retry_after_s=_retry_after_s(headers) or DEFAULT_RETRY_AFTER_S
        )
    if status >= 500 or status in (408, 424):
        return BackendUnavailableError(
            backend=backend,
            problem=f"it answered {status}: {message}",
            retry_after_s=_retry_after_s(headers),
        )
    return BackendRefusedError(backend=backend, status=status, message=message)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The header's seconds; its form with a date is not used by these servers."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else None
