import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor

from andon.errors import AndonError, FailedPreconditionError, InvalidArgumentError
from andon.modeling.loading import new_causal_lm
from andon.modeling.shared_memory import SharedMemoryAddress
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import (
    ChunkBuffer,
    TensorSpec,
    WeightsHeader,
    check_header,
    check_weights,
    exchange_weights,
    load_weights,
    made_ready,
    model_weights,
    own_tensors,
    tensors_in,
    weights_checksum,
    weights_sha256,
)
from andon.modeling.weight_image import cut, image_of


def mixed_state() -> dict[str, Tensor]:
    """All types at odd offsets, a scalar, an empty tensor, a transposed one."""
    generator = torch.Generator().manual_seed(0)
    return {
        "b.half": torch.randn(3, generator=generator).half(),
        "c.single": torch.randn(2, 5, generator=generator).t(),
        "a.brain": torch.randn(3, 1, generator=generator).bfloat16(),
        "d.scalar": torch.tensor(1.5),
        "e.empty": torch.zeros(0, 4),
    }


def test_the_digest_is_what_the_contract_says() -> None:
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[0.5]]).bfloat16()}
    by_hand = b"a\0bfloat16\x001,1\0\x00\x3f" + b"b\0float32\x002\0\x00\x00\x80\x3f\x00\x00\x00\xc0"
    assert weights_sha256(state) == hashlib.sha256(by_hand).hexdigest()


def bytes_of(state: dict[str, Tensor]) -> bytes:
    """What the contract says follows a header."""
    return b"".join(
        bytes(state[name].contiguous().flatten().view(torch.uint8).tolist()) for name in sorted(state)
    )


def test_the_checksum_is_what_the_contract_says() -> None:
    state = mixed_state()
    assert weights_checksum(state) == xxhash.xxh3_128_hexdigest(bytes_of(state))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 16, 1 << 20])
def test_weights_come_back_bit_for_bit(chunk_bytes: int) -> None:
    state = mixed_state()
    header = header_of(state)
    assert header.size_bytes == 6 + 6 + 40 + 4
    buffer = ChunkBuffer(check_header(header))
    chunks = list(cut(bytes_of(state), chunk_bytes))
    assert all(len(chunk.data) == chunk_bytes for chunk in chunks[:-1])
    for chunk in chunks:
        buffer.add(chunk.offset_bytes, chunk.data)
    decoded = tensors_in(buffer.finish(), header.tensors)
    check_weights(decoded, header.checksum)
    assert decoded.keys() == state.keys()
    for name, tensor in state.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_image_has_the_bytes_of_the_rounded_weights(dtype: str) -> None:
    state = {name: tensor.float() for name, tensor in mixed_state().items()}
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    image = image_of(state, dtype)
    header = image.header(ModelVersion("policy", 4, "0" * 64))
    assert b"".join(chunk.data for chunk in image.chunks(16)) == bytes_of(rounded)
    assert (header.checksum, header.size_bytes) == (weights_checksum(rounded), len(bytes_of(rounded)))
    assert [spec.shape for spec in header.tensors] == [tuple(state[name].shape) for name in sorted(state)]
    state["d.scalar"] += 1
    image.fill(state)
    assert image.tensors["d.scalar"] == 2.5
    assert image.checksum() == weights_checksum(image.tensors) != header.checksum


def test_an_image_has_one_type_and_its_own_shapes() -> None:
    with pytest.raises(InvalidArgumentError):
        image_of(mixed_state())
    with pytest.raises(FailedPreconditionError) as caught:
        image_of({"a": torch.zeros(4)}).fill({"a": torch.zeros(5)})
    assert caught.value.reason == "WEIGHTS_SHAPE_MISMATCH"


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    state = {"a": torch.zeros(4), "b": torch.zeros(2)}
    others = [
        {"a": torch.zeros(4), "c": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.zeros(4)},
        {"a": torch.zeros(2, 2), "b": torch.zeros(2)},
        {"a": torch.zeros(8).half(), "b": torch.zeros(2)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.zeros(2)},
    ]
    assert len({weights_sha256(weights) for weights in (state, *others)}) == 6
    assert weights_sha256(dict(reversed(state.items()))) == weights_sha256(state)


def header_of(state: dict[str, Tensor]) -> WeightsHeader:
    return WeightsHeader(
        model=ModelVersion("policy", 4, weights_sha256(state)),
        tensors=tuple(
            TensorSpec(
                name=name,
                dtype=str(state[name].dtype).removeprefix("torch."),
                shape=tuple(state[name].shape),
            )
            for name in sorted(state)
        ),
        size_bytes=sum(tensor.nbytes for tensor in state.values()),
        checksum=weights_checksum(state),
    )


ELSEWHERE = SharedMemoryAddress(process_id=1, descriptor=3, name="andon-" + "0" * 32)
GOOD = header_of({"a": torch.zeros(4), "b": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (replace(GOOD, model=ModelVersion("policy", 4)), "WEIGHTS_MALFORMED"),
        (replace(GOOD, model=ModelVersion("policy", 4, "F" * 64)), "WEIGHTS_MALFORMED"),
        (replace(GOOD, checksum=""), "WEIGHTS_MALFORMED"),
        (replace(GOOD, tensors=()), "WEIGHTS_MALFORMED"),
        (replace(GOOD, tensors=GOOD.tensors[::-1]), "WEIGHTS_MALFORMED"),
        (replace(GOOD, base=ModelVersion("policy", 3), size_bytes=41), "WEIGHTS_MALFORMED"),
        (replace(GOOD, base=ModelVersion("policy", 3), size_bytes=-1), "WEIGHTS_MALFORMED"),
        (replace(GOOD, base=ModelVersion("policy", 3), memory=ELSEWHERE), "WEIGHTS_MALFORMED"),
        (replace(GOOD, size_bytes=41), "WEIGHTS_MALFORMED"),
        (replace(GOOD, tensors=GOOD.tensors[:1] * 2, size_bytes=32), "WEIGHTS_MALFORMED"),
        (
            replace(GOOD, tensors=(TensorSpec(name="a", dtype="int8", shape=(4,)), GOOD.tensors[1])),
            "WEIGHTS_MALFORMED",
        ),
        (
            replace(GOOD, tensors=(TensorSpec(name="a", dtype="float32", shape=(-4,)), GOOD.tensors[1])),
            "WEIGHTS_MALFORMED",
        ),
        (header_of({"a": torch.zeros(4), "b": torch.zeros(3, 2)}), "WEIGHTS_SHAPE_MISMATCH"),
        (header_of({"a": torch.zeros(4)}), "WEIGHTS_SHAPE_MISMATCH"),
        (
            header_of({"a": torch.zeros(4), "b": torch.zeros(2, 3), "c": torch.zeros(1)}),
            "WEIGHTS_SHAPE_MISMATCH",
        ),
    ],
)
def test_a_wrong_header_is_refused_before_its_bytes(header: WeightsHeader, reason: str) -> None:
    shapes = {"a": (4,), "b": (2, 3)}
    assert check_header(GOOD, expected_shapes=shapes) == 40
    with pytest.raises(AndonError) as caught:
        check_header(header, expected_shapes=shapes)
    assert caught.value.reason == reason


def received(header: WeightsHeader, data: bytes) -> dict[str, Tensor]:
    """The weights of a stream, as the policy service reads it."""
    buffer = ChunkBuffer(check_header(header)).add(0, data)
    state = tensors_in(buffer.finish(), header.tensors)
    check_weights(state, header.checksum)
    return state


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "WEIGHTS_TRUNCATED"),
        (lambda data: b"", "WEIGHTS_TRUNCATED"),
        (flip_last, "WEIGHTS_CHECKSUM_MISMATCH"),
        (lambda data: data + b"\0", "WEIGHTS_MALFORMED"),
    ],
)
def test_damaged_bytes_are_found(damage: Callable[[bytes], bytes], reason: str) -> None:
    state = {"a": torch.ones(4)}
    with pytest.raises(AndonError) as caught:
        received(header_of(state), damage(bytes_of(state)))
    assert caught.value.reason == reason


def test_chunks_must_follow_each_other() -> None:
    for offset in (0, 9, -1):
        buffer = ChunkBuffer(16).add(0, bytes(8))
        with pytest.raises(InvalidArgumentError) as caught:
            buffer.add(offset, bytes(8))
        assert caught.value.reason == "WEIGHTS_MALFORMED"


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(1000, dtype=dtype)
    tensor[123] = value
    state = {"a": torch.ones(4), "b": tensor}
    with pytest.raises(AndonError) as caught:
        check_weights(state, weights_checksum(state))
    assert (caught.value.reason, caught.value.metadata["tensor"]) == ("WEIGHTS_NOT_FINITE", "b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_finite_weights_are_fine(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    state = {"a": torch.tensor([most, -most, 0.0, -0.0, torch.finfo(dtype).tiny], dtype=dtype)}
    check_weights(state, weights_checksum(state))


def test_integers_are_no_weights() -> None:
    with pytest.raises(InvalidArgumentError):
        image_of({"a": torch.zeros(3, dtype=torch.int64)})


def test_weights_change_hands(architecture: dict[str, Any], codec: TextCodec) -> None:
    sender, receiver = new_causal_lm(architecture, codec, 0), new_causal_lm(architecture, codec, 1)
    state, before = model_weights(sender), weights_sha256(model_weights(receiver))
    own = own_tensors(receiver)
    ready = made_ready(own, state)
    assert {name: tensor.data_ptr() for name, tensor in ready.items()} == {
        name: tensor.data_ptr() for name, tensor in state.items()
    }  # nothing is copied
    assert weights_sha256(model_weights(receiver)) == before
    exchange_weights(own, ready)
    assert weights_sha256(ready) == before
    assert weights_sha256(model_weights(receiver)) == weights_sha256(state)
    whole = receiver.state_dict()
    for tied, name in receiver.all_tied_weights_keys.items():
        assert whole[tied].data_ptr() == whole[name].data_ptr()


def test_weights_are_made_ready_in_the_types_and_the_layout_of_the_model(codec: TextCodec) -> None:
    receiver = new_causal_lm({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}, codec, 0).half()
    own = own_tensors(receiver)
    name = "transformer.h.0.mlp.c_fc.weight"
    own[name].data = own[name].data.t().contiguous().t()
    state = {name: torch.randn(tensor.shape) for name, tensor in own.items()}
    strides = {name: tensor.stride() for name, tensor in own.items()}
    exchange_weights(own, made_ready(own, state))
    for name, tensor in own_tensors(receiver).items():
        assert torch.equal(tensor, state[name].half())
        assert tensor.stride() == strides[name]


def test_a_model_takes_over_another_ones_weights(architecture: dict[str, Any], codec: TextCodec) -> None:
    sender, receiver = new_causal_lm(architecture, codec, 0), new_causal_lm(architecture, codec, 1)
    state = model_weights(sender)
    total = sum(parameter.numel() for parameter in sender.parameters())
    assert sum(tensor.numel() for tensor in state.values()) == total  # tied ones once
    shapes = {name: tuple(tensor.shape) for name, tensor in model_weights(receiver).items()}
    check_header(header_of(state), expected_shapes=shapes)
    arrived = received(header_of(state), bytes_of(state))
    assert weights_sha256(model_weights(receiver)) != weights_sha256(state)
    load_weights(receiver, arrived)
    assert weights_sha256(model_weights(receiver)) == weights_sha256(state)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(receiver.get_input_embeddings()(ids), sender.get_input_embeddings()(ids))
    arrived.popitem()
    with pytest.raises(AndonError) as caught:
        load_weights(receiver, arrived)
    assert caught.value.reason == "WEIGHTS_SHAPE_MISMATCH"
