"""Decides how weights become a checked stream of bytes, and bytes weights again.

The trainer encodes, the policy service assembles; both name the result by ``weights_sha256``, the digest that
the store computes from files. Values travel as they lie in memory, little-endian, tensor after tensor in the
order of their names; tied tensors travel once. Transport, and when new weights are used, are decided by the
services.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from andon.modeling.versions import ModelVersion

DEFAULT_CHUNK_BYTES = 1 << 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
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
        return prod(self.shape) * _DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHeader:
    """What a stream of weights will hold."""

    model: ModelVersion  # with its digest
    tensors: tuple[TensorSpec, ...]  # in the order of their bytes
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChunk:
    """A piece of the bytes; pieces follow each other without a gap."""

    offset_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedWeights:
    """A stream of weights; ``chunks`` reads the tensors as it goes, so they must not change before."""

    header: WeightsHeader
    chunks: Iterator[WeightsChunk]


def model_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's own tensors by name, tied ones once, under the names that a saved model has; not copied."""
    tied = set(model.all_tied_weights_keys)
    state = model.state_dict()
    return {name: state[name].detach() for name in sorted(state) if name not in tied}


def load_weights(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the model's own tensors; raises FailedPreconditionError WEIGHTS_SHAPE_MISMATCH."""
    own = model_weights(model)
    _check_shapes(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(tensor.shape) for name, tensor in own.items()},
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """The digest that names these weights: SHA-256, in lower-case hexadecimal.

    It runs over the tensors in the order of their names; each gives its name, type, shape and bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{name}\0{_dtype_name(name, tensor)}\0{shape}\0".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def encode_weights(
    state: Mapping[str, Tensor], version: ModelVersion, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> EncodedWeights:
    """Describe and cut ``state``, as ``model_weights`` gives it; computes a digest that ``version`` lacks."""
    names = sorted(state)
    specs = tuple(
        TensorSpec(name=name, dtype=_dtype_name(name, state[name]), shape=tuple(state[name].shape))
        for name in names
    )
    digest = version.weights_sha256 or weights_sha256(state)
    header = WeightsHeader(
        model=ModelVersion(version.family, version.version, digest),
        tensors=specs,
        size_bytes=sum(spec.size_bytes for spec in specs),
    )
    return EncodedWeights(header=header, chunks=_cut((state[name] for name in names), chunk_bytes))


class WeightsAssembler:
    """Puts a stream of weights together and checks it; after an error it is of no more use."""

    def __init__(self, header: WeightsHeader) -> None:
        self._header = header
        self._buffer = bytearray(header.size_bytes)
        self._filled_bytes = 0

    @classmethod
    def begin(
        cls, header: WeightsHeader, *, expected_shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> WeightsAssembler:
        """Check a header before room is made for its bytes.

        With ``expected_shapes``, the receiving model's, names and shapes must be these; types may differ.
        Raises InvalidArgumentError WEIGHTS_MALFORMED, FailedPreconditionError WEIGHTS_SHAPE_MISMATCH.
        """
        if not _SHA256.fullmatch(header.model.weights_sha256):
            raise _malformed("the header names no SHA-256 digest")
        if not header.tensors:
            raise _malformed("the header names no tensors")
        for spec in header.tensors:
            if not spec.name or spec.dtype not in _DTYPES or any(size < 0 for size in spec.shape):
                raise _malformed(f"tensor {spec.name!r} has type {spec.dtype!r} and shape {spec.shape}")
        if len({spec.name for spec in header.tensors}) != len(header.tensors):
            raise _malformed("the header names a tensor twice")
        size_bytes = sum(spec.size_bytes for spec in header.tensors)
        if size_bytes != header.size_bytes:
            raise _malformed(f"the tensors have {size_bytes} bytes, the header says {header.size_bytes}")
        if expected_shapes is not None:
            _check_shapes({spec.name: spec.shape for spec in header.tensors}, expected_shapes)
        return cls(header)

    def add(self, offset_bytes: int, data: bytes) -> WeightsAssembler:
        """Take the next piece; raises InvalidArgumentError WEIGHTS_MALFORMED when it is not the next."""
        end = self._filled_bytes + len(data)
        if offset_bytes != self._filled_bytes or end > self._header.size_bytes:
            raise _malformed(
                f"a chunk of {len(data)} bytes at {offset_bytes} came where {self._filled_bytes} of "
                f"{self._header.size_bytes} bytes were read"
            )
        self._buffer[offset_bytes:end] = data
        self._filled_bytes = end
        return self

    def finish(self) -> dict[str, Tensor]:
        """The tensors, which share the received bytes.

        Raises DataLossError WEIGHTS_TRUNCATED, WEIGHTS_CHECKSUM_MISMATCH or WEIGHTS_NOT_FINITE.
        """
        if self._filled_bytes != self._header.size_bytes:
            raise DataLossError(
                f"{self._filled_bytes} of {self._header.size_bytes} bytes came",
                reason="WEIGHTS_TRUNCATED",
                size_bytes=self._filled_bytes,
            )
        state = self._tensors()
        digest = weights_sha256(state)
        if digest != self._header.model.weights_sha256:
            raise DataLossError(
                "the weights are not those that the header names",
                reason="WEIGHTS_CHECKSUM_MISMATCH",
                weights_sha256=digest,
            )
        for name, tensor in state.items():
            # One pass proves a finite sum's values finite; another sum may have overflowed without a fault.
            if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
                raise DataLossError(f"{name} holds NaN or infinity", reason="WEIGHTS_NOT_FINITE", tensor=name)
        return state

    def _tensors(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        begin = 0
        for spec in self._header.tensors:
            dtype = _DTYPES[spec.dtype]
            count = prod(spec.shape)
            if count == 0:
                state[spec.name] = torch.empty(spec.shape, dtype=dtype)
            else:
                flat = torch.frombuffer(self._buffer, dtype=torch.uint8, count=spec.size_bytes, offset=begin)
                aligned = flat if begin % dtype.itemsize == 0 else flat.clone()
                state[spec.name] = aligned.view(dtype).view(spec.shape)
            begin += spec.size_bytes
        return state


def _cut(tensors: Iterator[Tensor], chunk_bytes: int) -> Iterator[WeightsChunk]:
    pieces: list[memoryview] = []
    room, offset = chunk_bytes, 0
    for tensor in tensors:
        view = _bytes_of(tensor)
        while len(view) >= room:
            pieces.append(view[:room])
            yield WeightsChunk(offset_bytes=offset, data=b"".join(pieces))
            view, pieces, offset, room = view[room:], [], offset + chunk_bytes, chunk_bytes
        if len(view):
            pieces.append(view)
            room -= len(view)
    if pieces:
        yield WeightsChunk(offset_bytes=offset, data=b"".join(pieces))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes; copied only when it is not contiguous or not on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    view: memoryview = flat.numpy().data
    return view


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise InvalidArgumentError(
            f"{name} has type {tensor.dtype}, which weights cannot have",
            reason="WEIGHTS_MALFORMED",
            tensor=name,
        )
    return _DTYPE_NAMES[tensor.dtype]


def _check_shapes(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(given.keys() | expected.keys()):
        if given.get(name) != expected.get(name):
            raise FailedPreconditionError(
                f"{name} has shape {given.get(name)}, the model expects {expected.get(name)}",
                reason="WEIGHTS_SHAPE_MISMATCH",
                tensor=name,
            )


def _malformed(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="WEIGHTS_MALFORMED")
