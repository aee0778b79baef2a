"""Counted by hand."""

import pytest

from andon.evaluation.repetition import repeated_share


def test_repeated_grams_are_counted() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    assert repeated_share([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repeated_share([1, 2]) == 0.0
    assert repeated_share([]) == 0.0
