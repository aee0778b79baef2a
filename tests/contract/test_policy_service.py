"""The policy service over real gRPC: sampling, bad input, weight updates, cancellation, kill and restart."""

import concurrent.futures
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from andon.api.common.v1 import model_pb2
from andon.api.common.v1.sequence_pb2 import Prompt, TokenIds
from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.api.policy.v1 import policy_service_pb2_grpc as pb_grpc
from andon.modeling.loading import load_causal_lm, new_causal_lm, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import model_weights, weights_sha256
from andon.modeling.weight_image import image_of
from services.policy.__main__ import main
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService

TIMEOUT_S = 60
POSITIONS = 64
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)], max_document_tokens=20)


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with policy/1 and policy/2 of one shape, policy/3 of another, and a reward model's folder."""
    torch.set_num_threads(1)
    models = ModelStore(tmp_path_factory.mktemp("store"))
    for seed, architecture in (
        (1, ARCHITECTURE),
        (2, ARCHITECTURE),
        (3, {**ARCHITECTURE, "n_positions": 32}),
    ):
        model = new_causal_lm(architecture, codec, seed=seed)
        models.publish(
            "policy",
            lambda folder, model=model: save_model(model, codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
    return models


class Stand:
    """A running service with its stub and its metrics."""

    def __init__(self, stub: pb_grpc.PolicyServiceStub, registry: CollectorRegistry) -> None:
        self.stub = stub
        self.registry = registry

    def sample(self, *prompts: list[int] | str, **fields: object) -> pb.SampleResponse:
        return self.stub.Sample(request_of(*prompts, **fields), timeout=TIMEOUT_S)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def version(self) -> model_pb2.ModelVersion:
        return self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S).info.model


@pytest.fixture
def start(serve, connect, store: ModelStore) -> Callable[..., Stand]:
    """Starts a policy service."""

    def start_service(**values: object) -> Stand:
        fields = {"port": 0, "metrics_port": 0, "store": store.root, "model": "policy/1", **values}
        config = PolicyConfig(**fields)
        registry = CollectorRegistry()
        channel = connect(serve(PolicyService(config, registry), config, registry))
        return Stand(pb_grpc.PolicyServiceStub(channel), registry)

    return start_service


def prompt_of(prompt: list[int] | str) -> Prompt:
    return Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=TokenIds(ids=prompt))


def request_of(*prompts: list[int] | str, **fields: object) -> pb.SampleRequest:
    required = fields.pop("required_model", None)
    return pb.SampleRequest(
        prompts=[prompt_of(prompt) for prompt in prompts],
        parameters=pb.SamplingParameters(**{"max_new_tokens": 8, **fields}),
        required_model=required,
    )


def reason_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info


def tokens_of(response: pb.SampleResponse) -> list[list[list[int]]]:
    return [[list(sample.token_ids) for sample in result.samples] for result in response.results]


def update_messages(
    store: ModelStore, name: str, *, chunk_bytes: int = 10_000, **version_fields: object
) -> list[pb.UpdateWeightsRequest]:
    """The stream that gives a sampler the weights of a stored version, perhaps under another name."""
    stored = store.resolve(name)
    model = load_causal_lm(stored.path)
    return messages_of(model_weights(model), stored.version, chunk_bytes=chunk_bytes, **version_fields)


def messages_of(
    weights: dict[str, torch.Tensor],
    version: ModelVersion,
    *,
    chunk_bytes: int = 10_000,
    **version_fields: object,
) -> list[pb.UpdateWeightsRequest]:
    image = image_of(weights)
    header = image.header(version)
    fields = {
        "name": version.family,
        "version": version.version,
        "weights_sha256": version.weights_sha256,
        **version_fields,
    }
    first = pb.WeightsHeader(
        model=model_pb2.ModelVersion(**fields),
        tensors=[
            pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in header.tensors
        ],
        size_bytes=header.size_bytes,
        checksum=header.checksum,
    )
    return [
        pb.UpdateWeightsRequest(header=first),
        *(
            pb.UpdateWeightsRequest(chunk=pb.WeightsChunk(offset_bytes=chunk.offset_bytes, data=chunk.data))
            for chunk in image.chunks(chunk_bytes)
        ),
    ]


# --- sampling ---


def test_model_info(start, store: ModelStore, codec: TextCodec) -> None:
    info = start().stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S).info
    stored = store.resolve("policy/1").version
    assert (info.model.name, info.model.version) == ("policy", 1)
    assert info.model.weights_sha256 == stored.weights_sha256
    assert info.architecture == "GPT2LMHeadModel"
    assert (info.vocab_size, info.max_sequence_tokens) == (codec.vocab_size, POSITIONS)
    assert info.eos_token_id == codec.eos_token_id
    assert info.tokenizer_fingerprint == codec.fingerprint
    assert (info.dtype, info.device) == ("float32", "cpu")


def test_greedy_samples_are_what_plain_transformers_writes(
    start, store: ModelStore, codec: TextCodec
) -> None:
    response = start().sample("w1 w2 w3", [5, 6, 7, 8, 9, 10], temperature=0, max_new_tokens=10)
    plain = AutoModelForCausalLM.from_pretrained(store.resolve("policy/1").path).eval()
    assert list(response.results[0].prompt_token_ids) == codec.encode_document("w1 w2 w3")
    assert list(response.results[1].prompt_token_ids) == [5, 6, 7, 8, 9, 10]
    for result in response.results:
        ids = torch.tensor([list(result.prompt_token_ids)])
        written = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
        )
        assert list(result.samples[0].token_ids) == written[0, ids.shape[1] :].tolist()
        with torch.inference_mode():
            logprobs = plain(written).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, written[0, ids.shape[1] :, None])[:, 0].tolist()
        assert list(result.samples[0].logprobs) == pytest.approx(expected, abs=1e-4)


def test_answers_carry_everything(start, codec: TextCodec) -> None:
    response = start().sample([5, 6], [7], samples_per_prompt=3, seed=11, temperature=2.0)
    assert response.seed == 11
    assert (response.model.name, response.model.version) == ("policy", 1)
    assert [len(result.samples) for result in response.results] == [3, 3]
    compute_s = response.timing.compute_duration.ToNanoseconds()
    for result in response.results:
        for sample in result.samples:
            assert sample.model == response.model
            assert len(sample.logprobs) == len(sample.token_ids) <= 8
            assert all(logprob <= 0 and math.isfinite(logprob) for logprob in sample.logprobs)
            assert sample.text == codec.decode(sample.token_ids)
            ended = sample.token_ids[-1] == codec.eos_token_id
            assert sample.finish_reason == (pb.FINISH_REASON_EOS if ended else pb.FINISH_REASON_LENGTH)
            assert 0 < sample.first_token_duration.ToNanoseconds() <= compute_s


def test_a_seed_repeats_and_a_missing_one_is_drawn(start) -> None:
    stand = start()
    first = stand.sample([5, 6, 7], samples_per_prompt=4, temperature=2.0)
    again = stand.sample([5, 6, 7], samples_per_prompt=4, temperature=2.0, seed=first.seed)
    other = stand.sample([5, 6, 7], samples_per_prompt=4, temperature=2.0)
    assert tokens_of(first) == tokens_of(again)
    assert first.seed != other.seed
    assert tokens_of(first) != tokens_of(other)


def test_concurrent_callers_get_what_they_get_alone(start) -> None:
    stand = start(max_running_sequences=6)
    calls = [
        ([list(range(5, 8 + seed))], {"samples_per_prompt": 2, "seed": seed, "temperature": 1.5})
        for seed in range(12)
    ]
    alone = [tokens_of(stand.sample(*prompts, **fields)) for prompts, fields in calls]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda call: tokens_of(stand.sample(*call[0], **call[1])), calls))
    assert together == alone


def test_stop_text(start) -> None:
    stand = start()
    free = stand.sample([5, 6, 7], temperature=0, max_new_tokens=12).results[0].samples[0]
    words = free.text.split()
    stopped = stand.sample([5, 6, 7], temperature=0, max_new_tokens=12, stop=[words[3]]).results[0].samples[0]
    assert stopped.finish_reason == pb.FINISH_REASON_STOP
    assert words[3] not in stopped.text
    assert list(stopped.token_ids) == list(free.token_ids)[: len(stopped.token_ids)]
    assert len(stopped.logprobs) == len(stopped.token_ids)


def test_stop_token(start) -> None:
    stand = start()
    free = stand.sample([5, 6, 7], temperature=0, max_new_tokens=12).results[0].samples[0]
    third = free.token_ids[2]
    count = list(free.token_ids).index(third) + 1
    stopped = stand.sample([5, 6, 7], temperature=0, max_new_tokens=12, stop_token_ids=[third])
    sample = stopped.results[0].samples[0]
    assert list(sample.token_ids) == list(free.token_ids)[:count]
    assert sample.finish_reason == pb.FINISH_REASON_EOS


# --- bad input ---

BAD_REQUESTS: list[tuple[str, pb.SampleRequest, str]] = [
    ("no prompts", request_of(), "EMPTY_REQUEST"),
    (
        "prompt without content",
        pb.SampleRequest(prompts=[Prompt()], parameters={"max_new_tokens": 3}),
        "EMPTY_PROMPT",
    ),
    ("no text", request_of(" \n "), "EMPTY_PROMPT"),
    ("no tokens", request_of([5], []), "EMPTY_PROMPT"),
    ("token beyond the vocabulary", request_of([5, 64]), "TOKEN_OUT_OF_VOCABULARY"),
    ("negative token", request_of([-1]), "TOKEN_OUT_OF_VOCABULARY"),
    ("prompt too long", request_of([5] * POSITIONS), "SEQUENCE_TOO_LONG"),
    ("prompt and response too long", request_of([5] * 60, max_new_tokens=5), "SEQUENCE_TOO_LONG"),
    ("no length", request_of([5], max_new_tokens=0), "INVALID_SAMPLING_PARAMETER"),
    ("negative length", request_of([5], max_new_tokens=-1), "INVALID_SAMPLING_PARAMETER"),
    ("length beyond the model", request_of([5], max_new_tokens=10_000), "INVALID_SAMPLING_PARAMETER"),
    ("temperature NaN", request_of([5], temperature=math.nan), "INVALID_SAMPLING_PARAMETER"),
    ("temperature infinite", request_of([5], temperature=math.inf), "INVALID_SAMPLING_PARAMETER"),
    ("negative temperature", request_of([5], temperature=-0.5), "INVALID_SAMPLING_PARAMETER"),
    ("temperature next to 0", request_of([5], temperature=1e-300), "INVALID_SAMPLING_PARAMETER"),
    ("top_p 0", request_of([5], top_p=0), "INVALID_SAMPLING_PARAMETER"),
    ("top_p above 1", request_of([5], top_p=1.01), "INVALID_SAMPLING_PARAMETER"),
    ("top_p NaN", request_of([5], top_p=math.nan), "INVALID_SAMPLING_PARAMETER"),
    ("negative samples", request_of([5], samples_per_prompt=-1), "INVALID_SAMPLING_PARAMETER"),
    ("more samples than run", request_of([5], samples_per_prompt=33), "INVALID_SAMPLING_PARAMETER"),
    ("too many samples", request_of(*[[5]] * 11, samples_per_prompt=10), "TOO_MANY_SAMPLES"),
    ("empty stop text", request_of([5], stop=[".", " ", ""]), "INVALID_SAMPLING_PARAMETER"),
    ("long stop text", request_of([5], stop=["x" * 1000]), "INVALID_SAMPLING_PARAMETER"),
    ("many stop texts", request_of([5], stop=["x"] * 17), "INVALID_SAMPLING_PARAMETER"),
    ("many stop tokens", request_of([5], stop_token_ids=[5] * 17), "INVALID_SAMPLING_PARAMETER"),
    ("stop token beyond the vocabulary", request_of([5], stop_token_ids=[64]), "INVALID_SAMPLING_PARAMETER"),
]


def test_bad_requests_are_told_why_and_harm_nobody(start) -> None:
    stand = start(max_running_sequences=32, max_samples_per_call=100)
    expected = tokens_of(stand.sample([5, 6], seed=1))
    for name, bad, reason in BAD_REQUESTS:
        with pytest.raises(grpc.RpcError) as refused:
            stand.stub.Sample(bad, timeout=TIMEOUT_S)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        assert reason_of(refused.value).reason == reason, name
        assert reason_of(refused.value).metadata["field"], name
    assert tokens_of(stand.sample([5, 6], seed=1)) == expected


def test_a_prompt_larger_than_the_cache(start) -> None:
    # Keys and values of a token take 2 layers x 2 x 32 x 4 bytes, so 1 MiB holds 2048 tokens.
    stand = start(cache_mib=1, max_running_sequences=512)
    with pytest.raises(grpc.RpcError) as refused:
        stand.sample([5], samples_per_prompt=100, max_new_tokens=50)
    assert reason_of(refused.value).reason == "SEQUENCE_TOO_LONG"
    assert len(stand.sample([5], samples_per_prompt=100, max_new_tokens=20).results[0].samples) == 100


def test_an_oversized_message(start) -> None:
    stand = start(max_message_bytes=20_000)
    with pytest.raises(grpc.RpcError) as refused:
        stand.sample([5] * 30_000)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stand.sample([5])


@pytest.mark.parametrize(
    "required", [("policy", 2, ""), ("sft", 1, ""), ("policy", 1, "f" * 64), ("", 0, "")]
)
def test_another_version_than_required(start, required: tuple[str, int, str]) -> None:
    name, version, digest = required
    with pytest.raises(grpc.RpcError) as refused:
        start().sample(
            [5], required_model=model_pb2.ModelVersion(name=name, version=version, weights_sha256=digest)
        )
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value).reason == "MODEL_VERSION_MISMATCH"


def test_without_a_model(start, store: ModelStore) -> None:
    stand = start(model=None)
    calls = (
        lambda: stand.sample([5]),
        lambda: stand.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S),
        lambda: stand.stub.UpdateWeights(iter(update_messages(store, "policy/1")), timeout=TIMEOUT_S),
    )
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(refused.value).reason == "MODEL_NOT_LOADED"
    loaded = stand.stub.LoadModel(pb.LoadModelRequest(model="policy/2"), timeout=TIMEOUT_S)
    assert loaded.info.model.version == 2
    assert stand.sample([5]).model.version == 2


# --- weights ---


def test_an_update_is_in_use_when_it_is_acknowledged(start, store: ModelStore) -> None:
    stand, target = start(model="policy/1"), start(model="policy/2")
    before = tokens_of(stand.sample([5, 6, 7], seed=3))
    answer = stand.stub.UpdateWeights(iter(update_messages(store, "policy/2")), timeout=TIMEOUT_S)
    assert answer.model == stand.version() == target.version()
    assert answer.apply_duration.ToNanoseconds() > 0
    response = stand.sample([5, 6, 7], seed=3, required_model=answer.model)
    assert response.model == response.results[0].samples[0].model == answer.model
    assert tokens_of(response) == tokens_of(target.sample([5, 6, 7], seed=3)) != before
    assert stand.value("andon_policy_weight_updates_total", result="ok") == 1
    assert stand.value("andon_model_info", model_name="policy", model_version="2") == 1


def test_a_repeated_update_succeeds_without_effect(start, store: ModelStore) -> None:
    stand = start(model="policy/1")
    messages = update_messages(store, "policy/2")
    first = stand.stub.UpdateWeights(iter(messages), timeout=TIMEOUT_S)
    again = stand.stub.UpdateWeights(iter(messages), timeout=TIMEOUT_S)
    assert again.model == first.model
    assert stand.value("andon_policy_weight_updates_total", result="unchanged") == 1


def without_header(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    return messages[1:]


def with_two_headers(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    return [messages[0], messages[0], *messages[1:]]


def with_gap(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    return [messages[0], *messages[2:]]


def cut_off(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    return messages[:-1]


def with_flipped_bit(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    data = bytearray(messages[1].chunk.data)
    data[100] ^= 1
    messages[1].chunk.data = bytes(data)
    return messages


def with_more_values_than_bytes(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    tensor = messages[0].header.tensors[0]
    tensor.shape[:] = [2, *tensor.shape]
    return messages


def without_version(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    messages[0].header.model.version = 0
    return messages


def without_digest(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    messages[0].header.model.weights_sha256 = ""
    return messages


def without_checksum(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    messages[0].header.checksum = ""
    return messages


def as_active_version(messages: list[pb.UpdateWeightsRequest]) -> list[pb.UpdateWeightsRequest]:
    messages[0].header.model.version = 1
    return messages


@pytest.mark.parametrize(
    ("spoil", "code", "reason"),
    [
        (lambda _: [], "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (lambda _: [pb.UpdateWeightsRequest()], "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (without_header, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (with_two_headers, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (with_gap, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (with_more_values_than_bytes, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (without_version, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (without_digest, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (without_checksum, "INVALID_ARGUMENT", "WEIGHTS_MALFORMED"),
        (cut_off, "DATA_LOSS", "WEIGHTS_TRUNCATED"),
        (with_flipped_bit, "DATA_LOSS", "WEIGHTS_CHECKSUM_MISMATCH"),
        (as_active_version, "FAILED_PRECONDITION", "MODEL_VERSION_CONFLICT"),
    ],
)
def test_spoilt_weights_are_refused_and_the_old_ones_stay(
    start, store: ModelStore, spoil: Callable[..., list[pb.UpdateWeightsRequest]], code: str, reason: str
) -> None:
    stand = start(model="policy/1")
    before = stand.sample([5, 6, 7], seed=3)
    with pytest.raises(grpc.RpcError) as refused:
        stand.stub.UpdateWeights(iter(spoil(update_messages(store, "policy/2"))), timeout=TIMEOUT_S)
    assert refused.value.code().name == code
    assert reason_of(refused.value).reason == reason
    after = stand.sample([5, 6, 7], seed=3)
    assert after.model == before.model
    assert tokens_of(after) == tokens_of(before)
    assert stand.value("andon_policy_weight_updates_total", result=reason) == 1
    # The way is free for the next update.
    answer = stand.stub.UpdateWeights(iter(update_messages(store, "policy/2")), timeout=TIMEOUT_S)
    assert answer.model.version == 2


def test_weights_of_another_shape(start, store: ModelStore) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        start(model="policy/1").stub.UpdateWeights(
            iter(update_messages(store, "policy/3")), timeout=TIMEOUT_S
        )
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value).reason == "WEIGHTS_SHAPE_MISMATCH"


def test_weights_that_are_not_numbers(start, store: ModelStore) -> None:
    model = load_causal_lm(store.resolve("policy/2").path)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = torch.inf
    weights = model_weights(model)
    messages = messages_of(weights, ModelVersion("policy", 9, weights_sha256(weights)))
    with pytest.raises(grpc.RpcError) as refused:
        start().stub.UpdateWeights(iter(messages), timeout=TIMEOUT_S)
    assert refused.value.code() == grpc.StatusCode.DATA_LOSS
    assert reason_of(refused.value).reason == "WEIGHTS_NOT_FINITE"


def test_a_sender_that_goes_away_leaves_the_way_free(start, store: ModelStore) -> None:
    stand = start(model="policy/1")
    begun, gone = threading.Event(), threading.Event()

    def stalling() -> Iterator[pb.UpdateWeightsRequest]:
        messages = update_messages(store, "policy/2")
        yield from messages[:2]
        begun.set()
        gone.wait(TIMEOUT_S)

    call = stand.stub.UpdateWeights.future(stalling(), timeout=TIMEOUT_S)
    assert begun.wait(TIMEOUT_S)
    call.cancel()
    gone.set()
    answer = stand.stub.UpdateWeights(iter(update_messages(store, "policy/2")), timeout=TIMEOUT_S)
    assert answer.model.version == 2


def test_updates_under_load_never_mix_versions(start, store: ModelStore) -> None:
    """Every answer is exactly what one of the two versions writes, and says which one."""
    stand = start(model="policy/1", max_running_sequences=8)
    streams = {1: update_messages(store, "policy/1"), 2: update_messages(store, "policy/2")}
    expected: dict[int, list[list[list[int]]]] = {}
    for version in (2, 1):
        stand.stub.UpdateWeights(iter(streams[version]), timeout=TIMEOUT_S)
        expected[version] = tokens_of(stand.sample([5, 6, 7], [8, 9], samples_per_prompt=2, seed=5))
    assert expected[1] != expected[2]
    stopping = threading.Event()
    seen: set[int] = set()

    def keep_sampling() -> int:
        count = 0
        while not stopping.is_set():
            response = stand.sample([5, 6, 7], [8, 9], samples_per_prompt=2, seed=5)
            assert tokens_of(response) == expected[response.model.version]
            seen.add(response.model.version)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        samplers = [pool.submit(keep_sampling) for _ in range(4)]
        for version in (2, 1) * 5:
            answer = stand.stub.UpdateWeights(iter(streams[version]), timeout=TIMEOUT_S)
            assert answer.model.version == version
            assert stand.sample([5]).model.version == version
        stopping.set()
        counts = [sampler.result(TIMEOUT_S) for sampler in samplers]
    assert min(counts) > 0
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("policy/99", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("policy@nowhere", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("/no/such/folder", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("", "INVALID_ARGUMENT", "INVALID_MODEL_NAME"),
        ("policy/0", "INVALID_ARGUMENT", "INVALID_MODEL_NAME"),
    ],
)
def test_models_that_cannot_be_loaded(start, name: str, code: str, reason: str) -> None:
    stand = start()
    with pytest.raises(grpc.RpcError) as refused:
        stand.stub.LoadModel(pb.LoadModelRequest(model=name), timeout=TIMEOUT_S)
    assert refused.value.code().name == code
    assert reason_of(refused.value).reason == reason
    assert stand.sample([5]).model.version == 1


# --- load and life ---


def test_a_full_queue_answers_at_once(start) -> None:
    stand = start(max_running_sequences=1, max_queued_calls=1)
    blocked = request_of([5], max_new_tokens=60, temperature=2.0, samples_per_prompt=1)
    many = [pb.SampleRequest() for _ in range(30)]
    for each in many:
        each.CopyFrom(blocked)
    futures = [stand.stub.Sample.future(each, timeout=TIMEOUT_S) for each in many]
    codes = [future.code() for future in futures]
    assert grpc.StatusCode.OK in codes
    refused = [future for future in futures if future.code() != grpc.StatusCode.OK]
    assert refused, "thirty calls at once must overflow a queue of one"
    for future in refused:
        assert future.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(future).reason == "QUEUE_FULL"
    assert stand.value("andon_policy_rejected_calls_total") == len(refused)
    stand.sample([5])


def test_a_cancelled_call_makes_room(start) -> None:
    stand = start(max_running_sequences=1, max_samples_per_call=8192)
    long_call = stand.stub.Sample.future(
        request_of(*[[5]] * 8000, max_new_tokens=60, temperature=2.0), timeout=TIMEOUT_S
    )
    other = stand.stub.Sample.future(request_of([6]), timeout=TIMEOUT_S)
    long_call.cancel()
    assert len(other.result(TIMEOUT_S).results) == 1


def test_a_deadline_ends_a_call_and_frees_its_room(start) -> None:
    stand = start(max_running_sequences=1, max_samples_per_call=8192)
    with pytest.raises(grpc.RpcError) as late:
        stand.stub.Sample(request_of(*[[5]] * 8000, max_new_tokens=60, temperature=2.0), timeout=0.3)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    stand.sample([5])


def test_another_models_tokens_and_limits_hold_after_loading_it(start) -> None:
    stand = start()
    stand.sample([5] * 40)
    info = stand.stub.LoadModel(pb.LoadModelRequest(model="policy/3"), timeout=TIMEOUT_S).info
    assert (info.model.version, info.max_sequence_tokens) == (3, 32)
    with pytest.raises(grpc.RpcError) as refused:
        stand.sample([5] * 40)
    assert reason_of(refused.value).reason == "SEQUENCE_TOO_LONG"
    assert stand.sample([5] * 20).model.version == 3


def test_a_damaged_start_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--modle", "policy/1"])
    assert stopped.value.code == 2
    arguments = ["--port", "0", "--metrics-port", "0", "--store", str(tmp_path), "--model", "policy/1"]
    assert main(arguments) == 1
    written = capsys.readouterr()
    assert "MODEL_NOT_FOUND" in written.out + written.err


def test_killed_and_started_again_it_serves_the_same(store: ModelStore, connect) -> None:
    """kill -9 in the middle of a call and of an update; a new process has the stored version, whole."""
    arguments = ["--port", "0", "--metrics-port", "0", "--store", str(store.root), "--model", "policy/1"]
    first, stub = _start_process(arguments)
    try:
        expected = stub.Sample(request_of([5, 6, 7], seed=1), timeout=TIMEOUT_S)
        running = stub.Sample.future(request_of(*[[5]] * 2000, max_new_tokens=60), timeout=TIMEOUT_S)
        first.kill()
        with pytest.raises(grpc.RpcError) as lost:
            running.result(TIMEOUT_S)
        assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        _end_process(first)
    second, stub = _start_process(arguments)
    try:
        again = stub.Sample(request_of([5, 6, 7], seed=1), timeout=TIMEOUT_S)
        assert again.model == expected.model
        assert tokens_of(again) == tokens_of(expected)
        second.terminate()
        assert second.wait(TIMEOUT_S) == 0
    finally:
        _end_process(second)


def _start_process(arguments: list[str]) -> tuple[subprocess.Popen[str], pb_grpc.PolicyServiceStub]:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.policy", *arguments, "--log-level", "ERROR"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    word, _, ready = process.stdout.readline().partition(" ")
    assert word == "ANDON_READY"
    return process, pb_grpc.PolicyServiceStub(grpc.insecure_channel(f"127.0.0.1:{json.loads(ready)['port']}"))


def _end_process(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
