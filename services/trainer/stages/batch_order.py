"""Decides which items go into which update, so that a resumed run sees what the first one would have.

Pure. An epoch's order depends only on (seed, epoch); an update's batch depends only on that order and on the
items' sizes. A checkpoint therefore needs the number of updates done and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


class BatchOrder:
    """The batches of all updates of a run, in order.

    Items are shuffled anew each epoch and filled into batches up to ``budget``; a batch never spans two
    epochs. An item larger than the budget is a batch of its own.
    """

    def __init__(
        self, sizes: Sequence[int], *, budget: int, seed: int, steps: int | None, epochs: int | None
    ) -> None:
        """``sizes``: one positive number per item, in the unit of ``budget``. Exactly one of steps and
        epochs.
        """
        if not sizes:
            raise ValueError("there are no items")
        if (steps is None) == (epochs is None):
            raise ValueError("give either steps or epochs")
        self._batches: list[list[int]] = []
        self._epochs: list[int] = []
        epoch = 0
        while epoch < epochs if epochs is not None else len(self._batches) < (steps or 0):
            batches = list(_fill(_shuffled(len(sizes), seed, epoch), sizes, budget))
            self._batches.extend(batches)
            self._epochs.extend([epoch] * len(batches))
            epoch += 1
        if steps is not None:
            del self._batches[steps:], self._epochs[steps:]

    def __len__(self) -> int:
        """Updates in all."""
        return len(self._batches)

    def __getitem__(self, step: int) -> list[int]:
        """The items of update ``step``, from 0."""
        return self._batches[step]

    def epoch(self, step: int) -> int:
        """The epoch that update ``step`` belongs to, from 0."""
        return self._epochs[step]


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def _fill(order: Sequence[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for item in order:
        if batch and size + sizes[item] > budget:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += sizes[item]
    if batch:
        yield batch
