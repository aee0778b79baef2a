"""Decides how a file comes to be: whole under its name, or not at all.

Bytes go to a hidden file in the same folder, are forced to disk and renamed. A process that is killed in
between leaves at most that hidden file, whose name ends in ``.partial``. Used for everything that the
``andon data`` commands and the export write.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from types import TracebackType


class AtomicFile:
    """A file being written. A context manager: leaving it before ``publish`` removes what was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        # In the same folder: only within a file system is a rename atomic.
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._stream = self._partial.open("xb", buffering=1 << 16)

    @property
    def sha256(self) -> str:
        """Of what has been written, in hexadecimal."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self._stream.write(data)
        self._sha256.update(data)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Forces all of it to disk, still under the hidden name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def publish(self) -> None:
        """Gives the finished file its name; what had it before is gone."""
        if not self._stream.closed:
            raise ValueError(f"{self.path} is not finished")
        self._partial.replace(self.path)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._partial.unlink(missing_ok=True)  # published: it has another name now
