"""Backends without a server: settings that would be ignored, what numbers mean, what text cannot say."""

import math

import pytest

from andon.modeling.text import PromptTemplate, train_bpe_codec
from services.policy.backends.backend import LogprobBasis
from services.policy.backends.inference_server import TokenFile, status_error
from services.policy.backends.probe import LOW_TEMPERATURE, classify
from services.policy.backends.remote import seed_of_sample
from services.policy.backends.tgi import TgiServer
from services.policy.config import PolicyConfig
from services.policy.errors import InvalidSampleRequestError

URL = {"backend_url": "http://127.0.0.1:8080", "backend_model": "policy/1"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"backend_url": "http://127.0.0.1:8080"}, "backend_url"),
        ({"backend_model": "policy/1"}, "backend_model"),
        ({"backend_token_file": "/tmp/token"}, "backend_token_file"),
        ({"backend_timeout_s": 3.0}, "backend_timeout_s"),
        ({"backend": "tgi", **URL, "model": "policy/1"}, "model"),
        ({"backend": "tgi", **URL, "dtype": "bfloat16"}, "dtype"),
        ({"backend": "tgi", **URL, "device": "cuda:0"}, "device"),
        ({"backend": "openai", **URL, "threads": 2}, "threads"),
        ({"backend": "openai", **URL, "token_budget": 10}, "token_budget"),
        ({"backend": "openai", **URL, "cache_mib": 10}, "cache_mib"),
        ({"backend": "tgi", "backend_url": URL["backend_url"]}, "backend_model"),
        ({"backend": "openai", "backend_model": "policy/1"}, "backend_url"),
        ({"backend": "tgi", **URL, "backend_url": "127.0.0.1:8080"}, "backend_url"),
        ({"backend": "tgi", **URL, "backend_url": "http://user:secret@host"}, "backend_token_file"),
        ({"backend": "tgi", **URL, "backend_token_file": "/nowhere/token"}, "backend_token_file"),
        ({"backend": "vllm", **URL}, "backend"),
    ],
)
def test_settings_that_would_be_ignored_are_errors(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PolicyConfig(**values)


def test_settings_that_fit() -> None:
    assert PolicyConfig().backend == "builtin"
    assert PolicyConfig(backend="tgi", **URL).backend_url == URL["backend_url"]
    assert PolicyConfig(backend="openai", **URL, max_running_sequences=3).backend_model == "policy/1"


def softmax_logs(logits: list[float]) -> dict[int, float]:
    """By hand: x - log(sum of exp)."""
    total = math.log(math.fsum(map(math.exp, logits)))
    return {index: value - total for index, value in enumerate(logits)}


LOGITS = [3.0, 2.0, 0.5, -1.0, -2.0]


def test_what_log_probabilities_are_of() -> None:
    plain = softmax_logs(LOGITS)
    drawn = softmax_logs([value / LOW_TEMPERATURE for value in LOGITS])
    assert classify(plain, plain) is LogprobBasis.PLAIN
    assert classify(plain, drawn) is LogprobBasis.DRAWN
    # Noise of half precision changes nothing.
    noisy = {token: value + (-1) ** token * 0.05 for token, value in drawn.items()}
    assert classify(plain, noisy) is LogprobBasis.DRAWN
    noisy = {token: value + (-1) ** token * 0.05 for token, value in plain.items()}
    assert classify(plain, noisy) is LogprobBasis.PLAIN


def test_numbers_that_tell_nothing() -> None:
    plain = softmax_logs(LOGITS)
    half_way = softmax_logs([value * 2 for value in LOGITS])
    flat = softmax_logs([0.01, 0.0, 0.005, 0.002])
    assert classify(plain, half_way) is None, "neither"
    assert classify(flat, flat) is None, "both explain it"
    assert classify(plain, {7: -1.0, 0: -0.1}) is None, "one token in common"


def test_a_prompt_that_no_text_stands_for() -> None:
    codec = train_bpe_codec(
        ["the cat sat on the mat " * 50], 300, template=PromptTemplate(template="{document}\nTL;DR:")
    )
    server = TgiServer("http://127.0.0.1:9", tokenizer=codec.tokenizer, token=TokenFile(None), timeout_s=1.0)
    prompt = codec.encode_document("the cat sat on  the mat, \u00fcber \u65e5\u672c")
    server.check_prompt(tuple(prompt), field="prompts[0]")
    # The letters of a word that the tokenizer knows as one token.
    letters = [codec.tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    assert len(codec.tokenizer("the").input_ids) == 1
    with pytest.raises(InvalidSampleRequestError) as caught:
        server.check_prompt(tuple(letters), field="prompts[3]")
    assert (caught.value.reason, caught.value.metadata["field"]) == ("UNSUPPORTED_BY_BACKEND", "prompts[3]")


def test_seeds_of_samples() -> None:
    seeds = {seed_of_sample(seed, index) for seed in (0, 1, 2**63 - 1) for index in range(1000)}
    assert len(seeds) == 3000
    assert all(1 <= seed < 2**63 for seed in seeds)
    assert seed_of_sample(1, 12) != seed_of_sample(11, 2)


@pytest.mark.parametrize(
    ("header", "hint"),
    [("5", "5.000"), ("0.25", "0.250"), ("99999", "60.000"), ("-3", None), ("soon", None), ("nan", None)],
)
def test_hints_of_when_to_come_back(header: str, hint: str | None) -> None:
    error = status_error(backend="tgi", status=503, message="", headers={"retry-after": header})
    assert error.metadata.get("retry_after_s") == hint
