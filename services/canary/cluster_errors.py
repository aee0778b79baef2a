"""The errors of the parts that speak with Kubernetes.

AndonError
├── UnavailableError
│   ├── ClusterUnavailableError   CLUSTER_UNAVAILABLE: no answer, throttled, or the server's own failure
│   └── NotLeaderError            NOT_LEADER: another controller acts now, which may answer
├── FailedPreconditionError
│   ├── ClusterMissingError       CLUSTER_OBJECT_MISSING: an object that must be there is not
│   ├── ClusterConflictError      CLUSTER_CONFLICT (changed since it was read), CLUSTER_NAME_TAKEN,
│   │                             WATCH_EXPIRED
│   ├── RevisionConflictError     ROLLOUT_CONFLICT: the record is not the one that was read
│   └── ClusterShapeError         CLUSTER_OBJECT_SHAPE: an object is not made as this service expects
└── PermissionDeniedError
    └── ClusterRefusedError       CLUSTER_REFUSED: credentials or rules do not allow it, or it is not valid
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError, PermissionDeniedError, UnavailableError


class ClusterUnavailableError(UnavailableError):
    """Kubernetes gave no answer, or asked to be left alone for ``retry_after_s``. It may have acted."""

    default_reason = "CLUSTER_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClusterMissingError(FailedPreconditionError):
    """The object does not exist."""

    default_reason = "CLUSTER_OBJECT_MISSING"


class ClusterConflictError(FailedPreconditionError):
    """The object is not as it was when it was read; read it again."""

    default_reason = "CLUSTER_CONFLICT"


class RevisionConflictError(FailedPreconditionError):
    """The rollout's record is of another revision than the one that the caller has read; load it again."""

    default_reason = "ROLLOUT_CONFLICT"


class ClusterShapeError(FailedPreconditionError):
    """An object lacks what this service must change in it."""

    default_reason = "CLUSTER_OBJECT_SHAPE"


class ClusterRefusedError(PermissionDeniedError):
    """Kubernetes refuses: credentials, rules, or a field that is not valid. No use repeating."""

    default_reason = "CLUSTER_REFUSED"

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message, code=code)


class NotLeaderError(UnavailableError):
    """Another controller leads, or this one has not renewed its lead in time."""

    default_reason = "NOT_LEADER"

    def __init__(self, *, holder: str = "") -> None:
        now = f"{holder} does" if holder else "load the rollout again when it does"
        super().__init__(f"this controller does not lead; {now}", holder=holder)
