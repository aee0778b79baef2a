"""A server of OpenAI's completions that takes and gives token ids, such as vLLM, through ``openai``'s client.

What vLLM adds to the protocol is asked for in the body, and everything that would reshape the distribution is
turned off by name: a server takes such defaults from the ``generation_config.json`` of its model.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai

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
)

NAME = "openai"
_TOKEN_PREFIX = "token_id:"  # how return_tokens_as_token_ids spells a token


class OpenAIServer:
    """Speaks to ``/v1/models`` and ``/v1/completions``."""

    name = NAME
    takes_token_ids = True
    takes_stop_token_ids = True
    min_temperature = 0.01  # vLLM raises lower ones to this

    def __init__(self, url: str, *, token: TokenFile, timeout_s: float) -> None:
        self._timeout_s = timeout_s

        async def api_key() -> str:
            return token.read() or NO_TOKEN

        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            timeout=timeout_s,
            max_retries=0,  # our callers repeat, by their policy
        )

    async def models(self) -> tuple[ServerModel, ...]:
        """All that ``/v1/models`` lists; vLLM names the folder of each as its root."""
        async with self._told_errors():
            page = await self._client.models.list()
            listed = [_plain(model) for model in page.data]
        models = []
        for model in listed:
            names = tuple(name for name in (model.get("id"), model.get("root")) if isinstance(name, str))
            if not names:
                raise self._invalid("/v1/models lists a model without a name")
            models.append(
                ServerModel(
                    names=names,
                    revision="",
                    dtype="",
                    max_prompt_tokens=None,
                    max_sequence_tokens=model.get("max_model_len"),
                    max_stop_texts=None,
                )
            )
        return tuple(models)

    async def write(self, order: SampleOrder) -> WrittenSample:
        """One sample by ``/v1/completions``."""
        async with self._told_errors():
            completion = await self._client.completions.create(
                model=order.model,
                prompt=list(order.prompt),
                max_tokens=order.max_new_tokens,
                temperature=order.temperature,
                top_p=order.top_p,
                n=1,
                seed=order.seed,
                stop=list(order.stop_texts) or openai.omit,
                logprobs=order.top_logprobs or 1,
                frequency_penalty=0.0,
                presence_penalty=0.0,
                extra_body={
                    "return_token_ids": True,
                    "return_tokens_as_token_ids": True,
                    "stop_token_ids": list(order.stop_token_ids),
                    "top_k": -1,
                    "min_p": 0.0,
                    "min_tokens": 0,
                    "repetition_penalty": 1.0,
                    "ignore_eos": False,
                    "skip_special_tokens": True,
                },
            )
            answer = _plain(completion)
        return self._read(answer, model=order.model)

    def check_prompt(self, prompt: tuple[int, ...], *, field: str) -> None:
        """Every prompt of token ids can be sent."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, answer: Mapping[str, Any], *, model: str) -> WrittenSample:  # Any: unchecked JSON
        if answer.get("model") not in (None, model):
            raise self._invalid(f"it is of model {answer.get('model')}")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._invalid("it does not hold one choice")
        choice = choices[0]
        logprobs = choice.get("logprobs") or {}
        try:
            tokens = choice.get("token_ids")
            if tokens is None:  # other servers than vLLM spell the ids at most
                tokens = [_token_id(text) for text in logprobs["tokens"]]
            prompt = choice.get("prompt_token_ids")
            return WrittenSample(
                token_ids=_ids(tokens),
                logprobs=tuple(map(_number, logprobs["token_logprobs"])),
                finish=str(choice.get("finish_reason")),
                prompt_token_ids=None if prompt is None else _ids(prompt),
                top_logprobs=tuple(
                    {_token_id(text): _number(value) for text, value in (top or {}).items()}
                    for top in (logprobs.get("top_logprobs") or [])
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._invalid(f"it has no token ids with log-probabilities: {error}") from error

    def _invalid(self, problem: str) -> BackendAnswerInvalidError:
        return BackendAnswerInvalidError(backend=NAME, problem=problem)

    @asynccontextmanager
    async def _told_errors(self) -> AsyncIterator[None]:
        """Turn whatever the client raises into errors of ours."""
        try:
            yield
        except openai.APITimeoutError as error:
            raise BackendTimeoutError(backend=NAME, timeout_s=self._timeout_s) from error
        except openai.APIStatusError as error:
            raise status_error(
                backend=NAME,
                status=error.status_code,
                message=error.response.text,
                headers=error.response.headers,
            ) from error
        except openai.APIResponseValidationError as error:
            raise self._invalid("it is not of the protocol's form") from error
        except openai.APIConnectionError as error:
            problem = type(error.__cause__ or error).__name__
            raise BackendUnavailableError(backend=NAME, problem=problem) from error
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            # The library builds its values without checking, and fails late on what is none of them.
            raise self._invalid(f"it cannot be read: {type(error).__name__}") from error


def _plain(value: Any) -> dict[str, Any]:  # Any: the library hands a text through where JSON was promised
    """The answer as it came, without the library's types, which it does not check."""
    fields: dict[str, Any] = value.model_dump(warnings=False)
    return fields


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError("token ids are not integers")
    return tuple(values)


def _token_id(text: str) -> int:
    if not text.startswith(_TOKEN_PREFIX):
        raise ValueError("tokens are spelled as text")
    return int(text.removeprefix(_TOKEN_PREFIX))


def _number(value: object) -> float:
    """A log-probability; null stands for what is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan
