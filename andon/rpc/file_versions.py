"""Decides whether files of certificates, keys or tokens have changed since they were read.

Everything that follows such files asks here, servers and clients alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

# What tells one state of some files from another: mtime, size and inode of each, None for one that is gone.
FilesVersion: TypeAlias = tuple[tuple[int, int, int] | None, ...]


def files_version(*paths: Path) -> FilesVersion:
    """The present state of the files; equal states mean that nothing has to be read again."""
    return tuple(_file_version(path) for path in paths)


def _file_version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
