"""Sampling over real gRPC: what is written, what an answer carries, and bad requests."""

import concurrent.futures
import math

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM

from andon.api.common.v1 import model_pb2
from andon.api.common.v1.sequence_pb2 import Prompt
from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from tests.policy_stand import POSITIONS, TIMEOUT_S, request_of, tokens_of
from tests.rpc_errors import reason_of

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
