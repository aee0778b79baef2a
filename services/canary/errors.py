"""The errors of the canary service, beside those of ``cluster_errors``.

AndonError
├── InvalidArgumentError
│   ├── InvalidFieldError         INVALID_REQUEST_ID, EMPTY_REASON, EMPTY_ACTOR, TEXT_TOO_LONG,
│   │                             INVALID_PAGE_SIZE, INVALID_PAGE_TOKEN
│   └── InvalidRolloutError       INVALID_ROLLOUT: steps, gates, rates or times that make no sense
├── NotFoundError
│   └── NoRolloutError            NO_ROLLOUT: there was none yet
├── AlreadyExistsError
│   └── RequestIdReusedError      REQUEST_ID_REUSED
├── FailedPreconditionError       also ROLLOUT_CONFLICT: the record was changed meanwhile
│   ├── RolloutInProgressError    ROLLOUT_IN_PROGRESS
│   ├── AlreadyStableError        ALREADY_STABLE
│   ├── NotALanguageModelError    NOT_A_LANGUAGE_MODEL
│   ├── LineStoppedError          LINE_STOPPED: the cord or an alert would roll it back at once
│   ├── NoPromptsError            NO_PROMPTS: there is nothing to probe both sides with
│   ├── NoPeopleError             NO_PEOPLE: labelers were to be asked, and no labeling service is known
│   ├── NothingInProgressError    NO_ROLLOUT_IN_PROGRESS
│   ├── NotObservedError          ROLLOUT_NOT_OBSERVED: only what is looked at can be promoted
│   └── StableUnknownError        STABLE_UNKNOWN: stable's replicas serve no one version of the store
└── UnavailableError
    ├── DrainingError             SHUTTING_DOWN: the process ends; watch again at the next one
    └── MetricsUnreadableError    METRICS_UNREADABLE: a replica's counters, or alerts, cannot be read
"""

from __future__ import annotations

from andon.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)


class InvalidFieldError(InvalidArgumentError):
    """A field of a request cannot be taken."""

    def __init__(self, problem: str, *, reason: str, field: str) -> None:
        super().__init__(f"{field}: {problem}", reason=reason, field=field)


class InvalidRolloutError(InvalidArgumentError):
    """What was asked for cannot be carried out."""

    default_reason = "INVALID_ROLLOUT"


class NoRolloutError(NotFoundError):
    """Nobody has started one yet."""

    default_reason = "NO_ROLLOUT"

    def __init__(self) -> None:
        super().__init__("there was no rollout yet")


class RequestIdReusedError(AlreadyExistsError):
    """The same id asked for another rollout before."""

    default_reason = "REQUEST_ID_REUSED"

    def __init__(self, *, request_id: str, rollout_id: str) -> None:
        super().__init__(
            f"this request_id has started another rollout, {rollout_id}",
            request_id=request_id,
            rollout_id=rollout_id,
        )


class RolloutInProgressError(FailedPreconditionError):
    """One rollout at a time."""

    default_reason = "ROLLOUT_IN_PROGRESS"

    def __init__(self, *, rollout_id: str, candidate: str, phase: str) -> None:
        super().__init__(
            f"rollout {rollout_id} of {candidate} is {phase}",
            rollout_id=rollout_id,
            candidate=candidate,
            phase=phase,
        )


class AlreadyStableError(FailedPreconditionError):
    """There is nothing to ship."""

    default_reason = "ALREADY_STABLE"

    def __init__(self, candidate: str) -> None:
        super().__init__(f"{candidate} is stable already", candidate=candidate)


class NotALanguageModelError(FailedPreconditionError):
    """A reward model writes no samples."""

    default_reason = "NOT_A_LANGUAGE_MODEL"

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is not a language model", model=model)


class LineStoppedError(FailedPreconditionError):
    """The cord or an alert would roll it back at once."""

    default_reason = "LINE_STOPPED"

    def __init__(self, why: str) -> None:
        super().__init__(f"no rollout begins now: {why}")


class NoPromptsError(FailedPreconditionError):
    """Nothing could be shown about a candidate."""

    default_reason = "NO_PROMPTS"

    def __init__(self) -> None:
        super().__init__("this service was started without prompts, so it could show nothing; set `prompts`")


class NoPeopleError(FailedPreconditionError):
    """People cannot be asked."""

    default_reason = "NO_PEOPLE"

    def __init__(self) -> None:
        super().__init__("people cannot be asked: this service knows no labeling service")


class NothingInProgressError(FailedPreconditionError):
    """There is no rollout that could be promoted or aborted."""

    default_reason = "NO_ROLLOUT_IN_PROGRESS"

    def __init__(self) -> None:
        super().__init__("no rollout is in progress")


class NotObservedError(FailedPreconditionError):
    """Only a version that is looked at can be promoted."""

    default_reason = "ROLLOUT_NOT_OBSERVED"

    def __init__(self, *, phase: str) -> None:
        super().__init__(
            f"the rollout is {phase}; only one that is observed or held can be promoted", phase=phase
        )


class StableUnknownError(FailedPreconditionError):
    """A rollout must know what to go back to."""

    default_reason = "STABLE_UNKNOWN"


class DrainingError(UnavailableError):
    """The process ends."""

    default_reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the canary controller is shutting down; the rollout goes on at the next start")


class MetricsUnreadableError(UnavailableError):
    """Something that tells over HTTP how it is does not."""

    default_reason = "METRICS_UNREADABLE"

    def __init__(self, url: str, problem: object) -> None:
        super().__init__(f"{url} cannot be read: {problem}", url=url)
