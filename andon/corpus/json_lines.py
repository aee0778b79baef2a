"""Reads and writes JSON Lines, gzipped where the name ends in ``.gz``, one line at a time.

Reading is tolerant: a line that holds no JSON object is handed on as the reason why, and the next line
follows. No line longer than MAX_LINE_BYTES is taken into memory, so a damaged or hostile file costs no more
than a sound one. Both ways take the SHA-256 of the file's bytes on the go. Used by ``andon.corpus.loaders``
and by what writes data sets.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from andon.corpus.atomic_file import AtomicFile
from andon.corpus.errors import RowError, UnknownFormatError

MAX_LINE_BYTES = 16 * 1024 * 1024
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP_WINDOW_BITS = 31  # zlib's way to ask for a gzip header: without a name or a time, so that the same rows
# give the same bytes


class RowReader:
    """A JSON Lines file, and what is known of it once it has been read to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row_count = 0  # sound rows and others; blank lines are none
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the file's bytes, in hexadecimal; whole once all rows have been read."""
        return self._sha256.hexdigest()

    def rows(self) -> Generator[tuple[int, Mapping[str, Any] | RowError], None, None]:
        """Each JSON object, or why a line is none, with the line's number from 1. To be called once.

        Raises the operating system's errors, and UnknownFormatError for a damaged archive.
        """
        with self.path.open("rb", buffering=0) as raw:
            stream: io.BufferedIOBase = io.BufferedReader(_Digesting(raw, self._sha256), 1 << 17)
            if self.path.suffix == ".gz":
                stream = io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 17)
            try:
                for number, line in _lines(stream):
                    row = line if isinstance(line, RowError) else _decode(line, is_first=number == 1)
                    if row is not None:
                        self.row_count += 1
                        yield number, row
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UnknownFormatError(str(self.path), "a whole gzip archive", str(error)) from error


def read_rows(path: Path) -> Generator[tuple[int, Mapping[str, Any] | RowError], None, None]:
    """The rows of a file, as RowReader.rows."""
    return RowReader(path).rows()


class RowWriter:
    """Writes rows to a file that appears under its name when it is published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row_count = 0
        self._file = AtomicFile(path)
        self._compressor = (
            zlib.compressobj(6, zlib.DEFLATED, _GZIP_WINDOW_BITS) if path.suffix == ".gz" else None
        )

    @property
    def sha256(self) -> str:
        """Of the file's bytes, in hexadecimal; whole once finished."""
        return self._file.sha256

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row. A row that was read with half a character somewhere keeps it, as an escape."""
        try:
            self.write_line(line_from_row(row))
        except UnicodeEncodeError:
            self.write_line(json.dumps(row, allow_nan=False))

    def write_line(self, line: str) -> None:
        """Adds a row that is a line of JSON already."""
        data = line.encode() + b"\n"
        self._file.write(data if self._compressor is None else self._compressor.compress(data))
        self.row_count += 1

    def finish(self) -> None:
        """Forces all rows to disk, still under a hidden name."""
        if self._compressor is not None:
            self._file.write(self._compressor.flush())
        self._file.finish()

    def publish(self) -> None:
        """Gives the finished file its name."""
        self._file.publish()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def line_from_row(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON without its end; characters stand for themselves.

    Raises ValueError for numbers that JSON does not have.
    """
    return _encode(row)


class _Digesting(io.RawIOBase):
    """Hands bytes on and takes their digest."""

    def __init__(self, raw: BinaryIO, digest: Any) -> None:  # hashlib's type is private
        self._raw = raw
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # any writable buffer
        data = self._raw.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self._digest.update(data)
        return len(data)


def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | RowError]]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := stream.readline(1 << 16)) and not rest.endswith(b"\n"):
            pass
        yield number, RowError(f"longer than {MAX_LINE_BYTES} bytes", "ROW_TOO_LONG")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


# JSON has no infinity and no "not a number"; Python's reader takes both unless told otherwise.
_parse = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).decode


def _decode(line: bytes, *, is_first: bool) -> Mapping[str, Any] | RowError | None:
    """The JSON object of a line, why it is none, or None for a blank line."""
    if is_first:
        line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip():
        return None
    try:
        row = _parse(line.decode())
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8: {error.reason} at byte {error.start}", "INVALID_TEXT")
    except RecursionError:
        return RowError("not JSON that can be read: nested too deeply", "NOT_JSON")
    except ValueError as error:  # JSONDecodeError, numbers with thousands of digits, and those below
        return RowError(f"not JSON: {error}", "NOT_JSON")
    if not isinstance(row, dict):
        return RowError(f"not a JSON object but {type(row).__name__}", "NOT_JSON")
    return row
