"""Decides the digest that names a set of weights, whether they lie in memory or in safetensors files.

The digest is SHA-256 over the tensors in the order of their names; each contributes its name, its type, its
shape and its little-endian bytes. The store computes it from files without torch, ``weight_codec`` from
tensors in memory; tied tensors count once, under the name that a saved model keeps.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from andon.errors import DataLossError

_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestEntry:
    """One tensor of a digest; ``read`` gives its little-endian bytes when it is its turn."""

    name: str
    dtype: str
    shape: Sequence[int]
    read: Callable[[], bytes | memoryview]


def digest_weights(entries: Iterable[DigestEntry]) -> str:
    """SHA-256, in lower-case hexadecimal, over the entries in the order of their names."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.name):
        shape = ",".join(str(size) for size in entry.shape)
        digest.update(f"{entry.name}\0{entry.dtype}\0{shape}\0".encode())
        digest.update(entry.read())
    return digest.hexdigest()


def digest_safetensors(paths: Iterable[Path]) -> str:
    """The digest of the weights that one or several safetensors files hold together."""
    maps: list[memoryview] = []
    entries: list[DigestEntry] = []
    for path in paths:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        maps.append(view)
        entries += _file_entries(path, view)
    return digest_weights(entries)


def _file_entries(path: Path, view: memoryview) -> Iterable[DigestEntry]:
    header_bytes = int.from_bytes(view[:8], "little")
    if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, len(view) - 8):
        raise DataLossError(f"{path.name} is not a safetensors file", reason="MODEL_DAMAGED", file=path.name)
    header = json.loads(bytes(view[8 : 8 + header_bytes]))
    header.pop("__metadata__", None)
    body = view[8 + header_bytes :]
    for name, fields in header.items():
        begin, end = fields["data_offsets"]
        yield DigestEntry(
            name=name,
            dtype=_SAFETENSORS_DTYPES.get(fields["dtype"], fields["dtype"]),
            shape=fields["shape"],
            read=lambda begin=begin, end=end: body[begin:end],  # type: ignore[misc]
        )
