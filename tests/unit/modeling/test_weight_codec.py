import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from andon.errors import AndonError, InvalidArgumentError
from andon.modeling.loading import new_causal_lm
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import (
    TensorSpec,
    WeightsAssembler,
    WeightsHeader,
    encode_weights,
    load_weights,
    model_weights,
    weights_sha256,
)

VERSION = ModelVersion("policy", 4)


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


@pytest.mark.parametrize("chunk_bytes", [1, 7, 16, 1 << 20])
def test_weights_come_back_bit_for_bit(chunk_bytes: int) -> None:
    state = mixed_state()
    encoded = encode_weights(state, VERSION, chunk_bytes)
    assert encoded.header.model == ModelVersion("policy", 4, weights_sha256(state))
    assert encoded.header.size_bytes == 6 + 6 + 40 + 4
    assembler = WeightsAssembler.begin(encoded.header)
    chunks = list(encoded.chunks)
    assert all(len(chunk.data) == chunk_bytes for chunk in chunks[:-1])
    for chunk in chunks:
        assembler.add(chunk.offset_bytes, chunk.data)
    decoded = assembler.finish()
    assert decoded.keys() == state.keys()
    for name, tensor in state.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)


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
    return encode_weights(state, VERSION).header


GOOD = header_of({"a": torch.zeros(4), "b": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (replace(GOOD, model=ModelVersion("policy", 4)), "WEIGHTS_MALFORMED"),
        (replace(GOOD, model=ModelVersion("policy", 4, "F" * 64)), "WEIGHTS_MALFORMED"),
        (replace(GOOD, tensors=()), "WEIGHTS_MALFORMED"),
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
    WeightsAssembler.begin(GOOD, expected_shapes=shapes)
    with pytest.raises(AndonError) as caught:
        WeightsAssembler.begin(header, expected_shapes=shapes)
    assert caught.value.reason == reason


def stream_of(state: dict[str, Tensor]) -> tuple[WeightsHeader, bytes]:
    encoded = encode_weights(state, VERSION)
    return encoded.header, b"".join(chunk.data for chunk in encoded.chunks)


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
    header, data = stream_of({"a": torch.ones(4)})
    with pytest.raises(AndonError) as caught:
        WeightsAssembler.begin(header).add(0, damage(data)).finish()
    assert caught.value.reason == reason


def test_chunks_must_follow_each_other() -> None:
    header, data = stream_of({"a": torch.ones(4)})
    for offset in (0, 9, -1):
        assembler = WeightsAssembler.begin(header).add(0, data[:8])
        with pytest.raises(InvalidArgumentError) as caught:
            assembler.add(offset, data[8:])
        assert caught.value.reason == "WEIGHTS_MALFORMED"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(1000, dtype=dtype)
    tensor[123] = value
    header, data = stream_of({"a": torch.ones(4), "b": tensor})
    with pytest.raises(AndonError) as caught:
        WeightsAssembler.begin(header).add(0, data).finish()
    assert (caught.value.reason, caught.value.metadata["tensor"]) == ("WEIGHTS_NOT_FINITE", "b")


def test_large_finite_weights_are_fine() -> None:
    header, data = stream_of({"a": torch.full((4,), 3e38)})
    assert WeightsAssembler.begin(header).add(0, data).finish()["a"].isfinite().all()


def test_integers_are_no_weights() -> None:
    with pytest.raises(InvalidArgumentError):
        encode_weights({"a": torch.zeros(3, dtype=torch.int64)}, VERSION)


def test_a_model_takes_over_another_ones_weights(architecture: dict[str, Any], codec: TextCodec) -> None:
    sender, receiver = new_causal_lm(architecture, codec, 0), new_causal_lm(architecture, codec, 1)
    state = model_weights(sender)
    total = sum(parameter.numel() for parameter in sender.parameters())
    assert sum(tensor.numel() for tensor in state.values()) == total  # tied ones once
    header, data = stream_of(state)
    shapes = {name: tuple(tensor.shape) for name, tensor in model_weights(receiver).items()}
    received = WeightsAssembler.begin(header, expected_shapes=shapes).add(0, data).finish()
    assert weights_sha256(model_weights(receiver)) != header.model.weights_sha256
    load_weights(receiver, received)
    assert weights_sha256(model_weights(receiver)) == header.model.weights_sha256
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(receiver.get_input_embeddings()(ids), sender.get_input_embeddings()(ids))
    received.popitem()
    with pytest.raises(AndonError) as caught:
        load_weights(receiver, received)
    assert caught.value.reason == "WEIGHTS_SHAPE_MISMATCH"
