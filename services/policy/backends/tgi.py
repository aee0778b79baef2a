"""A text-generation-inference server, through ``huggingface_hub``'s client.

It takes text only, so a prompt of token ids is sent as the text that the same tokenizer reads as those ids;
one without such a text is refused. Its log-probabilities are of the drawn distribution.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, TextGenerationError
from transformers import PreTrainedTokenizerBase

from services.policy.backends.inference_server import (
    NO_TOKEN,
    SampleOrder,
    ServerModel,
    TokenFile,
    WrittenSample,
    status_error,
)
from services.policy.errors import (
    BackendAnswerInvalidError,
    BackendTimeoutError,
    BackendUnavailableError,
    InvalidSampleRequestError,
)

NAME = "tgi"
MAX_CONNECTIONS = 1024  # the service limits how many samples are written at once


class TgiServer:
    """Speaks to ``/info`` and ``/generate``."""

    name = NAME
    takes_token_ids = False
    takes_stop_token_ids = False
    min_temperature = 1e-4

    def __init__(
        self, url: str, *, tokenizer: PreTrainedTokenizerBase, token: TokenFile, timeout_s: float
    ) -> None:
        self._url = url.rstrip("/")
        self._tokenizer = tokenizer
        self._token = token
        self._timeout_s = timeout_s
        self._client: AsyncInferenceClient | None = None
        self._client_token: str | None = None
        self._replaced: list[AsyncInferenceClient] = []  # may still have answers to come

    async def models(self) -> tuple[ServerModel, ...]:
        """The one model of ``/info``."""
        async with self._told_errors():
            info = await self._current_client().get_endpoint_info(model=self._url)
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise self._invalid("/info names no model")
        return (
            ServerModel(
                names=(info["model_id"],),
                revision=info.get("model_sha") or "",
                dtype=str(info.get("model_dtype") or "").removeprefix("torch."),  # until version 2
                max_prompt_tokens=info.get("max_input_tokens", info.get("max_input_length")),
                max_sequence_tokens=info.get("max_total_tokens"),
                max_stop_texts=info.get("max_stop_sequences"),
            ),
        )

    async def write(self, order: SampleOrder) -> WrittenSample:
        """One sample by ``/generate``."""
        is_greedy = order.temperature == 0
        async with self._told_errors():
            output = await self._current_client().text_generation(
                self._text_of(order.prompt),
                model=f"{self._url}/generate",
                details=True,
                # What the server read is asked for by the probe only: it costs the head for every token.
                decoder_input_details=order.top_logprobs > 0,
                do_sample=not is_greedy,
                # The server takes "none" for 1, and 1 for an error where it would be top_p's.
                temperature=None if is_greedy or order.temperature == 1 else order.temperature,
                top_p=None if is_greedy or order.top_p == 1 else order.top_p,
                max_new_tokens=order.max_new_tokens,
                seed=order.seed,
                stop=list(order.stop_texts) or None,
                top_n_tokens=order.top_logprobs or None,
                return_full_text=False,
            )
        return self._read(output, asked_details=order.top_logprobs > 0)

    def check_prompt(self, prompt: tuple[int, ...], *, field: str) -> None:
        """Refuse token ids that no text stands for."""
        if self._ids_of(self._text_of(prompt)) != list(prompt):
            raise InvalidSampleRequestError(
                f"{field} cannot be sent to a {NAME} server: it takes text, and the text of these token ids "
                "is read as others",
                reason="UNSUPPORTED_BY_BACKEND",
                field=field,
            )

    async def close(self) -> None:
        """Close the connections."""
        for client in (*self._replaced, *([] if self._client is None else [self._client])):
            await client.exit_stack.aclose()
        self._replaced.clear()
        self._client = None

    def _text_of(self, prompt: tuple[int, ...]) -> str:
        """The text whose ids are ``prompt``, without those that the tokenizer puts around every text."""
        ids = list(prompt)
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:1] == [bos] and self._ids_of("")[:1] == [bos]:
            ids = ids[1:]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _ids_of(self, text: str) -> list[int]:
        """As the server reads a text: special tokens are added, and found by their spelling."""
        ids: list[int] = self._tokenizer(text, truncation=False, verbose=False).input_ids
        return ids

    def _current_client(self) -> AsyncInferenceClient:
        token = self._token.read() or NO_TOKEN
        if self._client is None or token != self._client_token:
            if self._client is not None:
                self._replaced.append(self._client)
            set_async_client_factory(_new_http_client)
            # Without a token of ours the library would send the Hugging Face token that it finds in the
            # environment.
            self._client = AsyncInferenceClient(
                provider="hf-inference",
                token=token,
                timeout=self._timeout_s,
                headers={"authorization": f"Bearer {token}"},
            )
            self._client_token = token
        return self._client

    def _read(self, output: Any, *, asked_details: bool) -> WrittenSample:  # Any: the library checks no types
        details = getattr(output, "details", None)
        if details is None:
            raise self._invalid("there are no details")
        try:
            tokens = tuple(int(token.id) for token in details.tokens)
            if details.generated_tokens != len(tokens):
                raise self._invalid(f"{len(tokens)} tokens, where it counted {details.generated_tokens}")
            return WrittenSample(
                token_ids=tokens,
                logprobs=tuple(_number(token.logprob) for token in details.tokens),
                finish=str(details.finish_reason),
                prompt_token_ids=(
                    tuple(int(token.id) for token in details.prefill) if asked_details else None
                ),
                # Lists in lists are not parsed by the library: these tokens are dicts.
                top_logprobs=tuple(
                    {int(token["id"]): _number(token["logprob"]) for token in tokens_of_place}
                    for tokens_of_place in (details.top_tokens or [])
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._invalid(f"its details are not of the known form: {error}") from error

    def _invalid(self, problem: str) -> BackendAnswerInvalidError:
        return BackendAnswerInvalidError(backend=NAME, problem=problem)

    @asynccontextmanager
    async def _told_errors(self) -> AsyncIterator[None]:
        """Turn whatever the client raises into errors of ours."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (TimeoutError, InferenceTimeoutError, httpx2.TimeoutException) as error:
            raise BackendTimeoutError(backend=NAME, timeout_s=self._timeout_s) from error
        except (HfHubHTTPError, TextGenerationError) as error:
            response = error.response if isinstance(error, HfHubHTTPError) else _response_of(error.__cause__)
            if response is None:
                raise BackendUnavailableError(backend=NAME, problem=str(error)) from error
            raise status_error(
                backend=NAME, status=response.status_code, message=response.text, headers=response.headers
            ) from error
        except httpx2.HTTPError as error:
            raise BackendUnavailableError(backend=NAME, problem=type(error).__name__) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            # The library parses without checking, and fails on what it does not expect in many ways.
            raise self._invalid(f"it cannot be read: {type(error).__name__}") from error


def _response_of(error: BaseException | None) -> httpx2.Response | None:
    return error.response if isinstance(error, HfHubHTTPError) else None


def _number(value: object) -> float:
    """A log-probability; the server writes null for what is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _new_http_client() -> httpx2.AsyncClient:
    """Without the library's offline switch, which is about its public servers, and without redirects, which
    would carry the token elsewhere.
    """
    return httpx2.AsyncClient(
        event_hooks={"response": [_read_error]},
        follow_redirects=False,
        timeout=None,  # the client gives each request its own
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64),
    )


async def _read_error(response: httpx2.Response) -> None:
    """Have the text of an error at hand when it is raised."""
    if response.status_code >= 400:
        await response.aread()
