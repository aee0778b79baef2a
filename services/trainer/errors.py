"""The trainer's errors.

AndonError
├── InvalidArgumentError
│   ├── InvalidRequestIdError      the request id is empty or too long
│   ├── InvalidStageError          no such stage
│   ├── InvalidConfigError         a stage's configuration cannot be used; names the field
│   └── InvalidPageError           a page size or token cannot be used
├── NotFoundError
│   └── RunNotFoundError
├── AlreadyExistsError
│   └── RequestIdReusedError       the same request id with other content
├── FailedPreconditionError
│   ├── RunInProgressError         one run at a time
│   ├── RunNotActiveError          only an active run can be paused
│   ├── RunNotResumableError       it has ended for good, or the cord holds it
│   ├── RunAlreadyEndedError
│   ├── TokenizerMismatchError     two services do not mean the same by a token id
│   └── SamplerTakesNoWeightsError a sampler whose backend cannot follow a policy that learns
├── UnavailableError
│   ├── PeerLostError              a service did not come back in time
│   ├── RankLostError              a process of this trainer is gone or silent
│   └── TrainerDrainingError       this process is about to end; watch again
├── DataLossError
│   ├── CheckpointsUnreadableError all checkpoints of a run are damaged
│   └── RunRecordUnreadableError   a run's record on disk is damaged
└── InternalError
    ├── StaleSampleError           a sample was written by another version than asked for, or too old a one
    ├── WeightsNotAcknowledgedError  a replica answers with another version than it was given
    ├── MalformedAnswerError       a service's answer does not fit the question
    ├── RanksDisagreeError         the processes of this trainer hold different weights
    └── NotFiniteError             training produced NaN or infinity
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from andon.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)


class InvalidRequestIdError(InvalidArgumentError):
    """The request id is empty or too long."""

    def __init__(self, *, max_characters: int) -> None:
        super().__init__(
            f"request_id must have 1 to {max_characters} characters", reason="INVALID_REQUEST_ID"
        )


class InvalidStageError(InvalidArgumentError):
    """No such stage."""

    def __init__(self, stage: object) -> None:
        super().__init__("stage must be SFT, REWARD_MODEL or PPO", reason="INVALID_STAGE", stage=stage)


class InvalidConfigError(InvalidArgumentError):
    """A stage's configuration cannot be used."""

    def __init__(self, *, field: str, problem: str) -> None:
        super().__init__(f"config.{field}: {problem}", reason="INVALID_CONFIG", field=field)
        self.field = field


class InvalidPageError(InvalidArgumentError):
    """A page size or token cannot be used."""


class RunNotFoundError(NotFoundError):
    """There is no run of this name."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is no run {run_id!r}", reason="RUN_NOT_FOUND", run_id=run_id)
        self.run_id = run_id


class RequestIdReusedError(AlreadyExistsError):
    """The same request id came with other content."""

    def __init__(self, *, request_id: str, run_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} already started run {run_id} with another stage or configuration",
            reason="REQUEST_ID_REUSED",
            request_id=request_id,
            run_id=run_id,
        )


class RunInProgressError(FailedPreconditionError):
    """The trainer runs one run at a time."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"run {run_id} is in progress; stop it or wait for its end",
            reason="RUN_IN_PROGRESS",
            run_id=run_id,
        )


class RunNotActiveError(FailedPreconditionError):
    """Only an active run can be paused."""

    def __init__(self, *, run_id: str, state: str) -> None:
        super().__init__(
            f"run {run_id} is {state}, not active", reason="RUN_NOT_ACTIVE", run_id=run_id, state=state
        )


class RunNotResumableError(FailedPreconditionError):
    """The run has ended for good, is running, or is held by the cord."""

    def __init__(self, *, run_id: str, state: str, why: str) -> None:
        super().__init__(
            f"run {run_id} cannot be resumed: {why}", reason="RUN_NOT_RESUMABLE", run_id=run_id, state=state
        )


class RunAlreadyEndedError(FailedPreconditionError):
    """The run has ended."""

    def __init__(self, *, run_id: str, state: str) -> None:
        super().__init__(f"run {run_id} is {state}", reason="RUN_ALREADY_ENDED", run_id=run_id, state=state)


class TokenizerMismatchError(FailedPreconditionError):
    """Two services do not mean the same by a token id."""

    def __init__(self, *, peer: str, fingerprint: str, expected: str) -> None:
        super().__init__(
            f"the {peer}'s tokenizer or prompt template differs from the policy's",
            reason="TOKENIZER_MISMATCH",
            peer=peer,
            fingerprint=fingerprint,
            expected=expected,
        )


class PeerLostError(UnavailableError):
    """A service did not come back within the patience."""

    def __init__(self, *, peer: str, patience_s: float, last_problem: str) -> None:
        super().__init__(
            f"{peer} did not come back within {patience_s:g} s ({last_problem}); "
            "the run can be resumed once it has",
            reason="PEER_LOST",
            peer=peer,
            patience_s=patience_s,
        )


class RankLostError(UnavailableError):
    """A process of this trainer is gone or silent; all of them must be started again."""

    def __init__(self, *, rank: int, problem: str) -> None:
        super().__init__(
            f"another process of this trainer is lost ({problem}); all of them must be started again, "
            "and the run goes on from its last checkpoint",
            reason="RANK_LOST",
            seen_by_rank=rank,
        )


class TrainerDrainingError(UnavailableError):
    """This process is about to end; the run goes on in the next one."""

    def __init__(self) -> None:
        super().__init__(
            "the trainer is shutting down; watch again from the last sequence", reason="DRAINING"
        )


class CheckpointsUnreadableError(DataLossError):
    """All checkpoints of a run are damaged."""

    def __init__(self, *, folder: Path, damaged: Sequence[str]) -> None:
        super().__init__(
            f"none of the {len(damaged)} checkpoints can be read: {', '.join(damaged)}",
            reason="CHECKPOINTS_UNREADABLE",
            folder=folder,
        )


class RunRecordUnreadableError(DataLossError):
    """A run's record on disk is damaged."""

    def __init__(self, *, path: Path, problem: str) -> None:
        super().__init__(f"{path} cannot be read: {problem}", reason="RUN_RECORD_UNREADABLE", path=path)


class StaleSampleError(InternalError):
    """A sample was written by another version than the one asked for, or by one that is too old."""

    def __init__(self, *, peer: str, expected: object, actual: object) -> None:
        super().__init__(
            f"{peer} gave a sample of {actual} where {expected} was required",
            reason="STALE_SAMPLE",
            peer=peer,
            expected=expected,
            actual=actual,
        )


class WeightsNotAcknowledgedError(InternalError):
    """A replica answers with another version than it was given."""

    def __init__(self, *, peer: str, expected: object, actual: object) -> None:
        super().__init__(
            f"{peer} acknowledged {actual} where {expected} was sent",
            reason="WEIGHTS_NOT_ACKNOWLEDGED",
            peer=peer,
            expected=expected,
            actual=actual,
        )


class SamplerTakesNoWeightsError(FailedPreconditionError):
    """A sampler whose backend serves a model of its own cannot follow a policy that learns."""

    def __init__(self, *, peer: str) -> None:
        super().__init__(
            f"the backend of the {peer} cannot be given new weights; PPO needs the built-in engine",
            reason="SAMPLER_TAKES_NO_WEIGHTS",
            peer=peer,
        )


class MalformedAnswerError(InternalError):
    """A service's answer does not fit the question."""

    def __init__(self, *, peer: str, problem: str) -> None:
        super().__init__(f"{peer}: {problem}", reason="MALFORMED_ANSWER", peer=peer)


class RanksDisagreeError(InternalError):
    """The processes of this trainer should hold the same weights and do not."""

    def __init__(self, *, differing: int, total: int, step: int) -> None:
        super().__init__(
            f"{differing} of {total} weight tensors differ between the trainer's processes after step {step}",
            reason="RANKS_DISAGREE",
            differing=differing,
            step=step,
        )


class NotFiniteError(InternalError):
    """Training produced NaN or infinity."""

    def __init__(self, *, quantity: str, step: int) -> None:
        super().__init__(
            f"{quantity} is not finite at step {step}", reason="NOT_FINITE", quantity=quantity, step=step
        )
        self.quantity = quantity
