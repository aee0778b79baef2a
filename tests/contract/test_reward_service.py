"""The reward service over real gRPC, against plain transformers on padded batches."""

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
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from andon.api.common.v1 import model_pb2, sequence_pb2
from andon.api.reward.v1 import reward_service_pb2 as pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as pb2_grpc
from andon.errors import FailedPreconditionError
from andon.modeling.loading import load_scorer, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.normalization import Normalization
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from services.reward.__main__ import main
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from tests.rpc_errors import reason_of

TIMEOUT_S = 120
VOCAB_SIZE, POSITIONS = 64, 64
BIAS = -0.75  # of the tiny models' normalisation
ROOT = Path(__file__).parents[2]

Item = tuple[list[int], list[list[int]]]


def config(**values: object) -> RewardConfig:
    return RewardConfig(**{"port": 0, "metrics_port": 0, "drain_grace_s": 5.0, **values})


def ids(values: list[int]) -> sequence_pb2.TokenIds:
    return sequence_pb2.TokenIds(ids=values)


def request(items: list[Item], **fields: object) -> pb2.ScoreRequest:
    return pb2.ScoreRequest(
        items=[
            pb2.ScoreItem(
                document=sequence_pb2.Prompt(token_ids=ids(document)),
                summaries=[sequence_pb2.Response(token_ids=ids(summary)) for summary in summaries],
            )
            for document, summaries in items
        ],
        **fields,
    )


def random_items(seed: int, count: int) -> list[Item]:
    generator = random.Random(seed)

    def sequence(longest: int) -> list[int]:
        return [generator.randrange(4, VOCAB_SIZE) for _ in range(generator.randint(1, longest))]

    return [(sequence(30), [sequence(20) for _ in range(generator.randint(1, 4))]) for _ in range(count)]


def padded_scores(folder: Path, items: list[Item]) -> list[list[float]]:
    """The textbook way: every document and summary is a row, padded on the right, with an attention mask."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [document + summary for document, summaries in items for summary in summaries]
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), model.config.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    with torch.no_grad():
        flat = iter(model(input_ids, attention_mask=mask).logits[:, 0].tolist())
    return [[next(flat) for _ in summaries] for _, summaries in items]


def assert_scores(answer: pb2.ScoreResponse, items: list[Item], raw_scores: list[list[float]]) -> None:
    got = [[summary.raw_score for summary in item.summaries] for item in answer.items]
    assert list(map(len, got)) == list(map(len, raw_scores))
    for got_row, expected_row in zip(got, raw_scores, strict=True):
        assert got_row == pytest.approx(expected_row, abs=1e-4)
    for item, (_, summaries) in zip(answer.items, items, strict=True):
        assert [summary.token_count for summary in item.summaries] == list(map(len, summaries))


@pytest.fixture
def start(serve, connect):
    """Starts a reward service; gives its stub."""

    def start_service(
        registry: CollectorRegistry | None = None, **values: object
    ) -> pb2_grpc.RewardServiceStub:
        settings = config(**values)
        registry = registry or CollectorRegistry()
        running = serve(RewardService(settings, registry), settings, registry)
        return pb2_grpc.RewardServiceStub(connect(running))

    return start_service


@pytest.fixture(scope="module")
def llama(make_tiny_model) -> Path:
    return make_tiny_model("llama", "reward_model")


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("token_budget", [8192, 50])
def test_scores_equal_a_plain_padded_forward_pass(start, make_tiny_model, model_type, token_budget):
    folder = make_tiny_model(model_type, "reward_model")
    stub = start(model=str(folder), token_budget=token_budget)
    items = random_items(seed=1, count=9)
    answer = stub.Score(request(items), timeout=TIMEOUT_S)
    assert_scores(answer, items, padded_scores(folder, items))


def test_answers_carry_the_version_and_the_normalisation_that_was_applied(start, llama):
    stub = start(model=str(llama))
    answer = stub.Score(request(random_items(seed=2, count=3)), timeout=TIMEOUT_S)
    assert (answer.model.name, answer.model.version) == (str(llama), 0)
    assert answer.normalization == pb2.Normalization(
        method=pb2.NORMALIZATION_METHOD_REFERENCE_ZERO, gain=1.0, bias=BIAS
    )
    for item in answer.items:
        for summary in item.summaries:
            assert summary.score == pytest.approx(summary.raw_score + BIAS, abs=1e-6)
    info = stub.GetModelInfo(pb2.GetModelInfoRequest(), timeout=TIMEOUT_S)
    assert info.normalization == answer.normalization
    assert info.info.architecture == "LlamaForSequenceClassification"


def test_the_score_of_a_summary_does_not_depend_on_its_neighbours(start, llama):
    stub = start(model=str(llama))
    (document, summaries) = ([9, 10, 11, 12], [[20, 3], [21, 22, 3], [23]])
    together = stub.Score(request([(document, summaries)]), timeout=TIMEOUT_S).items[0]
    for index, summary in enumerate(summaries):
        alone = stub.Score(request([(document, [summary])]), timeout=TIMEOUT_S).items[0].summaries[0]
        assert alone.score == pytest.approx(together.summaries[index].score, abs=1e-5)


def test_text_means_the_template_the_words_and_the_end_of_sequence(start, llama):
    stub = start(model=str(llama))
    as_text = pb2.ScoreRequest(
        items=[
            pb2.ScoreItem(
                document=sequence_pb2.Prompt(text="w3 w0 never"),
                summaries=[sequence_pb2.Response(text="w59 w1")],
            )
        ]
    )
    got = stub.Score(as_text, timeout=TIMEOUT_S).items[0].summaries[0]
    by_hand = stub.Score(request([([7, 4, 1, 2], [[63, 5, 3]])]), timeout=TIMEOUT_S).items[0].summaries[0]
    assert got.score == pytest.approx(by_hand.score, abs=1e-6)
    assert got.token_count == 3


def test_many_callers_at_once_each_get_their_own_answer(start, llama):
    stub = start(model=str(llama))
    requests = [random_items(seed=seed, count=3) for seed in range(12)]
    calls = [stub.Score.future(request(items), timeout=TIMEOUT_S) for items in requests]
    for items, call in zip(requests, calls, strict=True):
        assert_scores(call.result(TIMEOUT_S), items, padded_scores(llama, items))


GOOD: Item = ([5, 6], [[7, 3]])
TEXT = sequence_pb2.Prompt(text="w1 w2")

BAD_REQUESTS = [
    ("no items", pb2.ScoreRequest(), "EMPTY_REQUEST", {"field": "items"}),
    ("no document", request([([], [[5]])]), "EMPTY_PROMPT", {"field": "items[0].document"}),
    (
        "blank document",
        pb2.ScoreRequest(items=[pb2.ScoreItem(document=sequence_pb2.Prompt(text=" \n"))]),
        "EMPTY_PROMPT",
        {"field": "items[0].document"},
    ),
    ("no document set", pb2.ScoreRequest(items=[pb2.ScoreItem()]), "EMPTY_PROMPT", {}),
    ("no summaries", request([([5], [])]), "EMPTY_RESPONSE", {"field": "items[0].summaries"}),
    (
        "empty summary",
        request([GOOD, ([5], [[6], []])]),
        "EMPTY_RESPONSE",
        {"field": "items[1].summaries[1]"},
    ),
    (
        "blank summary",
        pb2.ScoreRequest(items=[pb2.ScoreItem(document=TEXT, summaries=[sequence_pb2.Response(text="\t")])]),
        "EMPTY_RESPONSE",
        {"field": "items[0].summaries[0]"},
    ),
    (
        "document outside of the vocabulary",
        request([([5, VOCAB_SIZE], [[5]])]),
        "TOKEN_OUT_OF_VOCABULARY",
        {"field": "items[0].document[1]", "token": "64", "vocab_size": "64"},
    ),
    (
        "negative token in a summary",
        request([([5], [[5, -1]])]),
        "TOKEN_OUT_OF_VOCABULARY",
        {"field": "items[0].summaries[0][1]", "token": "-1"},
    ),
    (
        "too long together",
        request([([5] * 60, [[6], [6] * 5])]),
        "SEQUENCE_TOO_LONG",
        {
            "field": "items[0].summaries[1]",
            "prompt_tokens": "60",
            "response_tokens": "5",
            "max_sequence_tokens": str(POSITIONS),
        },
    ),
    (
        "summary text too long",
        pb2.ScoreRequest(
            items=[pb2.ScoreItem(document=TEXT, summaries=[sequence_pb2.Response(text="w1 " * 500)])]
        ),
        "SEQUENCE_TOO_LONG",
        {"response_tokens": "501"},
    ),
]


def test_bad_requests_are_refused_with_a_reason_and_the_service_goes_on(start, llama):
    stub = start(model=str(llama))
    for name, message, reason, metadata in BAD_REQUESTS:
        with pytest.raises(grpc.RpcError) as raised:
            stub.Score(message, timeout=TIMEOUT_S)
        info = reason_of(raised.value)
        assert (raised.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason), name
        assert metadata.items() <= dict(info.metadata).items(), name
    assert len(stub.Score(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_an_oversized_message_is_refused_by_the_transport_and_the_service_goes_on(start, llama):
    stub = start(model=str(llama), max_message_bytes=4096)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Score(request([([5], [[6] * 40] * 200)]), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Score(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_a_full_queue_refuses_and_the_service_goes_on(serve, connect, server_loop, llama):
    settings, registry = config(model=str(llama), max_queued_calls=1), CollectorRegistry()
    service = RewardService(settings, registry)
    stub = pb2_grpc.RewardServiceStub(connect(serve(service, settings, registry)))
    began, let_go = threading.Event(), threading.Event()

    def hold_the_model_thread() -> None:
        began.set()
        assert let_go.wait(TIMEOUT_S)

    holding = asyncio.run_coroutine_threadsafe(service.worker.run(hold_the_model_thread), server_loop)
    assert began.wait(TIMEOUT_S)
    calls = [stub.Score.future(request([GOOD]), timeout=TIMEOUT_S) for _ in range(5)]
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
    assert len(stub.Score(request([GOOD]), timeout=TIMEOUT_S).items) == 1


def test_without_a_model_calls_are_refused_until_one_is_loaded(start, llama):
    stub = start()
    for call, message in ((stub.Score, request([GOOD])), (stub.GetModelInfo, pb2.GetModelInfoRequest())):
        with pytest.raises(grpc.RpcError) as raised:
            call(message, timeout=TIMEOUT_S)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(raised.value).reason == "MODEL_NOT_LOADED"
    stub.LoadModel(pb2.LoadModelRequest(model=str(llama)), timeout=TIMEOUT_S)
    assert len(stub.Score(request([GOOD]), timeout=TIMEOUT_S).items) == 1


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, make_tiny_model) -> ModelStore:
    """reward/1, and reward/2 with other weights and another normalisation."""
    in_bucket = request.param == "s3"
    models = ModelStore(f"s3://{request.getfixturevalue('s3_bucket')}" if in_bucket else tmp_path / "store")
    for seed, normalization in (
        (0, Normalization(method="reference_zero", gain=1.0, bias=0.5)),
        (5, Normalization(method="policy_unit", gain=2.0, bias=-1.0)),
    ):
        source = make_tiny_model("llama", "reward_model", seed=seed)
        model, codec = load_scorer(source), TextCodec.load(source)

        def write(folder: Path, model=model, codec=codec, normalization=normalization) -> None:
            save_model(model, codec, folder, normalization=normalization)

        draft = ManifestDraft(kind="reward_model", normalization=normalization)
        models.publish("reward", write, manifest=draft)
    return models


def test_models_are_loaded_from_the_store_with_their_normalisation(start, store):
    registry = CollectorRegistry()
    stub = start(registry, store=store.location, model="reward/1")
    first = stub.GetModelInfo(pb2.GetModelInfoRequest(), timeout=TIMEOUT_S)
    assert (first.info.model.name, first.info.model.version) == ("reward", 1)
    assert first.info.model.weights_sha256 == store.resolve("reward/1").version.weights_sha256
    assert first.normalization.bias == 0.5
    second = stub.LoadModel(pb2.LoadModelRequest(model="reward@latest"), timeout=TIMEOUT_S)
    assert second.info.model.version == 2
    assert second.normalization == pb2.Normalization(
        method=pb2.NORMALIZATION_METHOD_POLICY_UNIT, gain=2.0, bias=-1.0
    )
    answer = stub.Score(request([GOOD]), timeout=TIMEOUT_S)
    ((raw_score,),) = padded_scores(store.locate("reward/2").source, [GOOD])
    assert answer.items[0].summaries[0].score == pytest.approx(2.0 * raw_score - 1.0, abs=1e-4)
    assert answer.model == second.info.model
    labels = {"model_name": "reward", "model_version": "2"}
    assert registry.get_sample_value("andon_model_info", labels) == 1
    assert registry.get_sample_value("andon_model_info", {**labels, "model_version": "1"}) is None


BAD_NAMES = [
    ("reward/9", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("reward@stable", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("/no/such/folder", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MODEL_NAME"),
    ("reward/0", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MODEL_NAME"),
]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_in_use(start, store, make_tiny_model):
    stub = start(store=store.location, model="reward/1")
    a_language_model = (
        str(make_tiny_model("llama", "causal_lm")),
        grpc.StatusCode.FAILED_PRECONDITION,
        # The reward head is missing, or the configuration speaks of two classes.
        "(NOT_A_REWARD_MODEL|WEIGHTS_MISSING)",
    )
    for name, code, reason in [*BAD_NAMES, a_language_model]:
        with pytest.raises(grpc.RpcError) as raised:
            stub.LoadModel(pb2.LoadModelRequest(model=name), timeout=TIMEOUT_S)
        assert raised.value.code() is code, name
        assert re.fullmatch(reason, reason_of(raised.value).reason), name
    assert stub.Score(request([GOOD]), timeout=TIMEOUT_S).model.version == 1


def test_a_required_version_is_served_or_refused(start, store):
    stub = start(store=store.location, model="reward/2")
    sha256 = store.resolve("reward/2").version.weights_sha256
    for required in ({"version": 2}, {"version": 2, "weights_sha256": sha256}):
        message = request([GOOD], required_model=model_pb2.ModelVersion(name="reward", **required))
        assert stub.Score(message, timeout=TIMEOUT_S).model.version == 2
    for required in ({"version": 1}, {"version": 2, "weights_sha256": "0" * 64}):
        message = request([GOOD], required_model=model_pb2.ModelVersion(name="reward", **required))
        with pytest.raises(grpc.RpcError) as raised:
            stub.Score(message, timeout=TIMEOUT_S)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(raised.value).reason == "MODEL_VERSION_MISMATCH"


def damaged_copy(
    source: Path, target: Path, damage: Callable[[LlamaForSequenceClassification], None]
) -> Path:
    """A copy of a model after ``damage`` has changed its weights."""
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        damage(model)
    shutil.copytree(source, target)
    model.save_pretrained(target)
    return target


def test_weights_that_are_no_numbers_are_not_taken_into_use(start, llama, tmp_path):
    stub = start(model=str(llama))
    folder = damaged_copy(llama, tmp_path / "nan", lambda model: model.score.weight[0, 0].fill_(math.inf))
    with pytest.raises(grpc.RpcError) as raised:
        stub.LoadModel(pb2.LoadModelRequest(model=str(folder)), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert reason_of(raised.value).reason == "WEIGHTS_NOT_FINITE"


def test_scores_that_are_no_numbers_are_never_served(start, llama, tmp_path):
    # The weights are finite; float32 overflows only in the head.
    folder = damaged_copy(
        llama,
        tmp_path / "huge",
        lambda model: model.score.weight.copy_(torch.sign(model.score.weight) * 3e38),
    )
    registry = CollectorRegistry()
    stub = start(registry, model=str(folder))
    with pytest.raises(grpc.RpcError) as raised:
        stub.Score(request(random_items(seed=4, count=8)), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert reason_of(raised.value).reason == "SCORES_NOT_FINITE"
    assert registry.get_sample_value("andon_reward_not_finite_total") == 1


def test_scores_and_lengths_are_counted(start, llama):
    registry = CollectorRegistry()
    stub = start(registry, model=str(llama))
    answer = stub.Score(request([([5], [[6, 3], [7, 8, 3]]), ([9], [[10]])]), timeout=TIMEOUT_S)
    scores = [summary.score for item in answer.items for summary in item.summaries]
    assert registry.get_sample_value("andon_reward_documents_total") == 2
    assert registry.get_sample_value("andon_reward_score_count") == 3
    assert registry.get_sample_value("andon_reward_mean_score") == pytest.approx(sum(scores) / 3, abs=1e-5)
    assert registry.get_sample_value("andon_reward_summary_tokens_sum") == 6


def test_a_language_model_fails_the_start(start, make_tiny_model):
    with pytest.raises(FailedPreconditionError):
        start(model=str(make_tiny_model("llama", "causal_lm")))


def test_an_unknown_setting_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--tokn-budget", "5"])
    assert ended.value.code == 2
    assert "--tokn-budget" in capsys.readouterr().err


def test_sigterm_lets_a_running_call_answer_and_ends_with_code_0(llama):
    command = [sys.executable, "-m", "services.reward", "--port=0", "--metrics-port=0", f"--model={llama}"]
    with subprocess.Popen(
        [*command, "--token-budget=64", "--drain-grace-s=60"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ANDON_READY "), server.stderr.read()
            ports = json.loads(ready.removeprefix("ANDON_READY "))
            items = random_items(seed=3, count=150)
            with grpc.insecure_channel(f"127.0.0.1:{ports['port']}") as channel:
                call = pb2_grpc.RewardServiceStub(channel).Score.future(request(items), timeout=TIMEOUT_S)
                while "\nandon_model_running_calls 1.0\n" not in metrics_page(ports["metrics_port"]):
                    assert not call.done()
                server.send_signal(signal.SIGTERM)
                answer = call.result(TIMEOUT_S)
            assert_scores(answer, items, padded_scores(llama, items))
            assert server.wait(TIMEOUT_S) == 0
            events = [json.loads(line)["event"] for line in server.stderr.read().splitlines()]
            assert events[-3:] == ["draining", "rpc_ended", "stopped"]
        finally:
            server.kill()


def metrics_page(port: int) -> str:
    page: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S).read()
    return page.decode()
