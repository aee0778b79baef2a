"""Decides how the processes of one trainer stay together: words from rank 0, sums over all, one look at each
other.

``torchrun`` starts the processes and ``join_ranks`` makes them one set. Rank 0 leads: it is the trainer that
others know. It tells a word, and every other rank waits for the next word for as long as it takes, without a
timeout and without spinning: a run may be held for days. In the middle of an optimizer step, where all ranks
are at work, a rank that stays silent for ``timeout_s`` is lost. One process alone is a set of one; everything
here then gives back what it was given. What the words mean is known to ``services.trainer.followers``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
import torch
import torch.distributed as dist
from torch import Tensor

from services.trainer.errors import InvalidConfigError, NotFiniteError, RankLostError, RanksDisagreeError

FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # torchrun's own variable: a new store for each attempt

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

NO_TIMEOUT = timedelta(days=3650)  # torch wants a number
BUCKET_BYTES = 64 * 1024 * 1024  # of gradients that are summed in one message
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeStep:
    """The word before every optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Stands for a tensor while a state is announced."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class CalledAwayError(Exception):
    """Rank 0 said another word than to take the step; whoever follows it obeys that word next."""

    def __init__(self, word: object) -> None:
        super().__init__(type(word).__name__)
        self.word = word


class Ranks:
    """The processes of one trainer, as one of them sees them. Used from one thread at a time."""

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        device: str = "cpu",
        words: dist.ProcessGroup | None = None,
        when_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """``words`` carries what rank 0 tells; ``when_lost`` is called once, when a rank is lost."""
        self.rank = rank
        self.size = size
        self.device = device
        self.lost = False
        self._words = words
        self._when_lost = when_lost

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # Words

    def tell(self, word: object) -> None:
        """From rank 0 to all others. On the others, which only listen, nothing happens."""
        if self.size > 1 and self.leads:
            self._refuse_if_lost()
            self._reaching_all(lambda: dist.broadcast_object_list([word], src=0, group=self._words))

    def hear(self) -> object:
        """Wait for the next word of rank 0."""
        heard: list[object] = [None]
        self._reaching_all(lambda: dist.broadcast_object_list(heard, src=0, group=self._words))
        return heard[0]

    def share(self, state: Any) -> Any:  # Any: nested dicts and lists with tensors, as in a checkpoint
        """Give rank 0's ``state`` to all ranks. What others pass is ignored."""
        if self.size == 1:
            return state
        tensors: list[Tensor] = []
        if self.leads:
            self.tell(_announce(state, tensors))
        else:
            state = _with_room(self.hear(), tensors)
        for tensor in tensors:
            self._reaching_all(partial(dist.broadcast, tensor, src=0, group=self._words))
        return state

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """An optimizer step, which all ranks take because rank 0 says so.

        Raises CalledAwayError where rank 0 said another word. A rank that fails in the middle leaves the
        others waiting for it, so the set is lost; what all find at the same time is no such failure.
        """
        if self.size == 1:
            yield
            return
        if self.leads:
            self.tell(TakeStep())
        elif not isinstance(word := self.hear(), TakeStep):
            raise CalledAwayError(word)
        _log.debug("step_begins", rank=self.rank)
        try:
            yield
        except (NotFiniteError, RanksDisagreeError):
            raise
        except BaseException:
            self._lose()
            raise

    # Sums

    def share_of(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of the work; the parts of all ranks are the whole."""
        return items[self.rank :: self.size]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, the same bits everywhere. All of one dtype."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._reaching_all(partial(dist.all_reduce, flat, op=dist.ReduceOp.SUM))
            summed = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, values in zip(bucket, summed, strict=True):
                tensor.copy_(values.view_as(tensor))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all ranks of each number."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest on any rank of each number."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def require_same(self, tensors: Sequence[Tensor], *, step: int) -> None:
        """Raise RanksDisagreeError, on all ranks, unless all have the same bits.

        Compared are exact sums of the bits of each tensor, which costs no more than reading them once.
        """
        if self.size == 1:
            return
        sums = torch.stack([_sum_of_bits(tensor) for tensor in tensors]).cpu()
        extremes = torch.cat([sums, -sums])
        self._reaching_all(lambda: dist.all_reduce(extremes, op=dist.ReduceOp.MAX))
        highest, lowest = extremes[: len(sums)], -extremes[len(sums) :]
        differing = int((highest != lowest).sum())
        if differing:
            raise RanksDisagreeError(differing=differing, total=len(sums), step=step)

    def _reduced(self, numbers: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        self._reaching_all(lambda: dist.all_reduce(values, op=operation))
        return [float(value) for value in values]

    # The end

    def leave(self) -> None:
        """Close the connections. The other ranks must be about to do the same, or gone."""
        if self.size > 1 and not self.lost:
            dist.destroy_process_group()

    def _reaching_all(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:  # what torch.distributed raises for a closed connection or a timeout
            self._lose()
            raise RankLostError(rank=self.rank, problem=str(error).splitlines()[0]) from error

    def _refuse_if_lost(self) -> None:
        if self.lost:
            raise RankLostError(rank=self.rank, problem="it was lost before")

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            _log.error("rank_lost", rank=self.rank, size=self.size)
            self._when_lost()


def join_ranks(device: str, *, timeout_s: float, when_lost: Callable[[], None] = lambda: None) -> Ranks:
    """Join the set that torchrun's variables describe; a set of one where there are none.

    ``device`` is "cpu" or, with a GPU for each rank, "cuda". Raises InvalidConfigError for one GPU by number,
    and for a torchrun that starts processes again whose addresses it does not forget.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=device)
    kind, _, number = device.partition(":")
    if number:
        raise InvalidConfigError(field="device", problem=f"{size} ranks cannot share {device}; say {kind}")
    if _finds_the_dead():
        raise InvalidConfigError(
            field="max_restarts",
            problem=f"torchrun that starts its processes again needs {FRESH_STORE}=1 in its environment, "
            "or new ranks look for the addresses of those before",
        )
    rank = int(os.environ["RANK"])
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    # Gradients go from where they are; numbers and words are on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=timeout)
    # A timeout counts on the side that has it: rank 0 must get rid of a word in time, the others may wait.
    words = dist.new_group(backend="gloo", timeout=timeout if rank == 0 else NO_TIMEOUT)
    _log.info("joined", rank=rank, size=size, device=device)
    return Ranks(rank=rank, size=size, device=device, words=words, when_lost=when_lost)


def _finds_the_dead() -> bool:
    """Whether ranks that torchrun starts again would meet in the store of those that died."""
    may_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    return may_restart and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


# Any, here and below: a state is nested dicts and lists, as in a checkpoint
def _announce(state: Any, tensors: list[Tensor]) -> Any:
    """The state with places for its tensors, whose bytes are appended to ``tensors``."""
    if isinstance(state, Tensor):
        tensors.append(_bytes_of(state.detach().cpu().contiguous()))
        return _Place(dtype=state.dtype, shape=tuple(state.shape))
    if isinstance(state, dict):
        return {key: _announce(value, tensors) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_announce(value, tensors) for value in state)
    return state


def _with_room(announced: Any, tensors: list[Tensor]) -> Any:
    """The state with empty tensors in their places, whose bytes are appended to ``tensors``."""
    if isinstance(announced, _Place):
        empty = torch.empty(announced.shape, dtype=announced.dtype)
        tensors.append(_bytes_of(empty))
        return empty
    if isinstance(announced, dict):
        return {key: _with_room(value, tensors) for key, value in announced.items()}
    if isinstance(announced, list | tuple):
        return type(announced)(_with_room(value, tensors) for value in announced)
    return announced


def _bytes_of(tensor: Tensor) -> Tensor:
    """[bytes] uint8, the tensor's own memory."""
    return tensor.reshape(-1).view(torch.uint8)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    room = BUCKET_BYTES
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and size > room:
            yield bucket
            bucket, room = [], BUCKET_BYTES
        bucket.append(tensor)
        room -= size
    if bucket:
        yield bucket


def _sum_of_bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
