"""Decides in which order a stage's updates, validations, reports and checkpoints happen.

The supervised and the reward-model stage hand it a workload: what one batch does to the gradients, and how
the model is validated. Everything a checkpoint needs is gathered here, so that a run that was cut off at any
update continues with the same numbers as one that was not (on the CPU bit for bit). A run of several phases
has one loop for each, in turn, over the same model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from services.trainer.stages.batch_order import BatchOrder
from services.trainer.stages.context import StageContext, StageState
from services.trainer.stages.errors import DataChangedError
from services.trainer.stages.optimization import OptimizationConfig, Updater
from services.trainer.stages.random_state import capture_random_state, restore_random_state


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What passing one batch through the model gave."""

    metrics: Mapping[str, float]
    num_tokens: int  # passed through the model


class Workload(Protocol):
    """What is particular to a stage."""

    def accumulate(self, items: list[int]) -> BatchReport:
        """Add the gradients of the mean loss over these items to the model's."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data; empty when there is none."""
        ...


class TrainingLoop:
    """The updates of one run."""

    def __init__(
        self,
        *,
        context: StageContext,
        config: OptimizationConfig,
        model: nn.Module,
        order: BatchOrder,
        workload: Workload,
        validation_interval: int,
        identity: Mapping[str, str],
        phase: str = "train",
        first_step: int = 0,
        total_steps: int | None = None,
    ) -> None:
        """``identity`` names what must not change between a checkpoint and its continuation.

        ``phase`` tells the loops of one run apart; ``first_step`` updates were done by the loops before this
        one, and the run has ``total_steps`` in all (default: this loop's).
        """
        self._context = context
        self._model = model
        self._order = order
        self._workload = workload
        self._validation_interval = validation_interval
        self._phase = phase
        self._first_step = first_step
        self._total_steps = first_step + len(order) if total_steps is None else total_steps
        self._identity = {**identity, "number of updates": str(self._total_steps)}
        self._updater = Updater(model, config, total_steps=len(order))
        self._steps_done = first_step
        self._metrics: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Do all updates that are left; return the latest metrics of training and validation."""
        restored = self._context.restored_state()
        if restored is not None:
            self._restore(restored)
        end = self._first_step + len(self._order)
        while self._steps_done < end:
            step = self._steps_done - self._first_step
            began_s = time.perf_counter()
            batch = self._workload.accumulate(self._order[step])
            update = self._updater.apply(step)
            elapsed_s = time.perf_counter() - began_s
            self._steps_done += 1
            metrics = {
                **batch.metrics,
                "learning_rate": update.learning_rate,
                "gradient_norm": update.gradient_norm,
                "epoch": float(self._order.epoch(step)),
                "tokens_per_s": batch.num_tokens / max(elapsed_s, 1e-9),
            }
            validates = self._steps_done % self._validation_interval == 0 or self._steps_done == end
            if validates:
                metrics |= self._workload.validate()
            self._metrics |= metrics
            self._context.step_done(
                step=self._steps_done,
                total=self._total_steps,
                phase="validate" if validates else self._phase,
                metrics=metrics,
                state=self._state,
            )
        return dict(self._metrics)

    def _state(self) -> StageState:
        return {
            "identity": self._identity,
            "phase": self._phase,
            "steps_done": self._steps_done,
            "metrics": self._metrics,
            "model": self._model.state_dict(),
            "optimizer": self._updater.state(),
            "random": capture_random_state(self._context.device),
        }

    def _restore(self, state: StageState) -> None:
        for what, expected in state["identity"].items():
            actual = self._identity.get(what)
            if actual != expected:
                raise DataChangedError(what=what, expected=expected, actual=actual)
        if state["phase"] == self._phase:
            self._model.load_state_dict(state["model"])
            self._updater.restore(state["optimizer"])
            restore_random_state(state["random"], self._context.device)
            self._metrics = dict(state["metrics"])
            self._steps_done = state["steps_done"]
        elif state["steps_done"] >= self._first_step + len(self._order):
            # This phase was over: the loop that was cut off restores the weights.
            self._metrics = dict(state["metrics"])
            self._steps_done = self._first_step + len(self._order)
        # Otherwise the run was cut off between two phases: the loop before this one restored all there is.
