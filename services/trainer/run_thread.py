"""One run at work: the thread that carries its stage from PENDING to its end.

``RunThread`` is the ``StageContext`` that the stage sees. It saves checkpoints, keeps the record up to date
and obeys the controls. Made by ``services.trainer.runner``, which decides whether a run may start; what
training means is the stage's affair.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
import torch

from andon.errors import AndonError
from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from services.trainer.checkpoint import CheckpointFolder
from services.trainer.controls import Demand, Hold, HoldCause, Interrupt, RunControls, Stop
from services.trainer.errors import NotFiniteError, RankLostError
from services.trainer.guards.cord import CordGuard
from services.trainer.guards.guard import Action, Alarm, Finding
from services.trainer.metrics import TrainerMetrics
from services.trainer.precision import Precision, computing_in
from services.trainer.ranks import Ranks
from services.trainer.run_records import ModelPublished, Progress, RunRecord, RunState, StateChanged
from services.trainer.runs import RunRegistry
from services.trainer.stages.context import (
    RunInterrupted,
    RunStopped,
    Stage,
    StageClients,
    StageContext,
    StageState,
    WeightsWay,
)

_log = structlog.stdlib.get_logger(__name__)

MAX_REASON_CHARS = 2000  # of a reason for the cord
RETRY_AFTER_S = 1.0  # between two attempts to pull it
PULL_GRACE_S = 5.0  # for the last attempt of a run that fails


class OpenClients(Protocol):
    """Connections of one run."""

    @property
    def stage_clients(self) -> StageClients:
        """What the stage may call."""
        ...

    def close(self) -> None:
        """End calls in progress and close all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How every run of this process is carried out."""

    threads: int
    precision: Precision
    ranks: Ranks
    kept_checkpoints: int
    checkpoint_interval_s: float


class RunThread:
    """A run that this process works on. Give it to ``start`` once."""

    def __init__(
        self,
        record: RunRecord,
        *,
        registry: RunRegistry,
        store: ModelStore,
        settings: RunSettings,
        metrics: TrainerMetrics,
        clients: OpenClients,
        open_cord_guard: Callable[[Callable[[], None]], CordGuard] | None,
        build_stage: Callable[[StageContext], Stage],
        checkpoint_interval: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``checkpoint_interval`` counts steps; None saves by time. No ``open_cord_guard``: no cord."""
        self._record = record
        self._registry = registry
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clients = clients
        self._build_stage = build_stage
        self._checkpoint_interval = checkpoint_interval
        self._clock = clock
        self._checkpoints = CheckpointFolder(
            registry.folder(record.run_id) / "checkpoints", keep=settings.kept_checkpoints
        )
        self.controls = RunControls(self._cord_hold)
        self._cord_guard = None if open_cord_guard is None else open_cord_guard(self._cord_changed)
        self._thread = threading.Thread(target=self._run, name=f"run-{record.run_id}", daemon=True)
        self._last_saved_s = clock()
        self._pace_from: tuple[float, int] | None = (
            None  # time and step of the first step_done in this process
        )
        self._waiting_for = ""
        self._act_when_cord_holds: Callable[[], None] | None = None
        self._pulled_event: int | None = None  # of the cord, by a guard of this run; None when lifted
        self._pulling: threading.Thread | None = None  # who pulls the cord, while it is being pulled
        self._ended = threading.Event()

    # What the runner calls

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # StageContext, called from the run's thread

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._record.run_id

    @property
    def store(self) -> ModelStore:
        """The model store."""
        return self._store

    @property
    def threads(self) -> int:
        """CPU threads of torch."""
        return self._settings.threads

    @property
    def device(self) -> str:
        """Where models live."""
        return self._settings.ranks.device

    @property
    def ranks(self) -> Ranks:
        """The processes of this trainer."""
        return self._settings.ranks

    @property
    def clients(self) -> StageClients:
        """The other services."""
        return self._clients.stage_clients

    def restored_state(self) -> StageState | None:
        """The newest good checkpoint's state; says which damaged ones were passed over."""
        checkpoint = self._checkpoints.load_newest()
        if checkpoint is None:
            return None
        if checkpoint.passed_over:
            self._metrics.checkpoints_passed_over.inc(len(checkpoint.passed_over))
            _log.error("checkpoints_passed_over", run_id=self.run_id, names=checkpoint.passed_over)
            names = ", ".join(checkpoint.passed_over)
            self._change_state(
                RunState.RUNNING,
                f"continues from checkpoint {checkpoint.number}; damaged and passed over: {names}",
            )
        _log.info("checkpoint_restored", run_id=self.run_id, number=checkpoint.number)
        return checkpoint.state

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
        """Record a step, save it when due, then obey."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NotFiniteError(quantity=name, step=step)
        saved = checkpoint or self._checkpoint_is_due(step)
        if saved:
            self._save(state())
        self._registry.report(
            self.run_id,
            Progress(
                step=step,
                total_steps=total,
                phase=phase,
                metrics=dict(metrics),
                remaining_s=self._remaining_s(step, total),
            ),
        )
        self._metrics.step_done(self._record.stage, step=step, total=total, metrics=metrics)
        self._obey(state, saved=saved)

    def obey(self, state: Callable[[], StageState]) -> None:
        """Obey what is asked at this moment."""
        self._obey(state, saved=False)

    def asked_to_halt(self) -> bool:
        """Whether anything is asked at this moment."""
        return self.controls.demand() is not None

    def published(self, model: ModelVersion, *, stored: bool) -> None:
        """Record a written version."""
        self._metrics.models_published.labels("store" if stored else "samplers").inc()
        self._registry.update(self.run_id, ModelPublished(model=model, stored=stored), output_model=model)

    def weights_sent(self, way: WeightsWay, size_bytes: int, seconds: float) -> None:
        """Show them in the metrics."""
        self._metrics.weights_sent(way, size_bytes=size_bytes, seconds=seconds)

    def guards_checked(self, findings: Sequence[Finding], *, seconds: float) -> None:
        """Show them in the metrics."""
        self._metrics.guards_checked(findings, seconds=seconds)

    def alarm(self, alarms: Sequence[Alarm]) -> None:
        """Record alarms and hold the run, by itself or by the cord, as the strongest one says."""
        self._metrics.alarmed(alarms)
        for alarm in alarms:
            finding = alarm.finding
            _log.error(
                "guard_alarm",
                run_id=self.run_id,
                guard=finding.guard.value,
                action=alarm.action.value,
                step=alarm.step,
                statistic=finding.statistic,
                threshold=finding.threshold,
                message=finding.message,
            )
            self._registry.update(self.run_id, alarm)
        holding = [alarm for alarm in alarms if alarm.action.holds]
        if not holding:
            return
        if not all(alarm.finding.guard.is_preflight for alarm in holding):
            self._metrics.versions_withheld.inc()
        reason = "; ".join(f"guard {alarm.finding.guard.value}: {alarm.finding.message}" for alarm in holding)
        pulls = any(alarm.action is Action.CORD for alarm in holding)
        if not pulls or self._cord_guard is None:
            self.controls.hold_for_guard(Hold(reason=reason, by=HoldCause.GUARD))
            return
        self.controls.hold_for_guard(Hold(reason=reason, by=HoldCause.CORD))
        # One pull per run, update and set of guards: a run that is taken up again finds that it was released.
        guards = "+".join(sorted(alarm.finding.guard.value for alarm in holding))
        self._pulling = threading.Thread(
            target=self._pull_cord,
            args=(self._cord_guard, reason, f"{self.run_id}/{holding[0].step}/{guards}"),
            name="cord-pull",
            daemon=True,
        )
        self._pulling.start()

    def when_cord_holds(self, act: Callable[[], None]) -> None:
        """Remember what is to be done then."""
        self._act_when_cord_holds = act

    def waiting(self, message: str) -> None:
        """Tell watchers, once per message, what the run waits for."""
        if message == self._waiting_for:
            return
        if message:
            self._metrics.peer_waits.inc()
            _log.warning("run_waits", run_id=self.run_id, message=message)
        self._waiting_for = message
        self._change_state(RunState.RUNNING, message)

    # Inside

    def _run(self) -> None:
        state, message = RunState.FAILED, ""
        try:
            torch.set_num_threads(self._settings.threads)
            if self._cord_guard is not None:
                self._metrics.cord_unheard_seconds.set_function(self._cord_guard.unheard_s)
                self._cord_guard.start()
            self._metrics.run_began()
            self._change_state(RunState.RUNNING, "")
            with computing_in(self._settings.precision, self.device):
                model = self._build_stage(self).run()
            state, message = RunState.SUCCEEDED, f"wrote {model}"
        except RunStopped as halted:
            state, message = RunState.STOPPED, str(halted)
        except RunInterrupted:
            state, message = RunState.INTERRUPTED, "the trainer was shut down"
        except RankLostError as error:
            # This process cannot go on either. The next one takes the run up again.
            state, message = RunState.INTERRUPTED, f"{error.reason}: {error.message}"
            _log.error("run_interrupted", run_id=self.run_id, reason=error.reason, message=error.message)
        except AndonError as error:
            message = f"{error.reason}: {error.message}"
            _log.error("run_failed", run_id=self.run_id, reason=error.reason, message=error.message)
        except Exception as error:  # noqa: BLE001 - see below
            # The thread's outermost frame: the run fails, the service and the other runs live on.
            message = f"a defect of the trainer: {type(error).__name__}: {error}"
            _log.exception("run_failed", run_id=self.run_id)
        finally:
            if self._pulling is not None:
                self._pulling.join(PULL_GRACE_S)
            self._ended.set()
            self._clients.close()
            if self._cord_guard is not None:
                self._cord_guard.close()
            self._metrics.cord_holding.set(0)
            self._metrics.guard_holding.set(0)
            self._metrics.cord_unheard_seconds.set_function(lambda: 0.0)
        self._metrics.runs_ended.labels(state.value).inc()
        _log.info("run_ended", run_id=self.run_id, state=state.value)
        self._change_state(state, message)

    def _obey(self, state: Callable[[], StageState], *, saved: bool) -> None:
        demand = self.controls.demand()
        if demand is None:
            return
        if not saved:
            self._save(state())
        while isinstance(demand, Hold):
            demand = self._stand_still(demand)
        match demand:
            case Stop(reason=reason):
                raise RunStopped(reason)
            case Interrupt():
                raise RunInterrupted
            case None:
                self._pace_from = None  # the time stood still says nothing of the pace
                self._registry.update(
                    self.run_id,
                    StateChanged(state=RunState.RUNNING),
                    state=RunState.RUNNING,
                    status_message="",
                    paused_by_person=False,
                )
                self._metrics.state_changed(RunState.RUNNING)

    def _stand_still(self, hold: Hold) -> Demand | None:
        _log.warning("run_held", run_id=self.run_id, by=hold.by.value, reason=hold.reason)
        self._metrics.cord_holding.set(1 if hold.by is HoldCause.CORD else 0)
        self._metrics.guard_holding.set(1 if hold.by is HoldCause.GUARD else 0)
        self._metrics.state_changed(RunState.PAUSED)
        self._registry.update(
            self.run_id,
            StateChanged(state=RunState.PAUSED, message=hold.reason),
            state=RunState.PAUSED,
            status_message=hold.reason,
            paused_by_person=hold.by is not HoldCause.CORD,
        )
        if hold.by is HoldCause.CORD and self._act_when_cord_holds is not None:
            self._act_when_cord_holds()
        demand = self.controls.wait_for_change(hold)
        self._metrics.cord_holding.set(0)
        self._metrics.guard_holding.set(0)
        return demand

    def _pull_cord(self, cord: CordGuard, reason: str, request_id: str) -> None:
        """Until it is pulled, or the run has ended: a cord that is away now must stop the others later."""
        while not self._ended.is_set():
            try:
                self._pulled_event = cord.pull(reason=reason[:MAX_REASON_CHARS], request_id=request_id)
            except AndonError as error:
                _log.error("cord_not_pulled", run_id=self.run_id, reason=error.reason, message=error.message)
                self._ended.wait(RETRY_AFTER_S)
            except ValueError:  # what gRPC raises for a call on a channel that was closed in this very moment
                if not self._ended.is_set():
                    raise
            else:
                _log.warning("cord_pulled", run_id=self.run_id, event_number=self._pulled_event)
                self._cord_changed()
                return

    def _cord_changed(self) -> None:
        guard, event = self._cord_guard, self._pulled_event
        if guard is not None and event is not None and guard.released_after(event):
            self._pulled_event = None
            self.controls.lift_guard_hold()
        self.controls.cord_changed()

    def _cord_hold(self) -> str | None:
        return None if self._cord_guard is None else self._cord_guard.hold()

    def _change_state(self, state: RunState, message: str) -> None:
        self._metrics.state_changed(state)
        self._registry.update(
            self.run_id, StateChanged(state=state, message=message), state=state, status_message=message
        )

    def _checkpoint_is_due(self, step: int) -> bool:
        if self._checkpoint_interval is not None:
            return step % self._checkpoint_interval == 0
        return self._clock() - self._last_saved_s >= self._settings.checkpoint_interval_s

    def _save(self, state: StageState) -> None:
        started_s = self._clock()
        path = self._checkpoints.save(state)
        self._last_saved_s = self._clock()
        self._metrics.checkpoint_seconds.observe(self._last_saved_s - started_s)
        self._registry.update(self.run_id, unfruitful_starts=0)
        _log.info("checkpoint_saved", run_id=self.run_id, path=str(path))

    def _remaining_s(self, step: int, total: int) -> float | None:
        now_s = self._clock()
        if self._pace_from is None or total <= 0:
            self._pace_from = (now_s, step)
            return None
        from_s, from_step = self._pace_from
        if step <= from_step:
            return None
        return (now_s - from_s) / (step - from_step) * max(total - step, 0)
