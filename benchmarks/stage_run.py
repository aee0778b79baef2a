"""A run for a training stage that is only timed: no record, no checkpoints, no controls.

The benchmarks of training give it to the product's own stages. It notes a clock after every step and ends the
run when enough steps have been done, so that storing the result is not part of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from services.trainer.guards.guard import Alarm, Finding
from services.trainer.ranks import Ranks
from services.trainer.stages.context import RunStopped, StageClients, StageState

Reading = TypeVar("Reading")


class TimedRun(Generic[Reading]):
    """Implements ``StageContext``; ``clock`` is read after every step."""

    run_id = "benchmark"
    device = "cpu"

    def __init__(
        self,
        *,
        store: ModelStore,
        clients: StageClients,
        threads: int,
        num_steps: int,
        clock: Callable[[], Reading],
    ) -> None:
        """The first step is a warm-up: ``num_steps`` are timed behind it."""
        self.store = store
        self.clients = clients
        self.threads = threads
        self.ranks = Ranks()
        self.metrics: list[Mapping[str, float]] = []  # of the timed steps
        self._num_steps = num_steps
        self._clock = clock
        self._readings: list[Reading] = []

    @property
    def steps(self) -> list[tuple[Reading, Reading]]:
        """The clock before and after each timed step."""
        return list(pairwise(self._readings))

    def restored_state(self) -> StageState | None:
        """Always a fresh start."""
        return None

    def step_done(
        self,
        *,
        step: int,
        total: int,
        phase: str,
        metrics: Mapping[str, float],
        state: Callable[[], StageState],
        checkpoint: bool = False,
    ) -> None:
        """Read the clock; raises RunStopped after the last timed step."""
        if self._readings:
            self.metrics.append(dict(metrics))
        self._readings.append(self._clock())
        if len(self._readings) > self._num_steps:
            raise RunStopped

    def obey(self, state: Callable[[], StageState]) -> None:
        """Nobody asks for anything."""

    def asked_to_halt(self) -> bool:
        """Nobody asks for anything."""
        return False

    def published(self, model: ModelVersion, *, stored: bool) -> None:
        """Nobody is told."""

    def weights_sent(self, way: str, size_bytes: int, seconds: float) -> None:
        """Nobody counts."""

    def guards_checked(self, findings: Sequence[Finding], *, seconds: float) -> None:
        """Nobody is told."""

    def alarm(self, alarms: Sequence[Alarm]) -> None:
        """Nobody holds the run."""

    def when_cord_holds(self, act: Callable[[], None]) -> None:
        """There is no cord."""

    def waiting(self, message: str) -> None:
        """Nobody is told."""
