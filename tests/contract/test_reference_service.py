"""The reference service over real gRPC, against plain transformers on padded batches."""

import asyncio
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from andon.api.common.v1 import model_pb2, sequence_pb2
from andon.api.reference.v1 import reference_service_pb2 as pb2
from andon.api.reference.v1 import reference_service_pb2_grpc as pb2_grpc
from andon.errors import NotFoundError
from andon.modeling.loading import load_causal_lm, load_scorer, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from services.reference.__main__ import main
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from tests.rpc_errors import reason_of

TIMEOUT_S = 120
VOCAB_SIZE, POSITIONS = 64, 64
ROOT = Path(__file__).parents[2]

Item = tuple[list[int], list[list[int]]]


def config(**values: object) -> ReferenceConfig:
    return ReferenceConfig(**{"port": 0, "metrics_port": 0, "drain_grace_s": 5.0, **values})


def ids(values: list[int]) -> sequence_pb2.TokenIds:
    return sequence_pb2.TokenIds(ids=values)


def request(items: list[Item], **fields: object) -> pb2.LogProbsRequest:
    return pb2.LogProbsRequest(
        items=[
            pb2.LogProbsItem(
                prompt=sequence_pb2.Prompt(token_ids=ids(prompt)),
                responses=[sequence_pb2.Response(token_ids=ids(response)) for response in responses],
            )
            for prompt, responses in items
        ],
        **fields,
    )


def random_items(seed: int, count: int) -> list[Item]:
    generator = random.Random(seed)

    def sequence(longest: int) -> list[int]:
        return [generator.randrange(4, VOCAB_SIZE) for _ in range(generator.randint(1, longest))]

    return [(sequence(30), [sequence(20) for _ in range(generator.randint(1, 4))]) for _ in range(count)]


def padded_logprobs(folder: Path, items: list[Item], temperature: float) -> list[list[list[float]]]:
    """The textbook way: every prompt and response is a row, padded on the right, with an attention mask."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [(prompt, response) for prompt, responses in items for response in responses]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, (prompt, response) in enumerate(rows):
        size = len(prompt) + len(response)
        input_ids[row, :size] = torch.tensor(prompt + response)
        mask[row, :size] = 1
    with torch.no_grad():
        logprobs = (model(input_ids, attention_mask=mask).logits / temperature).log_softmax(-1)
    flat = iter(
        [logprobs[row, len(prompt) - 1 + index, token].item() for index, token in enumerate(response)]
        for row, (prompt, response) in enumerate(rows)
    )
    return [[next(flat) for _ in responses] for _, responses in items]


def assert_close(answer: pb2.LogProbsResponse, expected: list[list[list[float]]]) -> None:
    got = [[list(response.logprobs) for response in item.responses] for item in answer.items]
    assert [[len(values) for values in row] for row in got] == [
        [len(values) for values in row] for row in expected
    ]
    for got_row, expected_row in zip(got, expected, strict=True):
        for got_values, expected_values in zip(got_row, expected_row, strict=True):
            assert got_values == pytest.approx(expected_values, abs=1e-4)


@pytest.fixture
def start(serve, connect):
    """Starts a reference service; gives its stub."""

    def start_service(**values: object) -> pb2_grpc.ReferenceServiceStub:
        settings = config(**values)
        registry = CollectorRegistry()
        return pb2_grpc.ReferenceServiceStub(
            connect(serve(ReferenceService(settings, registry), settings, registry))
        )

    return start_service


@pytest.fixture(scope="module")
def gpt2(make_tiny_model) -> Path:
    return make_tiny_model("gpt2", "causal_lm")


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize(("temperature", "token_budget"), [(None, 8192), (0.7, 60)])
def test_logprobs_equal_a_plain_padded_forward_pass(
    start, make_tiny_model, model_type, temperature, token_budget
):
    folder = make_tiny_model(model_type, "causal_lm")
    stub = start(model=str(folder), token_budget=token_budget)
    items = random_items(seed=1, count=9)
    answer = stub.LogProbs(request(items, temperature=temperature), timeout=TIMEOUT_S)
    assert_close(answer, padded_logprobs(folder, items, temperature or 1.0))
    assert (answer.model.name, answer.model.version) == (str(folder), 0)
    assert answer.timing.compute_duration.ToNanoseconds() > 0


def test_the_probabilities_of_all_tokens_at_one_place_add_up_to_one(start, gpt2):
    stub = start(model=str(gpt2))
    answer = stub.LogProbs(
        request([([7, 8, 9], [[token] for token in range(VOCAB_SIZE)])]), timeout=TIMEOUT_S
    )
    assert sum(math.exp(response.logprobs[0]) for response in answer.items[0].responses) == pytest.approx(
        1, abs=1e-5
    )


def test_text_means_the_template_the_words_and_the_end_of_sequence(start, gpt2):
    stub = start(model=str(gpt2))
    as_text = pb2.LogProbsRequest(
        items=[
            pb2.LogProbsItem(
                prompt=sequence_pb2.Prompt(text="w3 w0 never"),
                responses=[sequence_pb2.Response(text="w59 w1")],
            )
        ]
    )
    by_hand = request([([7, 4, 1, 2], [[63, 5, 3]])])
    got = stub.LogProbs(as_text, timeout=TIMEOUT_S).items[0].responses[0].logprobs
    assert list(got) == pytest.approx(
        list(stub.LogProbs(by_hand, timeout=TIMEOUT_S).items[0].responses[0].logprobs)
    )
    assert len(got) == 3


def test_many_callers_at_once_each_get_their_own_answer(start, gpt2):
    stub = start(model=str(gpt2))
    requests = [random_items(seed=seed, count=3) for seed in range(12)]
    calls = [stub.LogProbs.future(request(items), timeout=TIMEOUT_S) for items in requests]
    for items, call in zip(requests, calls, strict=True):
        assert_close(call.result(TIMEOUT_S), padded_logprobs(gpt2, items, 1.0))


GOOD: Item = ([5, 6], [[7, 3]])
TEXT = sequence_pb2.Prompt(text="w1 w2")

BAD_REQUESTS = [
    ("no items", pb2.LogProbsRequest(), "EMPTY_REQUEST", {"field": "items"}),
    ("no prompt", request([([], [[5]])]), "EMPTY_PROMPT", {"field": "items[0].prompt"}),
    (
        "blank document",
        pb2.LogProbsRequest(items=[pb2.LogProbsItem(prompt=sequence_pb2.Prompt(text=" \n"))]),
        "EMPTY_PROMPT",
        {"field": "items[0].prompt"},
    ),
    ("no prompt set", pb2.LogProbsRequest(items=[pb2.LogProbsItem()]), "EMPTY_PROMPT", {}),
    ("no responses", request([([5], [])]), "EMPTY_RESPONSE", {"field": "items[0].responses"}),
    (
        "empty response",
        request([GOOD, ([5], [[6], []])]),
        "EMPTY_RESPONSE",
        {"field": "items[1].responses[1]"},
    ),
    (
        "blank summary",
        pb2.LogProbsRequest(
            items=[pb2.LogProbsItem(prompt=TEXT, responses=[sequence_pb2.Response(text="\t")])]
        ),
        "EMPTY_RESPONSE",
        {"field": "items[0].responses[0]"},
    ),
    (
        "prompt outside of the vocabulary",
        request([([5, VOCAB_SIZE], [[5]])]),
        "TOKEN_OUT_OF_VOCABULARY",
        {"field": "items[0].prompt[1]", "token": "64", "vocab_size": "64"},
    ),
    (
        "negative token in a response",
        request([([5], [[5, -1]])]),
        "TOKEN_OUT_OF_VOCABULARY",
        {"field": "items[0].responses[0][1]", "token": "-1"},
    ),
    (
        "too long together",
        request([([5] * 60, [[6], [6] * 5])]),
        "SEQUENCE_TOO_LONG",
        {
            "field": "items[0].responses[1]",
            "prompt_tokens": "60",
            "response_tokens": "5",
            "max_sequence_tokens": str(POSITIONS),
        },
    ),
    (
        "temperature NaN",
        request([GOOD], temperature=math.nan),
        "INVALID_TEMPERATURE",
        {"field": "temperature"},
    ),
    ("temperature 0", request([GOOD], temperature=0.0), "INVALID_TEMPERATURE", {}),
    ("temperature below 0", request([GOOD], temperature=-1.0), "INVALID_TEMPERATURE", {}),
    ("temperature infinite", request([GOOD], temperature=math.inf), "INVALID_TEMPERATURE", {}),
    ("temperature tiny", request([GOOD], temperature=1e-300), "INVALID_TEMPERATURE", {}),
]


def test_bad_requests_are_refused_with_a_reason_and_the_service_goes_on(start, gpt2):
    stub = start(model=str(gpt2))
    for name, message, reason, metadata in BAD_REQUESTS:
        with pytest.raises(grpc.RpcError) as raised:
            stub.LogProbs(message, timeout=TIMEOUT_S)
        info = reason_of(raised.value)
        assert (raised.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason), name
        assert metadata.items() <= dict(info.metadata).items(), name
    assert len(stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_the_longest_sequence_is_still_served(start, gpt2):
    stub = start(model=str(gpt2))
    items: list[Item] = [([5] * 60, [[6] * 4])]
    assert_close(stub.LogProbs(request(items), timeout=TIMEOUT_S), padded_logprobs(gpt2, items, 1.0))


def test_an_oversized_message_is_refused_by_the_transport_and_the_service_goes_on(start, gpt2):
    stub = start(model=str(gpt2), max_message_bytes=4096)
    with pytest.raises(grpc.RpcError) as raised:
        stub.LogProbs(request([([5], [[6] * 40] * 200)]), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_a_full_queue_refuses_and_the_service_goes_on(serve, connect, server_loop, gpt2):
    settings, registry = config(model=str(gpt2), max_queued_calls=1), CollectorRegistry()
    service = ReferenceService(settings, registry)
    stub = pb2_grpc.ReferenceServiceStub(connect(serve(service, settings, registry)))
    began, let_go = threading.Event(), threading.Event()

    def hold_the_model_thread() -> None:
        began.set()
        assert let_go.wait(TIMEOUT_S)

    holding = asyncio.run_coroutine_threadsafe(service.worker.run(hold_the_model_thread), server_loop)
    assert began.wait(TIMEOUT_S)
    calls = [stub.LogProbs.future(request([GOOD]), timeout=TIMEOUT_S) for _ in range(5)]
    refused = threading.Semaphore(0)
    for call in calls:
        call.add_done_callback(lambda _call: refused.release())
    for _ in range(4):  # one of the five waits, the others come back at once
        assert refused.acquire(timeout=TIMEOUT_S)
    let_go.set()
    holding.result(TIMEOUT_S)
    errors = [error for call in calls if (error := call.exception(TIMEOUT_S)) is not None]
    assert [error.code() for error in errors] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
    assert {reason_of(error).reason for error in errors} == {"QUEUE_FULL"}
    assert registry.get_sample_value("andon_model_rejected_calls_total") == 4
    assert len(stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_without_a_model_calls_are_refused_until_one_is_loaded(start, gpt2):
    stub = start()
    for call, message in ((stub.LogProbs, request([GOOD])), (stub.GetModelInfo, pb2.GetModelInfoRequest())):
        with pytest.raises(grpc.RpcError) as raised:
            call(message, timeout=TIMEOUT_S)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(raised.value).reason == "MODEL_NOT_LOADED"
    stub.LoadModel(pb2.LoadModelRequest(model=str(gpt2)), timeout=TIMEOUT_S)
    assert len(stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).items) == 1


@pytest.fixture
def store(tmp_path, make_tiny_model) -> ModelStore:
    """sft/1 and sft/2 with different weights, reward/1 beside them."""
    models = ModelStore(tmp_path / "store")

    def publish(family: str, source: Path, kind: str) -> None:
        model = load_scorer(source) if kind == "reward_model" else load_causal_lm(source)
        codec = TextCodec.load(source)
        models.publish(
            family, lambda folder: save_model(model, codec, folder), manifest=ManifestDraft(kind=kind)
        )

    publish("sft", make_tiny_model("gpt2", "causal_lm"), "causal_lm")
    publish("sft", make_tiny_model("gpt2", "causal_lm", seed=5), "causal_lm")
    publish("reward", make_tiny_model("gpt2", "reward_model"), "reward_model")
    return models


def test_models_are_loaded_from_the_store_by_version_and_alias(start, store):
    stub = start(store=store.root, model="sft/1")
    first = stub.GetModelInfo(pb2.GetModelInfoRequest(), timeout=TIMEOUT_S).info
    assert (first.model.name, first.model.version) == ("sft", 1)
    assert first.model.weights_sha256 == store.resolve("sft/1").version.weights_sha256
    assert (first.architecture, first.vocab_size, first.max_sequence_tokens) == ("GPT2LMHeadModel", 64, 64)
    assert (first.eos_token_id, first.dtype, first.device) == (3, "float32", "cpu")
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(store.resolve("sft/1").path)
    assert first.parameter_count == sum(parameter.numel() for parameter in plain.parameters())
    second = stub.LoadModel(pb2.LoadModelRequest(model="sft@latest"), timeout=TIMEOUT_S).info
    assert (second.model.name, second.model.version) == ("sft", 2)
    assert second.tokenizer_fingerprint == first.tokenizer_fingerprint
    answer = stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S)
    assert answer.model == second.model
    assert_close(answer, padded_logprobs(store.resolve("sft/2").path, [GOOD], 1.0))


BAD_NAMES = [
    ("sft/9", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("sft@stable", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("nobody/1", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("/no/such/folder", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MODEL_NAME"),
    ("sft/0", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MODEL_NAME"),
    ("SFT@LATEST", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MODEL_NAME"),
    ("reward/1", grpc.StatusCode.FAILED_PRECONDITION, "NOT_A_LANGUAGE_MODEL"),
]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_in_use(start, store):
    stub = start(store=store.root, model="sft/1")
    for name, code, reason in BAD_NAMES:
        with pytest.raises(grpc.RpcError) as raised:
            stub.LoadModel(pb2.LoadModelRequest(model=name), timeout=TIMEOUT_S)
        assert (raised.value.code(), reason_of(raised.value).reason) == (code, reason), name
    assert stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).model.version == 1


def test_a_required_version_is_served_or_refused(start, store):
    stub = start(store=store.root, model="sft/2")
    sha256 = store.resolve("sft/2").version.weights_sha256
    for required in ({"version": 2}, {"version": 2, "weights_sha256": sha256}):
        message = request([GOOD], required_model=model_pb2.ModelVersion(name="sft", **required))
        assert stub.LogProbs(message, timeout=TIMEOUT_S).model.version == 2
    for required in ({"version": 1}, {"version": 99}, {"version": 2, "weights_sha256": "0" * 64}):
        message = request([GOOD], required_model=model_pb2.ModelVersion(name="sft", **required))
        with pytest.raises(grpc.RpcError) as raised:
            stub.LogProbs(message, timeout=TIMEOUT_S)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(raised.value).reason == "MODEL_VERSION_MISMATCH"


def damaged_copy(source: Path, target: Path, damage: Callable[[GPT2LMHeadModel], None]) -> Path:
    """A copy of a model after ``damage`` has changed its weights."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        damage(model)
    shutil.copytree(source, target)
    model.save_pretrained(target)
    return target


def test_weights_that_are_no_numbers_are_not_taken_into_use(start, gpt2, tmp_path):
    stub = start(model=str(gpt2))
    folder = damaged_copy(
        gpt2, tmp_path / "nan", lambda model: model.transformer.wte.weight[60].fill_(math.nan)
    )
    with pytest.raises(grpc.RpcError) as raised:
        stub.LoadModel(pb2.LoadModelRequest(model=str(folder)), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert reason_of(raised.value).reason == "WEIGHTS_NOT_FINITE"
    assert len(stub.LogProbs(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_logprobs_that_are_no_numbers_are_never_served(start, gpt2, tmp_path):
    # Weights and logits are finite; float32 overflows only when the logits are divided by the temperature.
    folder = damaged_copy(gpt2, tmp_path / "huge", lambda model: model.transformer.ln_f.weight.mul_(1e36))
    stub = start(model=str(folder))
    with pytest.raises(grpc.RpcError) as raised:
        stub.LogProbs(request([GOOD], temperature=1e-4), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert reason_of(raised.value).reason == "LOGPROBS_NOT_FINITE"


def test_a_model_that_does_not_exist_fails_the_start(start, tmp_path):
    with pytest.raises(NotFoundError) as raised:
        start(model="sft/1", store=tmp_path)
    assert raised.value.reason == "MODEL_NOT_FOUND"


def test_an_unknown_setting_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--tokn-budget", "5"])
    assert ended.value.code == 2
    assert "--tokn-budget" in capsys.readouterr().err


def process(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.reference", "--port=0", "--metrics-port=0", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_lets_a_running_call_answer_and_ends_with_code_0(gpt2):
    with process(f"--model={gpt2}", "--token-budget=64", "--drain-grace-s=60") as server:
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ANDON_READY "), server.stderr.read()
            ports = json.loads(ready.removeprefix("ANDON_READY "))
            assert ports["service"] == "reference"
            items = random_items(seed=3, count=150)
            with grpc.insecure_channel(f"127.0.0.1:{ports['port']}") as channel:
                call = pb2_grpc.ReferenceServiceStub(channel).LogProbs.future(
                    request(items), timeout=TIMEOUT_S
                )
                running = re.compile(r"^andon_model_running_calls 1\.0$", re.MULTILINE)
                while not running.search(metrics_page(ports["metrics_port"])):
                    assert not call.done()
                server.send_signal(signal.SIGTERM)
                answer = call.result(TIMEOUT_S)
            assert_close(answer, padded_logprobs(gpt2, items, 1.0))
            assert server.wait(TIMEOUT_S) == 0
            events = [json.loads(line)["event"] for line in server.stderr.read().splitlines()]
            assert events[-3:] == ["draining", "rpc_ended", "stopped"]
        finally:
            server.kill()


def metrics_page(port: int) -> str:
    page: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S).read()
    return page.decode()
