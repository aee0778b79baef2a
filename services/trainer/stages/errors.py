"""The errors of the training stages, beside those of ``services.trainer.errors``.

AndonError
└── FailedPreconditionError
    └── DataChangedError    a run cannot be continued: what it learned from is no longer the same
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError


class DataChangedError(FailedPreconditionError):
    """What a run learned from has changed since its checkpoint, so that it cannot be continued exactly."""

    def __init__(self, *, what: str, expected: object, actual: object) -> None:
        super().__init__(
            f"{what} changed since the checkpoint; start a new run",
            reason="DATA_CHANGED",
            what=what,
            expected=expected,
            actual=actual,
        )
