"""Who may work on what, for how long, and in which order they see it.

A task with overlap N has N slots, and each slot takes one answer. A slot is free when it has no answer and
no lease that still runs. A labeler has one lease per task and round for good: they hold one slot of it at a
time, never get it back once they have answered or skipped it, and when their lease ran out and they are given
the task again it is the same lease with the same order of candidates, running anew. So nothing that a labeler
has seen is ever shuffled under their eyes. A task for everybody gets a slot for each labeler who comes to it.

Every order follows from the database's seed. The tasks stand on one shuffled circle, and each labeler enters
that circle at a place of their own. A task's candidates are shuffled, and from slot to slot turned on by one
place, so that over its labelers each candidate stands equally often at each place. Which items of a labeler
are calibration, drift, gold or repeats is drawn so that every twenty items hold the shares that were asked
for. The stores ask these rules and keep what they decided; the clock and the seed come from outside.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

from services.labeling.errors import (
    InvalidFieldError,
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    LeaseOfAnotherLabelerError,
)
from services.labeling.limits import check_batch_filter, check_labeler
from services.labeling.projects import BatchSettings, check_project_filter
from services.labeling.tasks import TaskKind

MAX_TASKS_PER_LEASE = 1_000
CIRCLE_PLACES = 2**31  # fits a signed 32-bit column
BLOCK_ITEMS = 20  # so many items of a labeler hold each share exactly, up to rounding


class Pool(enum.Enum):
    """Where an item comes from."""

    ORDINARY = "ordinary"
    CALIBRATION = "calibration"
    DRIFT = "drift"
    GOLD = "gold"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDurations:
    """How long leases run, in microseconds."""

    default_us: int
    max_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOrder:
    """A labeler's checked wish for work."""

    labeler_id: str
    batch: str  # empty: any batch
    project: str = ""  # empty: any project
    max_tasks: int
    duration_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTask:
    """A task as one labeler sees it."""

    lease_id: str
    document: str
    candidates: tuple[str, ...]  # in the labeler's order
    expire_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What the store knows of a lease when an answer to it comes in."""

    lease_id: str
    task_id: int
    batch_id: int
    slot_number: int
    labeler_id: str
    round: int
    shown_order: tuple[int, ...]  # the candidate shown_order[i] stands at place i of the labeler's screen
    lease_us: int
    expire_us: int
    is_answered: bool
    is_skipped: bool
    holds_slot: bool  # False once another lease has the slot
    kind: TaskKind  # what the task asks for


def check_lease_order(
    *,
    labeler_id: str,
    batch: str,
    project: str = "",
    max_tasks: int,
    duration_us: int | None,
    durations: LeaseDurations,
) -> LeaseOrder:
    """Fill in the defaults of a wish for work, or refuse it."""
    check_labeler(labeler_id)
    check_batch_filter(batch)
    check_project_filter(project)
    if not 0 <= max_tasks <= MAX_TASKS_PER_LEASE:
        raise InvalidFieldError(
            f"{max_tasks}; at most {MAX_TASKS_PER_LEASE:,}", reason="INVALID_LEASE", field="max_tasks"
        )
    duration_us = durations.default_us if duration_us is None else duration_us
    if not 0 < duration_us <= durations.max_us:
        raise InvalidFieldError(
            f"{duration_us / 1e6:g} s; more than 0, at most {durations.max_us / 1e6:g} s",
            reason="INVALID_LEASE",
            field="lease_duration",
        )
    return LeaseOrder(
        labeler_id=labeler_id,
        batch=batch,
        project=project,
        max_tasks=max_tasks or 1,
        duration_us=duration_us,
    )


def check_may_answer(lease: LeaseRecord, *, labeler_id: str, now_us: int) -> None:
    """Refuse an answer to a lease that is not this labeler's, has its answer, or ran out."""
    if lease.labeler_id != labeler_id:
        raise LeaseOfAnotherLabelerError(lease.lease_id)
    if lease.is_answered:
        raise LeaseAlreadyAnsweredError(lease.lease_id)
    if lease.is_skipped:
        raise LeaseExpiredError(lease.lease_id)
    # A wall clock that was set back must not revive a lease whose slot went to somebody else.
    if lease.expire_us <= now_us or not lease.holds_slot:
        raise LeaseExpiredError(lease.lease_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """All random decisions, each a fixed function of the seed."""

    seed: str

    def task_place(self, task_id: int) -> int:
        """Where a task stands on the circle, in [0, CIRCLE_PLACES)."""
        return self._number("task", str(task_id)) % CIRCLE_PLACES

    def labeler_start(self, labeler_id: str) -> int:
        """Where a labeler enters the circle, in [0, CIRCLE_PLACES)."""
        return self._number("labeler", labeler_id) % CIRCLE_PLACES

    def shown_order(self, task_id: int, slot_number: int, num_candidates: int) -> tuple[int, ...]:
        """The permutation of the candidates for one slot of a task; candidate [i] stands at place i.

        Uniform for each slot by itself. Among ``num_candidates`` slots in a row each candidate stands once at
        each place.
        """
        if num_candidates == 0:
            return ()
        block, turn = divmod(slot_number, num_candidates)
        names = [str(index) for index in range(num_candidates)]
        drawn = [self._number("order", str(task_id), str(block), name) for name in names]
        order = sorted(range(num_candidates), key=drawn.__getitem__)
        return tuple(order[turn:] + order[:turn])

    def pools(self, labeler_id: str, first_item: int, count: int, settings: BatchSettings) -> list[Pool]:
        """Where a labeler's items number ``first_item`` (from 0) and the next ones come from."""
        return [
            self._block(labeler_id, item // BLOCK_ITEMS, settings)[item % BLOCK_ITEMS]
            for item in range(first_item, first_item + count)
        ]

    def _block(self, labeler_id: str, block: int, settings: BatchSettings) -> list[Pool]:
        pools: list[Pool] = []
        for pool, share in (
            (Pool.CALIBRATION, settings.calibration_share),
            (Pool.DRIFT, settings.drift_share),
            (Pool.GOLD, settings.gold_share),
            (Pool.REPEAT, settings.repeat_share),
        ):
            # A share that makes no whole items is rounded by a draw, so that it holds on average.
            whole = int(share * BLOCK_ITEMS + 1e-9)
            rest = share * BLOCK_ITEMS - whole
            drawn = self._number("share", labeler_id, str(block), pool.value) / 2**128
            pools += [pool] * (whole + (drawn < rest))
        pools = pools[:BLOCK_ITEMS]
        pools += [Pool.ORDINARY] * (BLOCK_ITEMS - len(pools))
        places = sorted(
            range(BLOCK_ITEMS), key=lambda item: self._number("pool", labeler_id, str(block), str(item))
        )
        return [pool for _, pool in sorted(zip(places, pools, strict=True))]

    def _number(self, *names: str) -> int:
        # Newlines separate unambiguously: no name may hold one.
        digest = hashlib.blake2b("\n".join((self.seed, *names)).encode(), digest_size=16).digest()
        return int.from_bytes(digest, "big")
