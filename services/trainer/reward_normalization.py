"""Decides gain and bias of the reward, from raw scores of texts whose reward is known by definition.

The reward-model stage fits once, after training; the result is stored in the checkpoint, and the reward
service applies it as ``reward = gain * raw + bias``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from andon.modeling.normalization import Normalization


def fit_reference_zero(raw_scores: Sequence[float]) -> Normalization:
    """A bias so that these texts, the references, have mean reward 0 (S20, N+; I22 with demonstrations)."""
    return Normalization(method="reference_zero", gain=1.0, bias=-math.fsum(raw_scores) / len(raw_scores))


def fit_policy_unit(
    raw_scores: Sequence[float], *, mean: float = 0.0, deviation: float = 1.0
) -> Normalization:
    """A gain and a bias so that these texts, samples of the first policy, have this mean and deviation (Z19).

    The deviation is the population one, as in Z19's code. Raises ValueError when the scores do not vary.
    """
    count = len(raw_scores)
    raw_mean = math.fsum(raw_scores) / count
    raw_deviation = math.sqrt(math.fsum((score - raw_mean) ** 2 for score in raw_scores) / count)
    if raw_deviation == 0:
        raise ValueError("scores that do not vary cannot be scaled")
    gain = deviation / raw_deviation
    return Normalization(method="policy_unit", gain=gain, bias=mean - gain * raw_mean)
