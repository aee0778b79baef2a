"""Deltas between images: exact to the bit for any bits, and every damage is found."""

import multiprocessing
import os
import signal
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from andon.errors import AndonError, DataLossError, FailedPreconditionError
from andon.modeling import shared_memory, weight_delta
from andon.modeling.shared_memory import OwnMemory, SharedMemoryAddress, map_shared_memory
from andon.modeling.weight_codec import check_weights, copied, tensors_in
from andon.modeling.weight_delta import decode_delta, encode_delta, with_changes
from andon.modeling.weight_image import WeightImage, image_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def words(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def image_with_bits(dtype: str, bits: dict[str, np.ndarray]) -> WeightImage:
    """An image whose values have these bits, whatever numbers they are."""
    image = WeightImage({name: row.shape for name, row in bits.items()}, dtype)
    for name, row in bits.items():
        words(image.tensors[name]).copy_(torch.from_numpy(row))
    return image.fill(image.tensors)


def has_bits(state: dict[str, Tensor], bits: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(words(state[name]).numpy(), row) for name, row in bits.items())


@st.composite
def bit_pairs(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two sets of any bits, NaN and -0.0 among them: values equal, neighbours, or far from each other."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    width = DTYPES[dtype].itemsize
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0]))
    special = {
        2: [0x0000, -0x8000, 0x7F80, 0x7FC1, -0x7F, 0x7FFF, -1],
        4: [0x00000000, -0x80000000, 0x7F800000, 0x7FC00001, -0x7FFFFF, 0x7FFFFFFF, -1],
    }[width]
    old, new = {}, {}
    for name, size in zip("abc", draw(st.tuples(*[st.integers(0, 400)] * 3)), strict=True):
        limits = np.iinfo(f"i{width}")
        before = generator.integers(limits.min, limits.max, size, dtype=f"i{width}", endpoint=True)
        places = generator.random(size) < 0.1
        before[places] = generator.choice(np.array(special, dtype=f"i{width}"), int(places.sum()))
        step = generator.choice(np.array([1, -1, 300, limits.min, limits.max], dtype=f"i{width}"), size)
        after = before.copy()
        moved = generator.random(size) < share
        after[moved] += step[moved]
        old[name], new[name] = before, after
    return dtype, old, new


@settings(deadline=None, max_examples=100)
@given(bit_pairs(), st.sampled_from([7, 300, 1 << 20]))
def test_a_delta_is_exact_to_the_bit(
    pair: tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]], block_values: int
) -> None:
    dtype, old_bits, new_bits = pair
    old, new = image_with_bits(dtype, old_bits), image_with_bits(dtype, new_bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_delta, "BLOCK_VALUES", block_values)
        changed = with_changes(old.tensors, decode_delta(encode_delta(old, new, threads=2), new.specs))
    assert has_bits(changed, new_bits)
    assert has_bits(dict(old.tensors), old_bits)


def two_images(*, size: int = 5000) -> tuple[WeightImage, WeightImage]:
    generator = torch.Generator().manual_seed(0)
    old = {
        "a": torch.randn(size, generator=generator),
        "b": torch.randn(10, 5, generator=generator),
    }
    new = {
        name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in old.items()
    }
    return image_of(old, "bfloat16"), image_of(new, "bfloat16")


def test_a_record_is_what_the_contract_says() -> None:
    old = image_with_bits("bfloat16", {"a": np.array([7] * 400, dtype=np.int16)})
    bits = np.array([7] * 400, dtype=np.int16)
    bits[[2, 3, 390]] = [8, 6, 7 - 300]
    delta = encode_delta(old, image_with_bits("bfloat16", {"a": bits}))
    count, frame_bytes, distance_bytes = struct.unpack_from("<IIB", delta)
    assert (count, frame_bytes, distance_bytes) == (3, len(delta) - 9, 2)  # 390 - 3 - 1 needs two bytes
    planes = zstandard.ZstdDecompressor().decompress(delta[9:])
    # Distances 2, 0, 386; differences +1, -1, -300 as 2, 1, 599; lowest bytes first.
    assert list(planes) == [2, 0, 386 & 255, 0, 0, 386 >> 8, 2, 1, 599 & 255, 0, 0, 599 >> 8]


def test_weights_that_did_not_change_need_no_bytes_but_records() -> None:
    old, _ = two_images()
    assert encode_delta(old, old) == bytes.fromhex("000000000000000001") * 2


def test_a_delta_to_other_weights_does_not_pass_the_check() -> None:
    old, new = two_images()
    other = {name: tensor + 1 for name, tensor in old.tensors.items()}
    assert reason_of_applying(other, encode_delta(old, new), new) == "WEIGHTS_CHECKSUM_MISMATCH"
    assert reason_of_applying(old.tensors, encode_delta(old, new), new) == ""


def test_weights_that_are_strided_are_changed_all_the_same() -> None:
    old, new = two_images()
    strided = {name: tensor.t().contiguous().t() for name, tensor in old.tensors.items()}
    assert not strided["b"].is_contiguous()
    changed = with_changes(strided, decode_delta(encode_delta(old, new), new.specs))
    assert all(torch.equal(changed[name], tensor) for name, tensor in new.tensors.items())


def reason_of_applying(state: Mapping[str, Tensor], delta: bytes | bytearray, new: WeightImage) -> str:
    """Why weights made by a delta are refused; "" when they are right."""
    try:
        check_weights(with_changes(state, decode_delta(delta, new.specs)), new.checksum())
    except DataLossError as error:
        return error.reason
    return ""


def test_every_damaged_byte_is_found() -> None:
    old, new = two_images(size=60)
    delta = encode_delta(old, new)
    for position in range(len(delta)):
        for bit in (1, 128):
            damaged = bytearray(delta)
            damaged[position] ^= bit
            # A flipped bit may be one that means nothing; then the outcome is right, as the check says.
            assert reason_of_applying(old.tensors, damaged, new) in ("", "WEIGHTS_CHECKSUM_MISMATCH")
    for length in range(len(delta)):
        with pytest.raises(DataLossError):
            decode_delta(delta[:length], new.specs)
    with pytest.raises(DataLossError):
        decode_delta(delta + b"\0", new.specs)


def test_images_that_do_not_match_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two images"):
        encode_delta(image_of({"a": torch.zeros(3)}), image_of({"a": torch.zeros(4)}))


# --- shared memory ---


def own_image() -> WeightImage:
    image = image_of({"a": torch.arange(100.0), "b": torch.tensor([[1.5]])})
    assert image.address is not None
    return image


def test_an_image_is_read_where_it_lies() -> None:
    image = own_image()
    state = tensors_in(copied(map_shared_memory(image.address, image.size_bytes)), image.specs)
    check_weights(state, image.checksum())
    assert torch.equal(state["a"], torch.arange(100.0))
    state["a"][0] = 5  # what a reader writes stays with it
    assert image.tensors["a"][0] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "andon-" + "0" * 32},
        {"name": "../../etc/passwd"},
        {"process_id": 2**22 + 1},
        {"process_id": -1},
        {"descriptor": 0},
        {"descriptor": 10**6},
    ],
)
def test_memory_that_was_not_meant_is_not_opened(wrong: dict[str, object]) -> None:
    address = own_image().address
    assert address is not None
    fields = {
        "process_id": address.process_id,
        "descriptor": address.descriptor,
        "name": address.name,
        **wrong,
    }
    with pytest.raises(FailedPreconditionError) as caught:
        map_shared_memory(SharedMemoryAddress(**fields), 4)  # type: ignore[arg-type]
    assert caught.value.reason == "WEIGHTS_NOT_SHARED"


def test_memory_that_is_too_small_open_to_others_or_not_sealed_is_refused() -> None:
    memory = OwnMemory(100)
    assert memory.address is not None
    map_shared_memory(memory.address, 100).close()
    with pytest.raises(OSError, match="Operation not permitted"):
        os.ftruncate(memory.address.descriptor, 1)  # a reader can rely on its size
    with pytest.raises(FailedPreconditionError):
        map_shared_memory(memory.address, 101)
    os.fchmod(memory.address.descriptor, 0o644)
    with pytest.raises(FailedPreconditionError):
        map_shared_memory(memory.address, 100)
    name = "andon-" + "1" * 32
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 100)
        address = SharedMemoryAddress(process_id=os.getpid(), descriptor=descriptor, name=name)
        with pytest.raises(FailedPreconditionError):
            map_shared_memory(address, 100)
    finally:
        os.close(descriptor)


def test_without_memfd_there_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shared_memory.os, "memfd_create", forbidden)
    image = image_of({"a": torch.ones(3)})
    assert image.address is None
    assert image.tensors["a"].tolist() == [1, 1, 1]


def test_memory_goes_with_its_owner() -> None:
    def open_descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    before = open_descriptors()
    image = image_of({"a": torch.ones(3)})
    assert len(open_descriptors()) > len(before)
    del image
    assert open_descriptors() == before


def _own_until_killed(pipe: Connection) -> None:
    image = image_of({"a": torch.ones(1000)})
    pipe.send((image.address, image.size_bytes, image.checksum()))
    signal.pause()


def test_a_killed_sender_leaves_nothing_and_takes_nothing_away() -> None:
    """What a reader has mapped stays readable; nobody can open it any more, and no file is left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_own_until_killed, args=(theirs,))
    process.start()
    try:
        address, size_bytes, checksum = ours.recv()
        mapped = map_shared_memory(address, size_bytes)
    finally:
        process.kill()
        process.join()
    state = {"a": torch.frombuffer(mapped, dtype=torch.float32)}
    check_weights(state, checksum)
    with pytest.raises(AndonError) as caught:
        map_shared_memory(address, size_bytes)
    assert caught.value.reason == "WEIGHTS_NOT_SHARED"
    assert not [name for name in os.listdir("/dev/shm") if address.name in name]
