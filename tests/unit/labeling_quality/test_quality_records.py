"""Which answers are values at all."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.quality.records import JudgedAnswer, Purpose


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "exactly one"),
        ({"tiers": ((0,), (1,)), "best_index": 0}, "exactly one"),
        ({"verdict": False, "best_index": 0}, "exactly one"),
        ({"tiers": ((0,), (0,))}, "tiers"),
        ({"tiers": ((0,), (2,))}, "tiers"),
        ({"tiers": ((0,), (1,)), "expected_tiers": ((0,),)}, "expected_tiers"),
        ({"best_index": 2}, "best_index 2"),
    ],
)
def test_what_is_no_decision_is_refused(
    make_answer: Callable[..., JudgedAnswer], fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make_answer(1, "a", num_candidates=2, **fields)


def test_purposes_have_the_names_of_the_protocol_in_lower_case() -> None:
    assert {purpose.value for purpose in Purpose} == {
        "ordinary", "calibration", "drift", "gold", "training", "screening"
    }  # fmt: skip
