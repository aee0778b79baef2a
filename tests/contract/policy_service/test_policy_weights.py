"""What a policy service samples with: weight updates over real gRPC, whole or spoilt, and stored models."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch

from andon.api.common.v1 import model_pb2
from andon.api.policy.v1 import policy_service_pb2 as pb
from andon.modeling.loading import load_causal_lm
from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import model_weights, weights_sha256
from andon.modeling.weight_image import image_of
from tests.policy_stand import TIMEOUT_S, tokens_of
from tests.rpc_errors import reason_of


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


def test_another_models_tokens_and_limits_hold_after_loading_it(start) -> None:
    stand = start()
    stand.sample([5] * 40)
    info = stand.stub.LoadModel(pb.LoadModelRequest(model="policy/3"), timeout=TIMEOUT_S).info
    assert (info.model.version, info.max_sequence_tokens) == (3, 32)
    with pytest.raises(grpc.RpcError) as refused:
        stand.sample([5] * 40)
    assert reason_of(refused.value).reason == "SEQUENCE_TOO_LONG"
    assert stand.sample([5] * 20).model.version == 3
