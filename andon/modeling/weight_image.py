"""Decides how a trainer keeps a whole set of weights for its samplers: one type, one piece of memory.

An image has the bytes of a stream (``weight_codec``): tensor after tensor in the order of their names, little
endian. A sampler on the same host reads them where they lie (``shared_memory``), any other gets them in
pieces, or only what differs from the image before (``weight_delta``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from andon.errors import InvalidArgumentError
from andon.modeling.shared_memory import OwnMemory, SharedMemoryAddress
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import (
    DEFAULT_CHUNK_BYTES,
    DTYPES,
    TensorSpec,
    WeightsChunk,
    WeightsHeader,
    check_shapes,
    dtype_name,
    weights_checksum,
)


class WeightImage:
    """Weights in memory. It may be filled again and again; who reads it then must have finished."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        """Room for tensors of these shapes; ``dtype`` is "float32", "bfloat16" or "float16"."""
        if dtype not in DTYPES:
            raise InvalidArgumentError(f"weights cannot have type {dtype!r}", reason="WEIGHTS_MALFORMED")
        self.dtype = dtype
        self.specs = tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(shapes[name])) for name in sorted(shapes)
        )
        self.size_bytes = sum(spec.size_bytes for spec in self.specs)
        self._checksum = ""  # of the bytes; empty until it is asked for
        self._memory = OwnMemory(self.size_bytes)
        flat = torch.frombuffer(self._memory.buffer, dtype=torch.uint8)[: self.size_bytes]
        self._bytes = flat.numpy().data
        sizes = [prod(spec.shape) for spec in self.specs]
        pieces = torch.split(flat.view(DTYPES[dtype]), sizes)
        self.tensors: Mapping[str, Tensor] = {
            spec.name: piece.view(spec.shape) for spec, piece in zip(self.specs, pieces, strict=True)
        }

    @property
    def address(self) -> SharedMemoryAddress | None:
        """Where a process on this host can read it; None where the system cannot share it."""
        return self._memory.address

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether it has room for exactly these names and shapes."""
        return {name: tensor.shape for name, tensor in weights.items()} == {
            name: tensor.shape for name, tensor in self.tensors.items()
        }

    def fill(self, weights: Mapping[str, Tensor]) -> WeightImage:
        """Copy weights in, rounded to the image's type, from whatever type and device they have.

        Raises FailedPreconditionError WEIGHTS_SHAPE_MISMATCH.
        """
        check_shapes(
            {name: tuple(tensor.shape) for name, tensor in weights.items()},
            {name: tuple(tensor.shape) for name, tensor in self.tensors.items()},
        )
        for name, tensor in self.tensors.items():
            tensor.copy_(weights[name].detach())
        self._checksum = ""
        return self

    def checksum(self) -> str:
        """Of its bytes, computed when it is first asked for: an image that no sampler gets needs none."""
        if not self._checksum:
            self._checksum = weights_checksum(self.tensors)
        return self._checksum

    def header(self, version: ModelVersion) -> WeightsHeader:
        """What opens the stream of all its bytes."""
        return WeightsHeader(
            model=version, tensors=self.specs, size_bytes=self.size_bytes, checksum=self.checksum()
        )

    def chunks(self, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[WeightsChunk]:
        """All its bytes in order."""
        return cut(self._bytes, chunk_bytes)


def image_of(weights: Mapping[str, Tensor], dtype: str | None = None) -> WeightImage:
    """A new image of these weights; of their own type, which must be one, unless ``dtype`` says another."""
    if dtype is None:
        names = {dtype_name(name, tensor) for name, tensor in weights.items()}
        if len(names) != 1:
            raise InvalidArgumentError(
                f"weights of types {sorted(names)} are no image", reason="WEIGHTS_MALFORMED"
            )
        dtype = names.pop()
    return WeightImage({name: tuple(tensor.shape) for name, tensor in weights.items()}, dtype).fill(weights)


def cut(data: bytes | memoryview, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[WeightsChunk]:
    """Bytes as the chunks of a stream."""
    for begin in range(0, len(data), chunk_bytes):
        yield WeightsChunk(offset_bytes=begin, data=bytes(data[begin : begin + chunk_bytes]))
