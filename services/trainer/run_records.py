"""What is known of a run and of what happened in it, and how that is written as JSON.

Values only: ``services.trainer.runs`` keeps them on disk, the servicer turns them into protobuf. Knows no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from andon.modeling.versions import ModelVersion
from services.trainer.guards.guard import Action, Alarm, Finding, GuardName


class StageName(StrEnum):
    """A kind of training."""

    SFT = "sft"
    REWARD_MODEL = "reward_model"
    PPO = "ppo"


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "pending"  # accepted, not yet begun
    RUNNING = "running"
    PAUSED = "paused"  # by a person, a guard or the cord
    INTERRUPTED = "interrupted"  # its process ended first
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_active(self) -> bool:
        """Whether a thread of this process works or waits on the run."""
        return self in (RunState.PENDING, RunState.RUNNING, RunState.PAUSED)

    @property
    def has_ended(self) -> bool:
        """Whether watchers need not wait for more. A failed run may still be resumed."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run at one moment."""

    run_id: str
    request_id: str
    request_sha256: str  # over the stage and the configuration as they were asked for
    stage: StageName
    state: RunState
    create_time: datetime
    update_time: datetime
    config: Mapping[str, Any] = field(
        hash=False
    )  # JSON values: the stage's configuration, every default filled in
    step: int = 0
    total_steps: int = 0  # 0 while unknown
    status_message: str = ""
    output_model: ModelVersion | None = None
    paused_by_person: bool = (
        False  # whether PauseRun or a guard holds it: only ResumeRun lets it go on, also in a new process
    )
    unfruitful_starts: int = 0  # starts by auto-resume since the last checkpoint

    def changed(self, now: datetime, **changes: Any) -> RunRecord:  # Any: the types of the fields
        """A copy with other values and a new update time."""
        return replace(self, update_time=now, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """A run moved to another state, or its status message changed."""

    state: RunState
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step was done."""

    step: int
    total_steps: int
    phase: str
    metrics: Mapping[str, float] = field(hash=False)
    remaining_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPublished:
    """A version was written to the store, or only to samplers."""

    model: ModelVersion
    stored: bool


Happening: TypeAlias = StateChanged | Progress | ModelPublished | Alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened in a run."""

    sequence: int  # from 1, without gaps
    time: datetime
    happening: Happening


def utc_now() -> datetime:
    """The clock that records use unless a test gives another."""
    return datetime.now(UTC)


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """All fields except the configuration, which lies in a file of its own because it never changes."""
    return {
        "run_id": record.run_id,
        "request_id": record.request_id,
        "request_sha256": record.request_sha256,
        "stage": record.stage.value,
        "state": record.state.value,
        "create_time": record.create_time.isoformat(),
        "update_time": record.update_time.isoformat(),
        "step": record.step,
        "total_steps": record.total_steps,
        "status_message": record.status_message,
        "output_model": None if record.output_model is None else _model_to_json(record.output_model),
        "paused_by_person": record.paused_by_person,
        "unfruitful_starts": record.unfruitful_starts,
    }


def record_from_json(values: Mapping[str, Any], config: Mapping[str, Any]) -> RunRecord:
    """The inverse of ``record_to_json``; KeyError, TypeError or ValueError for what it did not write."""
    output_model = values["output_model"]
    return RunRecord(
        run_id=values["run_id"],
        request_id=values["request_id"],
        request_sha256=values["request_sha256"],
        stage=StageName(values["stage"]),
        state=RunState(values["state"]),
        create_time=datetime.fromisoformat(values["create_time"]),
        update_time=datetime.fromisoformat(values["update_time"]),
        config=config,
        step=values["step"],
        total_steps=values["total_steps"],
        status_message=values["status_message"],
        output_model=None if output_model is None else _model_from_json(output_model),
        paused_by_person=values["paused_by_person"],
        unfruitful_starts=values["unfruitful_starts"],
    )


def event_to_json(event: RunEvent) -> dict[str, Any]:
    """One line of the event log."""
    common = {"sequence": event.sequence, "time": event.time.isoformat()}
    match event.happening:
        case StateChanged(state=state, message=message):
            return common | {"event": "state_changed", "state": state.value, "message": message}
        case ModelPublished(model=model, stored=stored):
            return common | {"event": "model_published", "model": _model_to_json(model), "stored": stored}
        case Alarm(finding=finding, action=action, step=step):
            return common | {
                "event": "guard_alarm",
                "guard": finding.guard.value,
                "action": action.value,
                "statistic": finding.statistic,
                "threshold": finding.threshold,
                "message": finding.message,
                "step": step,
            }
        case Progress() as progress:
            return common | {
                "event": "progress",
                "step": progress.step,
                "total_steps": progress.total_steps,
                "phase": progress.phase,
                "metrics": dict(progress.metrics),
                "remaining_s": progress.remaining_s,
            }


def event_from_json(values: Mapping[str, Any]) -> RunEvent:
    """The inverse of ``event_to_json``; KeyError, TypeError or ValueError for what it did not write."""
    happening: Happening
    match values["event"]:
        case "state_changed":
            happening = StateChanged(state=RunState(values["state"]), message=values["message"])
        case "model_published":
            happening = ModelPublished(model=_model_from_json(values["model"]), stored=values["stored"])
        case "progress":
            happening = Progress(
                step=values["step"],
                total_steps=values["total_steps"],
                phase=values["phase"],
                metrics=values["metrics"],
                remaining_s=values["remaining_s"],
            )
        case "guard_alarm":
            happening = Alarm(
                finding=Finding(
                    guard=GuardName(values["guard"]),
                    statistic=values["statistic"],
                    threshold=values["threshold"],
                    message=values["message"],
                ),
                action=Action(values["action"]),
                step=values["step"],
            )
        case other:
            raise ValueError(f"unknown event {other!r}")
    return RunEvent(
        sequence=values["sequence"], time=datetime.fromisoformat(values["time"]), happening=happening
    )


def _model_to_json(model: ModelVersion) -> dict[str, Any]:
    return {"family": model.family, "version": model.version, "weights_sha256": model.weights_sha256}


def _model_from_json(values: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        family=values["family"], version=values["version"], weights_sha256=values["weights_sha256"]
    )
