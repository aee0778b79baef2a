"""Decides how the difference between two sets of weights is written, and how it makes the newer one.

A small step of an optimizer changes few values of a 16-bit type, most of them to a neighbour. A delta lists
them: how far each is from the one before, and by how much its bits, read as an integer, differ. Only integers
are added, so what comes out is the new weights to the last bit, NaN and -0.0 included. Both lists are
compressed as planes of bytes; each block is checked by itself before anything is changed, and the checksum of
the whole decides at the end.

The stream: for every tensor, in the order of names, one record for each ``BLOCK_VALUES`` values. A record is
``_RECORD``, then one zstd frame (with its checksum) of the planes, lowest byte first: the distances minus 1
(``distance_bytes`` planes), then the differences (as many planes as a value has bytes), ``count`` bytes each.
A difference d is written as 2 d for d >= 0 and -2 d - 1 else (zigzag), so that small ones of either sign have
zeros above their lowest byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from andon.errors import DataLossError
from andon.modeling.weight_codec import TensorSpec
from andon.modeling.weight_image import WeightImage

BLOCK_VALUES = 1 << 20
_RECORD = struct.Struct("<IIB")  # count of changed values, bytes of the frame, distance_bytes
_LEVEL = 1  # a higher one is three times slower and gains nothing: measured in ADR 18

Integers: TypeAlias = NDArray[Any]  # of several widths


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChange:
    """Which values of one block change."""

    tensor: str
    begin: int  # the block's first value in the flat tensor
    end: int
    indices: Tensor  # [changed] int64, in the block
    differences: Tensor  # [changed] integers of the values' width, to add modulo 2 ** bits


def encode_delta(old: WeightImage, new: WeightImage, *, threads: int = 1) -> bytes:
    """What turns ``old`` into ``new``, images of one type and of the same names and shapes.

    It may be longer than all of ``new``.
    """
    if old.specs != new.specs:
        raise ValueError("a delta needs two images of the same type, names and shapes")
    pairs = [
        (old_words[begin : begin + BLOCK_VALUES], new_words[begin : begin + BLOCK_VALUES])
        for name in new.tensors
        for old_words, new_words in [(_words(old.tensors[name]).numpy(), _words(new.tensors[name]).numpy())]
        for begin in range(0, len(new_words), BLOCK_VALUES)
    ]
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="weight-delta") as pool:
        records = list(pool.map(_encode_block, pairs))
    return b"".join(records)


def decode_delta(data: bytes | memoryview, specs: Sequence[TensorSpec]) -> list[BlockChange]:
    """Read a delta; ``specs`` are its header's. Raises DataLossError WEIGHTS_CHECKSUM_MISMATCH."""
    view, position = memoryview(data), 0
    changes = []
    for spec, begin, end in _blocks(specs):
        if position + _RECORD.size > len(view):
            raise _damaged("it ends too early")
        count, frame_bytes, distance_bytes = _RECORD.unpack_from(view, position)
        position += _RECORD.size
        if count > end - begin or distance_bytes not in (1, 2, 4) or position + frame_bytes > len(view):
            raise _damaged("a record cannot be")
        if count:
            frame = view[position : position + frame_bytes]
            width = spec.size_bytes // prod(spec.shape)
            changes.append(_decode_block(frame, spec.name, begin, end, count, distance_bytes, width))
        position += frame_bytes
    if position != len(view):
        raise _damaged("it goes on behind its end")
    return changes


def with_changes(weights: Mapping[str, Tensor], changes: Iterable[BlockChange]) -> dict[str, Tensor]:
    """Copies of ``weights`` on the CPU in which the changes are made; to be checked as any that arrive."""
    changed = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    for change in changes:
        words = _words(changed[change.tensor])[change.begin : change.end]
        words.scatter_add_(0, change.indices, change.differences)
    return changed


def _words(tensor: Tensor) -> Tensor:
    """[values] the tensor's own memory as integers of its values' width."""
    return tensor.detach().view(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def _blocks(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, int, int]]:
    for spec in specs:
        size = prod(spec.shape)
        for begin in range(0, size, BLOCK_VALUES):
            yield spec, begin, min(begin + BLOCK_VALUES, size)


def _encode_block(pair: tuple[Integers, Integers]) -> bytes:
    old, new = pair
    changed = np.flatnonzero(old != new)
    if not len(changed):
        return _RECORD.pack(0, 0, 1)
    distances = np.empty(len(changed), dtype=np.int64)
    distances[0] = changed[0]
    np.subtract(changed[1:], changed[:-1], out=distances[1:])
    distances[1:] -= 1
    farthest = int(distances.max())
    distance_bytes = 1 if farthest < 1 << 8 else 2 if farthest < 1 << 16 else 4
    differences = new.take(changed) - old.take(changed)
    bits = 8 * differences.itemsize
    zigzag = ((differences << 1) ^ (differences >> (bits - 1))).view(f"u{differences.itemsize}")
    planes = [*_planes(distances, distance_bytes), *_planes(zigzag, differences.itemsize)]
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(b"".join(planes))
    return _RECORD.pack(len(changed), len(frame), distance_bytes) + frame


def _decode_block(
    frame: memoryview, tensor: str, begin: int, end: int, count: int, distance_bytes: int, width: int
) -> BlockChange:
    size_bytes = count * (distance_bytes + width)
    try:
        if zstandard.frame_content_size(frame) != size_bytes:
            raise _damaged("a block has another size than its record says")
        content = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise _damaged(f"a block cannot be read: {error}") from error
    planes = np.frombuffer(content, dtype=np.uint8).reshape(distance_bytes + width, count)
    distances = _joined(planes[:distance_bytes], np.int64)
    distances += 1
    indices = np.cumsum(distances, out=distances)
    indices -= 1
    if int(indices[-1]) >= end - begin:
        raise _damaged("a change lies outside its block")
    zigzag = _joined(planes[distance_bytes:], f"u{width}")
    differences = (zigzag >> 1).view(f"i{width}") ^ -(zigzag & 1).view(f"i{width}")
    return BlockChange(
        tensor=tensor,
        begin=begin,
        end=end,
        indices=torch.from_numpy(indices),
        differences=torch.from_numpy(differences),
    )


def _planes(values: Integers, count: int) -> list[bytes]:
    """The ``count`` lowest bytes of the values, each as a plane."""
    return [(values >> (8 * plane)).astype(np.uint8).tobytes() for plane in range(count)]


def _joined(planes: NDArray[np.uint8], dtype: Any) -> Integers:
    """The inverse of ``_planes``."""
    values: Integers = planes[0].astype(dtype)
    for number in range(1, len(planes)):
        if planes[number].any():
            values |= planes[number].astype(dtype) << (8 * number)
    return values


def _damaged(problem: str) -> DataLossError:
    return DataLossError(f"the delta is damaged: {problem}", reason="WEIGHTS_CHECKSUM_MISMATCH")
