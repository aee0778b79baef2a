"""How much a text repeats itself.

The trainer's guards and the canary's gates both look at it.
"""

from __future__ import annotations

from collections.abc import Sequence

REPEATED_GRAM = 3  # tokens


def repeated_share(tokens: Sequence[int], gram: int = REPEATED_GRAM) -> float:
    """The share of a text's n-grams that occurred in it before; 0 for a text shorter than one."""
    grams = [tuple(tokens[start : start + gram]) for start in range(len(tokens) - gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
