"""The policy service under load and over its life: full queues, cancellation, deadlines, kill and restart."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.api.policy.v1 import policy_service_pb2_grpc as pb_grpc
from andon.modeling.store import ModelStore
from services.policy.__main__ import main
from tests.policy_stand import TIMEOUT_S, request_of, tokens_of
from tests.rpc_errors import reason_of


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
        cwd=Path(__file__).parents[3],
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
