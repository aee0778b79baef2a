"""Decides how a reward model's raw output becomes the reward that is served and learned from.

The reward-model stage fits it, the store's manifest and the model's ``config.json`` carry it, the reward
service applies it. How gain and bias are fitted is the stage's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from andon.errors import InvalidArgumentError

# reference_zero: references score 0 on average (Stiennon et al. 2020). policy_unit: samples of the first
# policy have mean 0 and variance 1 (Ziegler et al. 2019). none: the raw output.
NormalizationMethod = Literal["none", "reference_zero", "policy_unit"]

CONFIG_KEY = "andon_normalization"  # the key in a saved model's config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """reward = gain * raw + bias."""

    method: NormalizationMethod = "none"
    gain: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in get_args(NormalizationMethod):
            raise InvalidArgumentError(
                f"unknown normalization {self.method!r}", reason="INVALID_NORMALIZATION", field="method"
            )
        if not (math.isfinite(self.gain) and math.isfinite(self.bias)) or self.gain <= 0:
            raise InvalidArgumentError(
                "a normalization needs a finite bias and a gain above 0, or it would turn the reward around",
                reason="INVALID_NORMALIZATION",
                field="gain",
            )

    def apply(self, raw: float) -> float:
        """The reward for one raw output of the head."""
        return self.gain * raw + self.bias

    def to_dict(self) -> dict[str, str | float]:
        """As stored in JSON."""
        return {"method": self.method, "gain": self.gain, "bias": self.bias}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Normalization:
        """Read what ``to_dict`` wrote; raises InvalidArgumentError INVALID_NORMALIZATION."""
        method, gain, bias = values.get("method"), values.get("gain"), values.get("bias")
        if (
            set(values) != {"method", "gain", "bias"}
            or method not in get_args(NormalizationMethod)
            or not isinstance(gain, (int, float))
            or not isinstance(bias, (int, float))
        ):
            raise InvalidArgumentError(
                f"not a normalization: {dict(values)!r}", reason="INVALID_NORMALIZATION"
            )
        return cls(method=method, gain=float(gain), bias=float(bias))  # type: ignore[arg-type]


NO_NORMALIZATION = Normalization()
