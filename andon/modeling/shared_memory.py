"""Decides how a process lets another one on the same host read its memory without a copy through a socket.

The memory is a memfd (Linux): it has no name in any folder, so nothing is left behind when either side is
killed, and it cannot shrink under a reader. The reader opens it through /proc, which the kernel allows to the
same user on the same host only; the random name proves that it is the memory that was meant, and not what
another host has at the same numbers. The trainer owns weights in it (``weight_image``), the policy service
reads them. What the bytes mean is not known here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
import stat
import weakref
from dataclasses import dataclass

from andon.errors import FailedPreconditionError

_NAME = re.compile(r"andon-[0-9a-f]{32}")
_SIZE_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, which only Linux's fcntl names


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemoryAddress:
    """Where another process of this host finds the memory."""

    process_id: int
    descriptor: int  # of that process
    name: str  # "andon-" and 128 random bits


class OwnMemory:
    """Zeroed memory of this process. The kernel frees it when nobody maps it any more, also after a kill."""

    def __init__(self, size_bytes: int) -> None:
        """``address`` is None where the system has no memfd; the memory is this process's alone then."""
        self.address: SharedMemoryAddress | None = None
        descriptor, name = -1, f"andon-{secrets.token_hex(16)}"
        length = max(size_bytes, 1)  # an empty mapping does not exist
        if hasattr(os, "memfd_create"):
            try:
                descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            except OSError:  # a sandbox forbids it: readers get the bytes over gRPC
                descriptor = -1
        if descriptor < 0:
            self.buffer = mmap.mmap(-1, length)
            return
        weakref.finalize(self, os.close, descriptor)
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, length)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
        self.buffer = mmap.mmap(descriptor, length)
        self.address = SharedMemoryAddress(process_id=os.getpid(), descriptor=descriptor, name=name)


def map_shared_memory(address: SharedMemoryAddress, size_bytes: int) -> mmap.mmap:
    """The first ``size_bytes`` of another process's memory; what is written here stays here.

    Raises FailedPreconditionError WEIGHTS_NOT_SHARED when this process does not see exactly that memory:
    another host, container or user, a sender that ended, or anything that is not sealed memory of that name.
    """
    path = f"/proc/{address.process_id:d}/fd/{address.descriptor:d}"
    if not _NAME.fullmatch(address.name) or size_bytes < 1:
        raise _not_shared("the address names no memory of Andon's")
    link = f"/memfd:{address.name} (deleted)"
    try:
        if os.readlink(path) != link:  # asked first: opening something else could block or have effects
            raise _not_shared("what the sender names is another thing here")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _not_shared(f"the sender's memory cannot be opened: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}") != link:
            raise _not_shared("what the sender names is another thing here")
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) != 0o600:
            raise _not_shared("the sender's memory is not this user's alone")
        if (
            fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SIZE_SEALS != _SIZE_SEALS
            or facts.st_size < size_bytes
        ):
            raise _not_shared("the sender's memory is too small or could shrink")
        return mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise _not_shared(f"the sender's memory cannot be mapped: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _not_shared(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="WEIGHTS_NOT_SHARED")
