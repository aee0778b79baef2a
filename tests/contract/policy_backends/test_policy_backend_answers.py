"""The policy service before inference servers: the built-in engine's answers, and what is refused."""

import copy
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM

from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.modeling.store import ModelStore
from tests.policy_stand import POSITIONS, TIMEOUT_S, refused, tokens_of

# --- the same answers ---


def test_greedy_answers_of_all_three_are_equal(start, fake) -> None:
    prompts = ("w1 w2 w3", [5, 6, 7, 8, 9, 10], [30, 31])
    answers = [
        start(server).sample(*prompts, temperature=0, max_new_tokens=12)
        for server in (None, fake("tgi"), fake("openai"), fake("openai", mode="processed_logprobs"))
    ]
    builtin = answers[0]
    for other in answers[1:]:
        assert tokens_of(other) == tokens_of(builtin)
        for result, expected in zip(other.results, builtin.results, strict=True):
            assert list(result.prompt_token_ids) == list(expected.prompt_token_ids)
            ours, theirs = result.samples[0], expected.samples[0]
            assert list(ours.logprobs) == pytest.approx(list(theirs.logprobs), abs=1e-4)
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert other.model == builtin.model
        assert other.tokenizer_fingerprint == builtin.tokenizer_fingerprint
        applied = copy.deepcopy(other.applied_parameters)
        applied.seed = builtin.applied_parameters.seed
        assert applied == builtin.applied_parameters


@pytest.mark.parametrize(
    ("name", "mode", "temperature", "top_p"),
    [
        ("tgi", None, 0.7, 1.0),
        ("tgi", None, 1.0, 1.0),
        ("openai", "processed_logprobs", 0.7, 1.0),
        ("openai", "raw_logprobs", 1.0, 0.8),
    ],
)
def test_log_probabilities_are_those_of_the_contract(
    start, fake, store: ModelStore, name: str, mode: str | None, temperature: float, top_p: float
) -> None:
    """Recomputed from the logits of plain transformers, whatever the server calls a log-probability."""
    server = fake(name) if mode is None else fake(name, mode=mode)
    answer = start(server).sample(
        [5, 6, 7], [9], samples_per_prompt=4, temperature=temperature, top_p=top_p, max_new_tokens=10
    )
    plain = AutoModelForCausalLM.from_pretrained(store.resolve("policy/1").path).eval()
    texts = set()
    for result in answer.results:
        prompt = list(result.prompt_token_ids)
        for sample in result.samples:
            ids = torch.tensor([[*prompt, *sample.token_ids]])
            with torch.inference_mode():
                logits = plain(ids).logits[0, len(prompt) - 1 : -1]
            expected = (logits / temperature).log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            assert list(sample.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)
            texts.add(tuple(sample.token_ids))
    assert len(texts) > 1, "the samples of one prompt have seeds of their own"


def test_a_seed_repeats_and_differs_from_others(start, fake, backend: str) -> None:
    stand = start(fake(backend))
    first = stand.sample([5, 6], [5, 6], samples_per_prompt=2, seed=3)
    assert first.seed == 3
    assert tokens_of(stand.sample([5, 6], [5, 6], samples_per_prompt=2, seed=3)) == tokens_of(first)
    assert tokens_of(stand.sample([5, 6], [5, 6], samples_per_prompt=2, seed=4)) != tokens_of(first)
    assert tokens_of(first)[0] != tokens_of(first)[1], "one prompt twice gives other samples"


def test_stop_texts_end_as_in_the_built_in_engine(start, fake, backend: str) -> None:
    ours, theirs = start(None), start(fake(backend))
    words = ours.sample([5, 6, 7], temperature=0, max_new_tokens=12).results[0].samples[0].text.split()
    # Also the inside of a word: a server that looks at the end of its text only goes on past it.
    for stop in (words[2], words[4][:1], f"{words[1]} {words[2]}", words[3][1:]):
        expected = ours.sample([5, 6, 7], temperature=0, max_new_tokens=12, stop=[stop]).results[0].samples[0]
        sample = theirs.sample([5, 6, 7], temperature=0, max_new_tokens=12, stop=[stop]).results[0].samples[0]
        assert list(sample.token_ids) == list(expected.token_ids), stop
        assert (sample.text, sample.finish_reason) == (expected.text, pb.FINISH_REASON_STOP)


def test_stop_tokens_of_a_server_that_takes_them(start, fake) -> None:
    ours, theirs = start(None), start(fake("openai"))
    third = ours.sample([5, 6, 7], temperature=0).results[0].samples[0].token_ids[2]
    expected = ours.sample([5, 6, 7], temperature=0, stop_token_ids=[third]).results[0].samples[0]
    sample = theirs.sample([5, 6, 7], temperature=0, stop_token_ids=[third]).results[0].samples[0]
    assert list(sample.token_ids) == list(expected.token_ids)
    assert sample.finish_reason == pb.FINISH_REASON_EOS


# --- capabilities ---


def test_capabilities_are_told(start, fake) -> None:
    builtin = start(None).info().capabilities
    assert (builtin.backend, builtin.takes_weights, builtin.loads_models) == ("builtin", True, True)
    assert builtin.logprob_basis == pb.LOGPROB_BASIS_EXACT
    tgi = start(fake("tgi")).info()
    assert (tgi.capabilities.backend, tgi.capabilities.takes_weights) == ("tgi", False)
    assert tgi.capabilities.logprob_basis == pb.LOGPROB_BASIS_DRAWN
    assert (tgi.capabilities.takes_token_ids, tgi.capabilities.takes_stop_token_ids) == (False, False)
    assert tgi.capabilities.max_stop_texts == 4
    assert tgi.info.device == "remote"
    for mode, basis in (
        ("raw_logprobs", pb.LOGPROB_BASIS_PLAIN),
        ("processed_logprobs", pb.LOGPROB_BASIS_DRAWN),
    ):
        info = start(fake("openai", mode=mode)).info()
        assert info.capabilities.logprob_basis == basis, mode
        assert (info.capabilities.takes_weights, info.capabilities.loads_models) == (False, False)
        assert info.info.max_sequence_tokens == POSITIONS


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("tgi", {"stop_token_ids": [5]}, "parameters.stop_token_ids"),
        ("tgi", {"top_p": 0.9}, "parameters.top_p"),
        ("tgi", {"stop": list("abcde")}, "parameters.stop"),
        ("openai", {"temperature": 0.7}, "parameters.temperature"),
        ("openai", {"temperature": 0.001}, "parameters.temperature"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(
    start, fake, name: str, fields: dict[str, Any], field: str
) -> None:
    server = fake(name)
    stand = start(server)
    before = len(server.requests)
    code, info, _ = refused(lambda: stand.sample([5], **fields))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_BY_BACKEND")
    assert info.metadata["field"] == field
    assert len(server.requests) == before, "nothing of it was sent"
    stand.sample([5])


def test_weights_and_other_models_are_refused(start, fake, backend: str) -> None:
    stand = start(fake(backend))
    header = pb.UpdateWeightsRequest(header=pb.WeightsHeader(model={"name": "policy", "version": 2}))
    for call in (
        lambda: stand.stub.UpdateWeights(iter([header]), timeout=TIMEOUT_S),
        lambda: stand.stub.LoadModel(pb.LoadModelRequest(model="policy/2"), timeout=TIMEOUT_S),
    ):
        code, info, _ = refused(call)
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_BY_BACKEND")
        assert info.metadata["backend"] == backend


def test_a_prompt_beyond_the_server(start, fake) -> None:
    stand = start(fake("tgi", max_input_tokens=30, max_total_tokens=48))
    assert refused(lambda: stand.sample([5] * 31))[1].reason == "SEQUENCE_TOO_LONG"
    assert refused(lambda: stand.sample([5] * 30, max_new_tokens=19))[1].reason == "SEQUENCE_TOO_LONG"
    stand.sample([5] * 30, max_new_tokens=18)
