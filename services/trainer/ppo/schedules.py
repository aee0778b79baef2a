"""Decides the learning rate of every update, as a share of the peak.

Used by all three stages. Step counts from 0: the factor at ``step`` is the one that update ``step`` uses, and
depends on nothing else, so a resumed run needs no scheduler state but the step.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, total_steps: int, *, kind: ScheduleKind, warmup_steps: int = 0, final_ratio: float = 0.0
) -> float:
    """Factor in 0..1 for update ``step`` of ``total_steps``.

    Warm-up rises linearly from 0 at step 0 to 1 at ``warmup_steps`` (transformers' convention: with warm-up
    the first update has rate 0). Then "linear" falls to ``final_ratio`` at ``total_steps``, which without
    warm-up is Z19's and N+'s 1 - step / total; "cosine" falls along half a cosine (S20, I22: final ratio
    0.1); "constant" stays.
    """
    if step < 0 or total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"step {step}, warm-up {warmup_steps} and total {total_steps} do not fit together")
    if step < warmup_steps:
        return step / warmup_steps
    if kind == "constant":
        return 1.0
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    remaining = 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_ratio + (1.0 - final_ratio) * remaining
