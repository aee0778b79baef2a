"""Fake inference servers that speak the real HTTP protocols and really sample, with plain transformers.

``FakeTgi`` answers as text-generation-inference does, ``FakeVllm`` as vLLM's OpenAI server. Both check what
the real ones check. Faults are put before an answer by the test: another status, another body, silence.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a model wrote, step by step."""

    tokens: list[int]
    numbers: list[float]  # of the tokens, in the server's mode
    tops: list[list[tuple[int, float]]]  # of the most probable tokens
    finish: Literal["eos", "stop", "length"]
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer; ``body`` is sent as it is when it is bytes."""

    status: int = 200
    body: Json | list[Any] | bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json


class FakeServer:
    """An HTTP server on a free port around one model. ``change`` may alter or replace each answer."""

    def __init__(self, model: Path, tokenizer: PreTrainedTokenizerBase, *, token: str = "") -> None:
        self.tokenizer = tokenizer
        self.token = token
        self.requests: list[Received] = []
        self.change: Callable[[Received, Answer], Answer] | None = None
        self.release = threading.Event()  # what a silent server waits for
        self.most_at_once = 0
        self._at_once = 0
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(model), attn_implementation="eager"
        ).eval()
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._handle(self, {})

            def do_POST(self) -> None:
                fake._handle(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *arguments: object) -> None:
                """Tests read ``requests`` instead."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, name="inference-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def sent(self, path: str) -> list[Received]:
        """The requests of one path."""
        return [request for request in self.requests if request.path == path]

    def respond(self, request: Received) -> Answer:
        """The protocol; implemented by each server."""
        raise NotImplementedError

    def _handle(self, handler: BaseHTTPRequestHandler, body: Json) -> None:
        request = Received(
            method=handler.command,
            path=handler.path,
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=body,
        )
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                answer = Answer(status=401, body={"error": "unauthorized"})
            else:
                answer = self.respond(request)
            if self.change is not None:
                answer = self.change(request, answer)
        finally:
            with self._lock:
                self._at_once -= 1
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        try:
            handler.send_response(answer.status)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(content)))
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)
        except ConnectionError:
            handler.close_connection = True  # the caller has gone

    @torch.inference_mode()
    def write(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        is_end: Callable[[list[int]], tuple[Literal["eos", "stop", "length"], int | str | None] | None],
        num_tops: int,
        mode: LogprobsMode,
    ) -> Written:
        """Sample token by token, each time with the whole sequence."""
        generator = torch.Generator().manual_seed(seed)
        tokens: list[int] = []
        numbers, tops = [], []
        while True:
            with self._lock:
                logits = self._model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].double()
            processed = logits if temperature == 0 else _cut(logits / temperature, top_p)
            shown = {
                "raw_logits": logits,
                "raw_logprobs": logits.log_softmax(0),
                "processed_logprobs": processed.log_softmax(0),
            }[mode]
            if temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(processed.softmax(0), 1, generator=generator))
            tokens.append(token)
            numbers.append(float(shown[token]))
            best = shown.topk(max(num_tops, 1)).indices.tolist()[:num_tops]
            tops.append([(index, float(shown[index])) for index in best])
            ended = is_end(tokens)
            if ended is not None:
                return Written(
                    tokens=tokens, numbers=numbers, tops=tops, finish=ended[0], stop_reason=ended[1]
                )
            assert len(tokens) < max_new_tokens


def _cut(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the most probable tokens that hold ``top_p`` together, as transformers' warper does."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort()
    removed = ordered.softmax(0).cumsum(0) <= 1 - top_p
    removed[-1] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), -math.inf)


class FakeTgi(FakeServer):
    """``/info``, ``/health`` and ``/generate``."""

    def __init__(
        self,
        model: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str,
        model_sha: str | None = None,
        max_input_tokens: int = 32,
        max_total_tokens: int = 64,
        token: str = "",
    ) -> None:
        super().__init__(model, tokenizer, token=token)
        self.info: Json = {
            "model_id": model_id,
            "model_sha": model_sha,
            "model_pipeline_tag": None,
            "max_concurrent_requests": 128,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": max_input_tokens,
            "max_total_tokens": max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.4",
            "sha": None,
            "docker_label": None,
        }

    def respond(self, request: Received) -> Answer:
        if (request.method, request.path) == ("GET", "/info"):
            return Answer(body=self.info)
        if (request.method, request.path) == ("GET", "/health"):
            return Answer()
        if (request.method, request.path) == ("POST", "/generate"):
            return self._generate(request.body)
        return Answer(status=404)

    def _generate(self, body: Json) -> Answer:
        values: Json = body.get("parameters", {})
        prompt = self.tokenizer(body["inputs"]).input_ids
        max_new_tokens = values["max_new_tokens"]
        temperature, top_p = values.get("temperature"), values.get("top_p")
        stop = values.get("stop", [])
        problem = None
        if not prompt:
            problem = "`inputs` cannot be empty"
        elif temperature is not None and temperature <= 0:
            problem = "`temperature` must be strictly positive"
        elif top_p is not None and not 0 < top_p < 1:
            problem = "`top_p` must be > 0.0 and < 1.0"
        elif len(stop) > self.info["max_stop_sequences"]:
            problem = "`stop` supports up to 4 stop sequences"
        elif len(prompt) > self.info["max_input_tokens"]:
            problem = "`inputs` must have less than the maximum number of tokens"
        elif len(prompt) + max_new_tokens > self.info["max_total_tokens"]:
            problem = "`inputs` tokens + `max_new_tokens` must be below the limit"
        if problem is not None:
            return Answer(
                status=422,
                body={"error": f"Input validation error: {problem}", "error_type": "validation"},
            )
        is_sampling = values.get("do_sample", False) or temperature not in (None, 1.0) or top_p is not None

        def is_end(tokens: list[int]) -> tuple[Literal["eos", "stop", "length"], int | str | None] | None:
            # The real server looks at the length first, and for stop texts at the very end only.
            if len(tokens) >= max_new_tokens:
                return "length", None
            if tokens[-1] == self.tokenizer.eos_token_id:
                return "eos", None
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            return ("stop", None) if any(text.endswith(end) for end in stop) else None

        written = self.write(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=(temperature or 1.0) if is_sampling else 0.0,
            top_p=top_p or 1.0,
            seed=values.get("seed", 0),
            is_end=is_end,
            num_tops=values.get("top_n_tokens", 0),
            mode="processed_logprobs",
        )
        finish = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}[written.finish]
        answer: Json = {"generated_text": self.tokenizer.decode(written.tokens, skip_special_tokens=True)}
        if values.get("details"):
            answer["details"] = {
                "finish_reason": finish,
                "generated_tokens": len(written.tokens),
                "seed": values.get("seed") if is_sampling else None,
                "prefill": (
                    [self._token(token, None) for token in prompt]
                    if values.get("decoder_input_details")
                    else []
                ),
                "tokens": [
                    {**self._token(token, number), "special": token in self.tokenizer.all_special_ids}
                    for token, number in zip(written.tokens, written.numbers, strict=True)
                ],
                "top_tokens": [
                    [{**self._token(token, number), "special": False} for token, number in place]
                    for place in written.tops
                ],
            }
        return Answer(body=answer)

    def _token(self, token: int, logprob: float | None) -> Json:
        return {"id": token, "text": self.tokenizer.decode([token]), "logprob": logprob}


class FakeVllm(FakeServer):
    """``/v1/models`` and ``/v1/completions`` with vLLM's extensions."""

    def __init__(
        self,
        model: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str,
        root: str | None = None,
        mode: LogprobsMode = "raw_logprobs",
        max_model_len: int = 64,
        default_top_k: int | None = None,
        token: str = "",
    ) -> None:
        super().__init__(model, tokenizer, token=token)
        self.mode: LogprobsMode = mode
        self.default_top_k = default_top_k  # of the model's generation_config.json
        self.models: list[Json] = [
            {
                "id": model_id,
                "object": "model",
                "created": 1,
                "owned_by": "vllm",
                "root": root or model_id,
                "parent": None,
                "max_model_len": max_model_len,
                "permission": [],
            }
        ]

    @property
    def url(self) -> str:
        return f"{super().url}/v1"

    def respond(self, request: Received) -> Answer:
        if (request.method, request.path) == ("GET", "/v1/models"):
            return Answer(body={"object": "list", "data": self.models})
        if (request.method, request.path) == ("POST", "/v1/completions"):
            return self._complete(request.body)
        return Answer(status=404, body={"detail": "Not Found"})

    def _complete(self, body: Json) -> Answer:
        if body["model"] not in [model["id"] for model in self.models]:
            return _refusal(404, f"The model `{body['model']}` does not exist.")
        prompt, max_new_tokens = body["prompt"], body["max_tokens"]
        limit = self.models[0]["max_model_len"]
        if len(prompt) + max_new_tokens > limit:
            return _refusal(400, f"This model's maximum context length is {limit} tokens.")
        assert isinstance(prompt, list)
        assert body["n"] == 1
        if body.get("top_k", self.default_top_k) not in (None, -1, 0) or body.get("repetition_penalty") != 1:
            return _refusal(400, "the fake reshapes no distribution; its caller has to turn that off")
        stop, stop_ids = body.get("stop", []), body.get("stop_token_ids", [])

        def is_end(tokens: list[int]) -> tuple[Literal["eos", "stop", "length"], int | str | None] | None:
            if tokens[-1] == self.tokenizer.eos_token_id:
                return "eos", None
            if tokens[-1] in stop_ids:
                return "stop", tokens[-1]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            for end in stop:
                if end in text:
                    return "stop", end
            return ("length", None) if len(tokens) >= max_new_tokens else None

        temperature = body["temperature"]
        written = self.write(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=max(temperature, 0.01) if temperature else 0.0,
            top_p=body["top_p"],
            seed=body["seed"],
            is_end=is_end,
            num_tops=body.get("logprobs") or 0,
            mode=self.mode,
        )
        text = self.tokenizer.decode(written.tokens, skip_special_tokens=True)
        if isinstance(written.stop_reason, str):
            text = text[: text.index(written.stop_reason)]
        spell = self._spell(body.get("return_tokens_as_token_ids", False))
        offsets = [0] * len(written.tokens)
        choice: Json = {
            "index": 0,
            "text": text,
            "finish_reason": "length" if written.finish == "length" else "stop",
            "stop_reason": written.stop_reason,
            "logprobs": {
                "text_offset": offsets,
                "tokens": [spell(token) for token in written.tokens],
                "token_logprobs": [max(number, -9999.0) for number in written.numbers],
                "top_logprobs": [
                    {spell(token): max(number, -9999.0) for token, number in place} for place in written.tops
                ],
            },
            "prompt_logprobs": None,
        }
        if body.get("return_token_ids"):
            choice |= {"token_ids": written.tokens, "prompt_token_ids": prompt}
        return Answer(
            body={
                "id": f"cmpl-{uuid.uuid4().hex}",
                "object": "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": len(written.tokens),
                    "total_tokens": len(prompt) + len(written.tokens),
                },
            }
        )

    def _spell(self, as_ids: bool) -> Callable[[int], str]:
        return (
            (lambda token: f"token_id:{token}") if as_ids else (lambda token: self.tokenizer.decode([token]))
        )


def _refusal(status: int, message: str) -> Answer:
    return Answer(
        status=status, body={"error": {"message": message, "type": "BadRequestError", "code": status}}
    )
