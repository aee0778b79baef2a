"""Decides in which number format the trainer's passes compute; weights and optimizer stay in float32.

bfloat16 is torch's autocast: matrix products and attention in bfloat16, sums, losses and normalisations in
float32. It holds for a whole run, on every rank, so that what guards compute again is comparable.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def computing_in(precision: Precision, device: str) -> AbstractContextManager[object]:
    """Passes of this thread inside the context compute in ``precision``."""
    # Without the cache: it keeps rounded weights until the context ends, which is many optimizer steps later.
    return torch.autocast(
        torch.device(device).type,
        dtype=torch.bfloat16,
        enabled=precision == "bfloat16",
        cache_enabled=False,
    )


def precision_now(device: str) -> Precision:
    """What the passes of this thread compute in."""
    return "bfloat16" if torch.is_autocast_enabled(torch.device(device).type) else "float32"
