"""Decides how gradients move weights: AdamW with decoupled decay, gradient clipping, a learning-rate
schedule.

Shared by the supervised and the reward-model stage, whose configurations extend ``OptimizationConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from services.trainer.errors import NotFiniteError
from services.trainer.ppo.schedules import ScheduleKind, learning_rate_factor


class OptimizationConfig(BaseModel):
    """What a stage says about its optimizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(gt=0)  # the peak
    schedule: ScheduleKind = "cosine"  # S20, I22
    warmup_steps: int = Field(default=0, ge=0)
    final_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)  # of the peak; I22: 0.1
    weight_decay: float = Field(default=0.0, ge=0)  # on matrices only
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did."""

    learning_rate: float
    gradient_norm: float  # before clipping


class Updater:
    """Applies gradients to a model's weights."""

    def __init__(self, model: nn.Module, config: OptimizationConfig, *, total_steps: int) -> None:
        self._config = config
        self._total_steps = total_steps
        self._warmup_steps = min(config.warmup_steps, total_steps)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Decay pulls matrices towards 0; biases, norms and other vectors are better left alone.
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self._parameters if p.ndim >= 2],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
        )

    def apply(self, step: int) -> UpdateReport:
        """Update ``step`` (from 0) with the gradients that have been gathered, then clear them.

        Raises NotFiniteError, with the weights as they were, when the gradient is not finite.
        """
        learning_rate = self._config.learning_rate * learning_rate_factor(
            step,
            self._total_steps,
            kind=self._config.schedule,
            warmup_steps=self._warmup_steps,
            final_ratio=self._config.final_learning_rate_ratio,
        )
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(quantity="the gradient's norm", step=step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return UpdateReport(learning_rate=learning_rate, gradient_norm=norm)

    def state(self) -> dict[str, Any]:
        """The optimizer's memory, for a checkpoint. The schedule needs none."""
        return self._optimizer.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self._optimizer.load_state_dict(state)
