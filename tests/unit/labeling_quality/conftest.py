"""A maker of answers for tests of labeling quality."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from services.labeling.quality.records import JudgedAnswer, Purpose

MakeAnswer = Callable[..., JudgedAnswer]


@pytest.fixture
def make_answer() -> MakeAnswer:
    """``make_answer(task, labeler, tiers=((0,), (1,)))``: everything else has a plain default."""
    ids = count(1)

    def make(task_id: int, labeler_id: str, **fields: Any) -> JudgedAnswer:
        tiers = fields.get("tiers")
        default_size = sum(len(tier) for tier in tiers) if tiers else 1 if "verdict" in fields else 2
        num_candidates = fields.pop("num_candidates", default_size)
        number = next(ids)
        defaults: dict[str, Any] = {
            "comparison_id": number,
            "is_researcher": False,
            "tiers": None,
            "best_index": None,
            "verdict": None,
            "shown_order": tuple(range(num_candidates)),
            "candidate_chars": (100,) * num_candidates,
            "candidate_sources": ("policy",) * num_candidates,
            "purpose": Purpose.ORDINARY,
            "round": 0,
            "expected_tiers": None,
            "answer_us": number,
            "active_s": None,
            "confidence": None,
        }
        return JudgedAnswer(
            task_id=task_id, labeler_id=labeler_id, num_candidates=num_candidates, **(defaults | fields)
        )

    return make
