"""Decides whether a larger batch would have helped: the gradient noise scale of M18, appendix A.1.

The PPO stage feeds it the squared gradient norms of micro-batches and of the batch they add up to, and
reports ``batch_size``: below that size doubling the batch nearly halves the updates needed, far above it is
wasted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """Unbiased estimates of the noise scale's two parts; their ratio is biased, so average before
    dividing.
    """

    gradient_sq_norm: float  # |G|^2 of the true gradient; may come out negative in one step
    noise_trace: float  # tr(Sigma), summed variance of one example's gradient

    @property
    def batch_size(self) -> float:
        """B_simple = tr(Sigma) / |G|^2, in examples; NaN when the gradient is exactly 0."""
        return self.noise_trace / self.gradient_sq_norm if self.gradient_sq_norm != 0 else float("nan")


def noise_scale(*, sq_norm_small: float, sq_norm_big: float, small: int, big: int) -> NoiseScale:
    """From the squared norm of the mean gradient at two batch sizes.

    sq_norm_small: averaged over the small batches that make up the big one. small, big: examples in each.
    |G|^2 = (big * n_big - small * n_small) / (big - small);  tr(Sigma) = (n_small - n_big) / (1/small -
    1/big).
    """
    if not 0 < small < big:
        raise ValueError(f"the small batch ({small}) must be smaller than the big one ({big}) and not empty")
    return NoiseScale(
        gradient_sq_norm=(big * sq_norm_big - small * sq_norm_small) / (big - small),
        noise_trace=(sq_norm_small - sq_norm_big) / (1 / small - 1 / big),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScaleAverage:
    """Exponential averages of both parts over updates, starting at 0: the start's bias cancels in the
    ratio.
    """

    decay: float = 0.9
    gradient_sq_norm: float = 0.0
    noise_trace: float = 0.0

    def after(self, observed: NoiseScale) -> Self:
        """The averages after one more update."""
        return replace(
            self,
            gradient_sq_norm=self.decay * self.gradient_sq_norm
            + (1 - self.decay) * observed.gradient_sq_norm,
            noise_trace=self.decay * self.noise_trace + (1 - self.decay) * observed.noise_trace,
        )

    @property
    def batch_size(self) -> float:
        """The averaged B_simple, in examples."""
        return NoiseScale(gradient_sq_norm=self.gradient_sq_norm, noise_trace=self.noise_trace).batch_size
