"""How much memory a process takes, from the kernel's own count: Linux only.

Imported by scripts of ours and by those that run in the peers' environment, so that both sides are measured
in the same way; it needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_RESET_PEAK = "5"  # what proc(5) has clear_refs take for it


def resident_bytes(process: int | str = "self") -> int:
    """What the process holds in memory now."""
    return _status_bytes(process, "VmRSS")


def peak_bytes(process: int | str = "self") -> int:
    """The most it has held since its start, or since ``reset_peak``."""
    return _status_bytes(process, "VmHWM")


def reset_peak(process: int | str = "self") -> None:
    """Count the peak from now on."""
    Path(f"/proc/{process}/clear_refs").write_text(_RESET_PEAK)


def settle() -> None:
    """Give back to the kernel what this process has freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def extra_bytes(work: Callable[[], object]) -> int:
    """The most that this process holds during ``work`` above what it held before."""
    settle()
    before = resident_bytes()
    reset_peak()
    work()
    return peak_bytes() - before


def _status_bytes(process: int | str, field: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {process} tells no {field}")
