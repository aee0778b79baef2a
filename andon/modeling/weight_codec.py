"""Decides what the bytes of a set of weights are, how it is named, and how it is checked.

``weights_sha256`` names a version, wherever it is: it runs over the weights as the trainer has them, and the
store computes the same from files. On their way to a sampler weights may be rounded to the type it serves;
``weights_checksum`` runs over what it will serve, and both sides compute it. Values travel as they lie in
memory, little-endian, tensor after tensor in the order of their names; tied tensors travel once.
``weight_image`` and ``weight_delta`` make streams, the policy service reads them; transport, and when new
weights are used, are decided by the services.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from mmap import mmap

import numpy as np
import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from andon.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from andon.modeling.shared_memory import SharedMemoryAddress
from andon.modeling.versions import ModelVersion

DEFAULT_CHUNK_BYTES = 1 << 20
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INFINITY_BITS = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
_BLOCK_BYTES = 1 << 19  # what is read once from memory for several looks at it
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a stream."""

    name: str
    dtype: str  # "float32", "bfloat16" or "float16"
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of its values."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHeader:
    """What a stream of weights will hold."""

    model: ModelVersion  # with its digest
    tensors: tuple[TensorSpec, ...]  # the new weights, in the order of their bytes
    size_bytes: int  # of what follows, or of ``memory``
    checksum: str  # of the new weights' bytes, as ``weights_checksum`` gives it
    base: ModelVersion | None = None  # what follows is a delta to these weights, in use with the same types
    memory: SharedMemoryAddress | None = None  # nothing follows: the bytes lie here
    awaits_commit: bool = False  # said on the way: not to be used before the stream's last message


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChunk:
    """A piece of the bytes; pieces follow each other without a gap."""

    offset_bytes: int
    data: bytes


def own_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's parameters and saved buffers by the names that a saved model has, tied ones once."""
    tied = set(model.all_tied_weights_keys)
    state = model.state_dict(keep_vars=True)
    return {name: state[name] for name in sorted(state) if name not in tied}


def model_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The values of ``own_tensors``, detached; not copied."""
    return {name: tensor.detach() for name, tensor in own_tensors(model).items()}


def load_weights(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the model's own tensors; raises FailedPreconditionError WEIGHTS_SHAPE_MISMATCH."""
    own = model_weights(model)
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(tensor.shape) for name, tensor in own.items()},
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def made_ready(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``exchange_weights`` can give to ``own``, of the same names and shapes, without a copy.

    For a model on the CPU it is of the model's types and in its layout. What is so already, and what goes to
    another device, stays as it is; nobody else may have the memory of ``state``.
    """
    ready: dict[str, Tensor] = {}
    for name, tensor in own.items():
        given = state[name]
        is_fit = given.dtype == tensor.dtype and given.stride() == tensor.stride()
        if tensor.device.type != "cpu" or is_fit:
            ready[name] = given
        else:
            ready[name] = torch.empty_like(tensor, requires_grad=False).copy_(given)
    return ready


def exchange_weights(own: Mapping[str, Tensor], ready: dict[str, Tensor]) -> None:
    """Let a model's ``own_tensors`` have what was ``made_ready``; ``ready`` has what they had then.

    On the CPU memory changes hands; to another device the values are copied, and ``ready`` keeps them.
    """
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.device.type == "cpu":
                tensor.data, ready[name] = ready[name], tensor.data
            else:
                tensor.copy_(ready[name])


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """The digest that names these weights: SHA-256, in lower-case hexadecimal.

    It runs over the tensors in the order of their names; each gives its name, type, shape and bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{name}\0{dtype_name(name, tensor)}\0{shape}\0".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def weights_checksum(state: Mapping[str, Tensor]) -> str:
    """XXH3 (128 bits, in lower-case hexadecimal) over the tensors' bytes in the order of their names.

    It finds accidents, at the speed of memory; it does not stand against somebody who wants to deceive.
    """
    checksum = xxhash.xxh3_128()
    for name in sorted(state):
        checksum.update(_bytes_of(state[name]))
    return checksum.hexdigest()


def check_weights(state: Mapping[str, Tensor], checksum: str) -> None:
    """Check bytes that arrived, all of them, in one pass over memory.

    Raises DataLossError WEIGHTS_CHECKSUM_MISMATCH, or WEIGHTS_NOT_FINITE for NaN and infinity.
    """
    found = xxhash.xxh3_128()
    not_finite = ""
    for name in sorted(state):
        view, infinity = _bytes_of(state[name]), _INFINITY_BITS[state[name].dtype]
        for begin in range(0, len(view), _BLOCK_BYTES):
            block = view[begin : begin + _BLOCK_BYTES]
            found.update(block)
            if not not_finite and not _is_finite(block, infinity, state[name].dtype.itemsize):
                not_finite = name
    if found.hexdigest() != checksum:
        raise DataLossError(
            "the weights are not those that the header names",
            reason="WEIGHTS_CHECKSUM_MISMATCH",
            checksum=found.hexdigest(),
        )
    if not_finite:
        raise DataLossError(
            f"{not_finite} holds NaN or infinity", reason="WEIGHTS_NOT_FINITE", tensor=not_finite
        )


def check_header(
    header: WeightsHeader, *, expected_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> int:
    """Check a header and return the bytes that its weights have in all.

    With ``expected_shapes``, the receiving model's, names and shapes must be these; types may differ.
    Raises InvalidArgumentError WEIGHTS_MALFORMED, FailedPreconditionError WEIGHTS_SHAPE_MISMATCH.
    """
    if not _SHA256.fullmatch(header.model.weights_sha256):
        raise _malformed("the header names no SHA-256 digest")
    if not _CHECKSUM.fullmatch(header.checksum):
        raise _malformed("the header has no checksum")
    if not header.tensors:
        raise _malformed("the header names no tensors")
    for spec in header.tensors:
        if not spec.name or spec.dtype not in DTYPES or any(size < 0 for size in spec.shape):
            raise _malformed(f"tensor {spec.name!r} has type {spec.dtype!r} and shape {spec.shape}")
    names = [spec.name for spec in header.tensors]
    if any(name >= following for name, following in pairwise(names)):
        raise _malformed("the header's tensors do not follow each other in the order of their names")
    if header.base is not None and header.memory is not None:
        raise _malformed("a delta does not come in shared memory")
    size_bytes = sum(spec.size_bytes for spec in header.tensors)
    if header.size_bytes < 0 or (header.base is None and size_bytes != header.size_bytes):
        raise _malformed(f"the tensors have {size_bytes} bytes, the header says {header.size_bytes}")
    if header.base is not None and header.size_bytes > size_bytes:
        raise _malformed(
            f"a delta of {header.size_bytes} bytes is larger than the {size_bytes} of all weights"
        )
    if expected_shapes is not None:
        check_shapes({spec.name: spec.shape for spec in header.tensors}, expected_shapes)
    return size_bytes


def copied(buffer: mmap) -> memoryview:
    """A copy of bytes that others may write to; other threads go on meanwhile."""
    copy: memoryview = torch.frombuffer(buffer, dtype=torch.uint8).clone().numpy().data
    return copy


def tensors_in(buffer: memoryview, specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    """The tensors whose bytes follow each other in ``buffer``; they share them where alignment allows."""
    state: dict[str, Tensor] = {}
    begin = 0
    for spec in specs:
        dtype = DTYPES[spec.dtype]
        if prod(spec.shape) == 0:
            state[spec.name] = torch.empty(spec.shape, dtype=dtype)
        else:
            flat = torch.frombuffer(buffer, dtype=torch.uint8, count=spec.size_bytes, offset=begin)
            aligned = flat if begin % dtype.itemsize == 0 else flat.clone()
            state[spec.name] = aligned.view(dtype).view(spec.shape)
        begin += spec.size_bytes
    return state


class ChunkBuffer:
    """The bytes of a stream, piece by piece."""

    def __init__(self, size_bytes: int) -> None:
        # torch's own memory, because a model may keep it: products read it faster where it is aligned.
        self.data: memoryview = torch.empty(size_bytes, dtype=torch.uint8).numpy().data
        self._filled_bytes = 0

    def add(self, offset_bytes: int, data: bytes) -> ChunkBuffer:
        """Take the next piece; raises InvalidArgumentError WEIGHTS_MALFORMED when it is not the next."""
        end = self._filled_bytes + len(data)
        if offset_bytes != self._filled_bytes or end > len(self.data):
            raise _malformed(
                f"a chunk of {len(data)} bytes at {offset_bytes} came where {self._filled_bytes} of "
                f"{len(self.data)} bytes were read"
            )
        self.data[offset_bytes:end] = data
        self._filled_bytes = end
        return self

    @property
    def is_full(self) -> bool:
        """Whether all bytes are there."""
        return self._filled_bytes == len(self.data)

    def finish(self) -> memoryview:
        """All bytes; raises DataLossError WEIGHTS_TRUNCATED when some are missing."""
        if not self.is_full:
            raise DataLossError(
                f"{self._filled_bytes} of {len(self.data)} bytes came",
                reason="WEIGHTS_TRUNCATED",
                size_bytes=self._filled_bytes,
            )
        return self.data


def _is_finite(block: memoryview, infinity: int, itemsize: int) -> bool:
    """Whether no value has an exponent of ones: as integers, such are the largest of either sign."""
    signed = np.frombuffer(block, dtype=f"<i{itemsize}")
    sign = 1 << (8 * itemsize - 1)
    return int(signed.max()) < infinity and int(signed.view(f"<u{itemsize}").max()) < (sign | infinity)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes; copied only when it is not contiguous or not on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    view: memoryview = flat.numpy().data
    return view


def dtype_name(name: str, tensor: Tensor) -> str:
    """What a header calls the tensor's type; raises InvalidArgumentError WEIGHTS_MALFORMED for any other."""
    if tensor.dtype not in _DTYPE_NAMES:
        raise InvalidArgumentError(
            f"{name} has type {tensor.dtype}, which weights cannot have",
            reason="WEIGHTS_MALFORMED",
            tensor=name,
        )
    return _DTYPE_NAMES[tensor.dtype]


def check_shapes(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise FailedPreconditionError WEIGHTS_SHAPE_MISMATCH unless names and shapes are the same."""
    for name in sorted(given.keys() | expected.keys()):
        if given.get(name) != expected.get(name):
            raise FailedPreconditionError(
                f"{name} has shape {given.get(name)}, the model expects {expected.get(name)}",
                reason="WEIGHTS_SHAPE_MISMATCH",
                tensor=name,
            )


def _malformed(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="WEIGHTS_MALFORMED")
