"""What the machine can do with one thread: operations per second of large matrix products, bytes per second
read from memory.

``benchmarks.run`` measures it in every round, between the works, and shows how many times its limit each work
takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from andon.modeling.linear import has_operator, linear
from benchmarks.flops import Need
from benchmarks.measuring import emit, use_threads

MATRIX_SIZE = 2048  # rows and columns: 16 MiB each, more than a core's own caches
MEMORY_BYTES = 1 << 29  # of what is read, more than any cache holds
REPETITIONS = 5


def flops_per_second(size: int = MATRIX_SIZE) -> float:
    """float32 matrix products of ``size`` by ``size``, the best of several, per CPU second.

    By the faster of the two libraries in torch: on some processors its default is half as fast as the other.
    """
    left, right = torch.randn(size, size), torch.randn(size, size)
    into = torch.empty(size, size)
    ways: list[Callable[[], object]] = [lambda: torch.mm(left, right, out=into)]
    if has_operator():
        ways.append(lambda: linear(left, right, None))
    return 2 * size**3 / min(_fastest(way) for way in ways)


def bytes_per_second(size_bytes: int = MEMORY_BYTES) -> float:
    """Reading memory once, the better of a sum and a product with a vector, per CPU second."""
    width = 4096
    matrix = torch.ones(max(1, size_bytes // 4 // width), width)
    vector = torch.ones(width)
    seconds = min(_fastest(matrix.sum), _fastest(lambda: torch.mv(matrix, vector)))
    return matrix.nbytes / seconds


def limit_seconds(needs: Sequence[Need], machine: Mapping[str, float]) -> float:
    """What the work takes at the least on a machine with these ``flops_per_s`` and ``bytes_per_s``."""
    return sum(
        max(need["flops"] / machine["flops_per_s"], need["read_bytes"] / machine["bytes_per_s"])
        for need in needs
    )


def _fastest(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPETITIONS):
        begin_s = time.process_time()
        work()
        seconds.append(time.process_time() - begin_s)
    return min(seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--matrix-size", type=int, default=MATRIX_SIZE)
    flags.add_argument("--memory-bytes", type=int, default=MEMORY_BYTES)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    emit(
        bench="limits",
        flops_per_s=flops_per_second(arguments.matrix_size),
        bytes_per_s=bytes_per_second(arguments.memory_bytes),
    )


if __name__ == "__main__":
    main()
