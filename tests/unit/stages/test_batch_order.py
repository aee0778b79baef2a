"""Which items go into which update."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.stages.batch_order import BatchOrder


@settings(deadline=None)  # a busy machine must not fail it
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    budget=st.integers(1, 60),
    seed=st.integers(0, 1000),
    epochs=st.integers(1, 3),
)
def test_every_epoch_holds_every_item_once_within_the_budget(
    sizes: list[int], budget: int, seed: int, epochs: int
) -> None:
    order = BatchOrder(sizes, budget=budget, seed=seed, steps=None, epochs=epochs)
    batches = [order[step] for step in range(len(order))]
    assert all(len(batch) == 1 or sum(sizes[item] for item in batch) <= budget for batch in batches)
    for epoch in range(epochs):
        items = [item for step, batch in enumerate(batches) if order.epoch(step) == epoch for item in batch]
        assert sorted(items) == list(range(len(sizes)))
    counts = Counter(item for batch in batches for item in batch)
    assert set(counts.values()) == {epochs}


def test_steps_begin_as_epochs_do_and_the_order_is_seeded() -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    by_epochs = BatchOrder(sizes, budget=10, seed=7, steps=None, epochs=3)
    by_steps = BatchOrder(sizes, budget=10, seed=7, steps=7, epochs=None)
    assert len(by_steps) == 7
    assert [by_steps[step] for step in range(7)] == [by_epochs[step] for step in range(7)]
    other = BatchOrder(sizes, budget=10, seed=8, steps=7, epochs=None)
    assert [other[step] for step in range(7)] != [by_steps[step] for step in range(7)]


def test_epochs_differ_from_each_other() -> None:
    order = BatchOrder([1] * 20, budget=20, seed=0, steps=None, epochs=2)
    assert order[0] != order[1]


def test_an_item_above_the_budget_stands_alone() -> None:
    order = BatchOrder([50, 1, 1], budget=10, seed=0, steps=None, epochs=1)
    assert [0] in [order[step] for step in range(len(order))]


def test_impossible_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        BatchOrder([], budget=1, seed=0, steps=1, epochs=None)
    for steps, epochs in [(None, None), (1, 1)]:
        with pytest.raises(ValueError, match="either"):
            BatchOrder([1], budget=1, seed=0, steps=steps, epochs=epochs)
