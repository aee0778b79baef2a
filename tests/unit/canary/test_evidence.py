"""Parts of the evidence, by hand-made numbers."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from andon.client.policy import PromptSamples, Sample
from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.modeling.versions import ModelVersion
from services.canary.errors import MetricsUnreadableError
from services.canary.evidence.identity import Answers
from services.canary.evidence.judges import latency_values, longer_values, repetition_values
from services.canary.evidence.people import value_of
from services.canary.evidence.probes import Failure, Pair, Probe
from services.canary.evidence.samplers import TimedSamples
from services.canary.evidence.scrapes import Scrapes, answered, read_counts

SERVICE = "andon.api.policy.v1.PolicyService"
METRICS = f"""\
# HELP andon_rpc_handled_total Calls ended, by status code.
# TYPE andon_rpc_handled_total counter
andon_rpc_handled_total{{grpc_service="{SERVICE}",grpc_method="Sample",grpc_code="OK"}} 7.0
andon_rpc_handled_total{{grpc_service="{SERVICE}",grpc_method="Sample",grpc_code="INTERNAL"}} 2.0
andon_rpc_handled_total{{grpc_service="{SERVICE}",grpc_method="LoadModel",grpc_code="OK"}} 5.0
"""


def timed(*token_ids: int, seconds: float = 1.0) -> TimedSamples:
    sample = Sample(
        token_ids=token_ids,
        text=" ".join(map(str, token_ids)),
        logprobs=(-1.0,) * len(token_ids),
        finish_reason="eos",
        model=ModelVersion("policy", 1),
        first_token_s=0.1,
    )
    return TimedSamples(
        samples=PromptSamples(prompt_token_ids=(1,), samples=(sample,)),
        seconds=seconds,
        tokenizer_fingerprint="f",
    )


def test_values_are_the_larger_the_better_for_the_canary() -> None:
    pair = Pair(document="d", stable=timed(1, 2, 3, 1, 2, 3, seconds=2.0), canary=timed(1, 2, 3, seconds=1.0))
    assert longer_values([pair]) == pytest.approx([0.6931], abs=1e-4)  # half as long: ln 2
    assert repetition_values([pair]) == pytest.approx([0.25])  # one of stable's four 3-grams came before
    assert latency_values([pair]) == pytest.approx([0.6931], abs=1e-4)  # twice as fast


@pytest.mark.parametrize(
    ("stable", "canary", "expected"),
    [
        (timed(1), timed(1), 1.0),
        (timed(1), Failure(code="INTERNAL", reason="X"), 0.0),
        (Failure(code="UNAVAILABLE", reason="X"), Failure(code="UNAVAILABLE", reason="X"), 0.0),
        (timed(1), Failure(code="INVALID_ARGUMENT", reason="SEQUENCE_TOO_LONG"), 0.0),
        (
            Failure(code="INVALID_ARGUMENT", reason="SEQUENCE_TOO_LONG"),
            Failure(code="INVALID_ARGUMENT", reason="SEQUENCE_TOO_LONG"),
            None,
        ),
        (timed(1), Failure(code="RESOURCE_EXHAUSTED", reason="RATE_LIMITED"), None),
        (timed(1), Failure(code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL"), 0.0),
    ],
)
def test_a_failed_call_counts_unless_it_is_the_callers_fault(
    stable: TimedSamples | Failure, canary: TimedSamples | Failure, expected: float | None
) -> None:
    probe = Probe(document="d", stable=stable, canary=canary)
    assert probe.canary_answered == expected
    assert (probe.pair is None) is (expected != 1.0)


def test_an_empty_response_makes_no_pair() -> None:
    assert Probe(document="d", stable=timed(1), canary=timed()).pair is None


def test_calls_of_others_are_what_was_added_less_the_controllers_own() -> None:
    scrapes = Scrapes()
    look = scrapes.since_last
    assert look("a", Counter(OK=100), own_calls={"OK": 3}) == {}  # whose these were nobody knows
    assert look("a", Counter(OK=120, INTERNAL=4), own_calls={"OK": 15, "INTERNAL": 1}) == {
        "OK": 5,
        "INTERNAL": 3,
    }
    assert look("a", Counter(OK=6), own_calls={"OK": 2}) == {"OK": 4}  # a new process
    assert look("b", Counter(OK=50), own_calls={}) == {}


def test_only_failures_of_the_server_count_against_it() -> None:
    calls = {"OK": 5, "INTERNAL": 2, "UNAVAILABLE": 1, "INVALID_ARGUMENT": 3, "CANCELLED": 9}
    assert answered(calls) == {1.0: 8, 0.0: 3}
    assert answered({}) == {}


@pytest.fixture
def metrics_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 500)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, *_arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_counters_are_read_from_what_prometheus_reads(metrics_url: str) -> None:
    assert read_counts(f"{metrics_url}/metrics") == {"OK": 7, "INTERNAL": 2}
    for url in (f"{metrics_url}/broken", "http://127.0.0.1:1/metrics"):
        with pytest.raises(MetricsUnreadableError):
            read_counts(url)


def test_answers_are_the_same_only_to_the_last_digit_and_alike_where_one_model_may_waver() -> None:
    def answers(*logprobs: float, token: int = 1) -> Answers:
        return Answers(tokens=((token, 2),), logprobs=(logprobs,))

    known = answers(-1.0, -2.0)
    assert answers(-1.000001, -2.0).is_same(known)
    assert not answers(-1.0, -2.001).is_same(known)
    assert not answers(-1.0, -2.0, token=3).is_same(known)
    assert answers(-1.05, -7.0, token=3).is_like(known)
    assert not answers(-1.5, -2.0).is_like(known)


@pytest.mark.parametrize(("tiers", "expected"), [(((1,), (0,)), 1.0), (((0,), (1,)), 0.0), (((0, 1),), 0.5)])
def test_an_answer_of_a_person_is_for_the_canary_against_it_or_neither(
    tiers: tuple[tuple[int, ...], ...], expected: float
) -> None:
    record = ComparisonRecord(
        document_id="d",
        document="d",
        candidates=(
            CandidateRecord(text="a", policy_version="policy/1"),
            CandidateRecord(text="b", policy_version="policy/2"),
        ),
        tiers=tiers,
    )
    assert value_of(record, "policy/2") == expected
