"""The policy service before inference servers that fail, answer nonsense, or are asked for too much."""

import concurrent.futures
import copy
import math
import threading

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.inference_servers import Answer, Received
from tests.policy_stand import TIMEOUT_S, refused, replace_answers, request_of

# --- faults ---


@pytest.mark.parametrize(
    ("answer", "code", "reason", "retry_after_s"),
    [
        (Answer(status=429), "RESOURCE_EXHAUSTED", "BACKEND_OVERLOADED", 1.0),
        (
            Answer(status=429, headers={"retry-after": "7"}),
            "RESOURCE_EXHAUSTED",
            "BACKEND_OVERLOADED",
            7.0,
        ),
        (
            Answer(status=429, body={"error": "Model is overloaded", "error_type": "overloaded"}),
            "RESOURCE_EXHAUSTED",
            "BACKEND_OVERLOADED",
            1.0,
        ),
        (Answer(status=503, headers={"retry-after": "3"}), "UNAVAILABLE", "BACKEND_UNAVAILABLE", 3.0),
        (Answer(status=500, body=b"out of memory"), "UNAVAILABLE", "BACKEND_UNAVAILABLE", None),
        (
            Answer(status=424, body={"error": "Request failed", "error_type": "generation"}),
            "UNAVAILABLE",
            "BACKEND_UNAVAILABLE",
            None,
        ),
        (
            Answer(status=422, body={"error": "Input validation error", "error_type": "validation"}),
            "FAILED_PRECONDITION",
            "BACKEND_REFUSED",
            None,
        ),
        (
            Answer(status=400, body={"error": {"message": "no"}}),
            "FAILED_PRECONDITION",
            "BACKEND_REFUSED",
            None,
        ),
        (Answer(status=401), "FAILED_PRECONDITION", "BACKEND_REFUSED", None),
        (Answer(status=307, headers={"location": "http://127.0.0.1:9/"}), None, None, None),
        (Answer(body=b'{"generated_text": "w1'), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body=b"<html>"), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body=b""), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body=b"[]"), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body=b"null"), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body=b'"text"'), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body={}), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (Answer(body={"choices": [], "generated_text": ""}), "INTERNAL", "BACKEND_ANSWER_INVALID", None),
        (
            Answer(body={"choices": [{"token_ids": "x", "logprobs": 3}], "details": {"tokens": 3}}),
            "INTERNAL",
            "BACKEND_ANSWER_INVALID",
            None,
        ),
    ],
)
def test_errors_of_a_server(
    start,
    fake,
    backend: str,
    answer: Answer,
    code: str | None,
    reason: str | None,
    retry_after_s: float | None,
) -> None:
    server = fake(backend)
    stand = start(server)
    replace_answers(server, lambda request, _: answer)
    actual, info, status = refused(lambda: stand.sample([5], seed=1))
    if code is not None:
        assert (actual.name, info.reason) == (code, reason)
    else:
        assert info.reason in ("BACKEND_REFUSED", "BACKEND_ANSWER_INVALID", "BACKEND_UNAVAILABLE")
    hints = [
        hint.retry_delay.ToNanoseconds() / 1e9
        for detail in status.details
        if detail.Unpack(hint := error_details_pb2.RetryInfo())
    ]
    assert hints == ([] if retry_after_s is None else [retry_after_s])
    assert stand.value("andon_policy_failed_calls_total") == 1
    assert stand.value("andon_policy_running_sequences") == 0
    assert stand.value("andon_policy_waiting_calls") == 0
    server.change = None
    stand.sample([5], seed=1)


def spoil(backend: str, answer: Answer, how: str) -> Answer:
    """An answer of the right form that cannot be right."""
    body = copy.deepcopy(answer.body)
    assert isinstance(body, dict)
    if backend == "tgi":
        details = body["details"]
        tokens = details["tokens"]
        if how == "fewer tokens":
            details["tokens"] = tokens[:-1]
            details["generated_tokens"] -= 1
        elif how == "wrong count":
            details["generated_tokens"] += 1
        elif how == "no tokens":
            details["tokens"], details["generated_tokens"] = [], 0
        elif how == "more tokens":
            details["tokens"] = tokens + tokens
            details["generated_tokens"] *= 2
        elif how == "unknown token":
            tokens[1]["id"] = 64
        elif how == "positive":
            tokens[1]["logprob"] = 0.5
        elif how in ("nan", "null"):
            tokens[1]["logprob"] = math.nan if how == "nan" else None
    else:
        choice = body["choices"][0]
        numbers = choice["logprobs"]["token_logprobs"]
        if how == "fewer tokens":
            choice["token_ids"].pop()
            numbers.pop()
        elif how == "wrong count":
            numbers.pop()
        elif how == "no tokens":
            choice["token_ids"], choice["logprobs"]["token_logprobs"] = [], []
        elif how == "more tokens":
            choice["token_ids"] *= 2
            choice["logprobs"]["token_logprobs"] = numbers * 2
        elif how == "unknown token":
            choice["token_ids"][1] = 64
        elif how == "positive":
            numbers[1] = 0.5
        elif how in ("nan", "null"):
            numbers[1] = math.nan if how == "nan" else None
    return Answer(body=body)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("fewer tokens", "BACKEND_ANSWER_INVALID"),
        ("wrong count", "BACKEND_ANSWER_INVALID"),
        ("no tokens", "BACKEND_ANSWER_INVALID"),
        ("more tokens", "BACKEND_ANSWER_INVALID"),
        ("unknown token", "BACKEND_ANSWER_INVALID"),
        ("positive", "BACKEND_ANSWER_INVALID"),
        ("nan", "LOGITS_NOT_FINITE"),
        ("null", "LOGITS_NOT_FINITE"),
    ],
)
def test_answers_that_cannot_be_right(start, fake, backend: str, how: str, reason: str) -> None:
    server = fake(backend)
    stand = start(server)
    replace_answers(server, lambda request, answer: spoil(backend, answer, how))
    code, info, _ = refused(lambda: stand.sample([5, 6, 7], temperature=0, max_new_tokens=6))
    if (backend, how) == ("tgi", "nan"):  # not JSON; its client recurses for ever over it
        reason = "BACKEND_ANSWER_INVALID"
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, reason)


def test_silence_ends_at_the_backends_timeout(start, fake, backend: str) -> None:
    server = fake(backend)
    stand = start(server, backend_timeout_s=0.5)

    def silent(request: Received, answer: Answer) -> Answer:
        server.release.wait(TIMEOUT_S)
        return answer

    replace_answers(server, silent)
    code, info, _ = refused(lambda: stand.sample([5]))
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "BACKEND_TIMEOUT")


def test_a_server_that_is_gone(start, fake, backend: str) -> None:
    server = fake(backend)
    stand = start(server)
    replace_answers(server, lambda request, answer: Answer(body=b"x" * 10, headers={"content-length": "99"}))
    code, info, _ = refused(lambda: stand.sample([5]))
    assert info.reason in ("BACKEND_UNAVAILABLE", "BACKEND_ANSWER_INVALID")
    server.__exit__()
    code, info, _ = refused(lambda: stand.sample([6]))
    assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")


# --- load ---


def test_no_more_samples_at_once_than_allowed(start, fake, backend: str) -> None:
    server = fake(backend)
    stand = start(server, max_running_sequences=3)
    server.most_at_once = 0
    three = threading.Barrier(3)  # nobody is answered before three are there; 24 make eight times three

    def answer_three(request: Received, answer: Answer) -> Answer:
        three.wait(TIMEOUT_S)
        return answer

    replace_answers(server, answer_three)
    stand.sample(*[[5, index] for index in range(5, 17)], samples_per_prompt=2, max_new_tokens=2)
    assert server.most_at_once == 3
    assert stand.value("andon_policy_response_tokens_count") == 24


def test_a_full_queue_and_a_caller_that_leaves(start, fake, backend: str) -> None:
    server = fake(backend)
    stand = start(server, max_running_sequences=1, max_queued_calls=1)
    arrived = concurrent.futures.Future[None]()

    def hold(request: Received, answer: Answer) -> Answer:
        if not arrived.done():
            arrived.set_result(None)
        server.release.wait(TIMEOUT_S)
        return answer

    replace_answers(server, hold)
    running = stand.stub.Sample.future(request_of([5]), timeout=TIMEOUT_S)
    arrived.result(TIMEOUT_S)
    calls = [stand.stub.Sample.future(request_of([6]), timeout=TIMEOUT_S) for _ in range(4)]
    done, waiting = concurrent.futures.Future[None](), []
    for call in calls:
        call.add_done_callback(
            lambda ended: done.done() or sum(each.done() for each in calls) < 3 or done.set_result(None)
        )
    done.result(TIMEOUT_S)
    for call in calls:
        if call.done():
            assert refused(call.result)[1].reason == "QUEUE_FULL"
        else:
            waiting.append(call)
    assert len(waiting) == 1
    running.cancel()
    server.release.set()
    assert len(waiting[0].result(TIMEOUT_S).results) == 1
    assert stand.value("andon_policy_rejected_calls_total") == 3
    assert stand.value("andon_policy_cancelled_calls_total") == 1
