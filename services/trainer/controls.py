"""What people, the operating system and the cord ask of a running run.

The servicer's calls and the shutdown set requests from their threads; the run's thread looks at ``demand``
between optimizer steps and waits in ``wait_for_change`` while it is held. Knows neither runs nor checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class HoldCause(StrEnum):
    """Who holds a run, and so who can lift it."""

    PERSON = "person"  # PauseRun; ResumeRun lifts it
    GUARD = "guard"  # a guard's alarm; ResumeRun lifts it
    CORD = "cord"  # pulled, by whom ever, or unheard; only the cord lifts it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stand still until this is lifted."""

    reason: str
    by: HoldCause


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """The process ends; go on in the next one."""


Demand: TypeAlias = Hold | Stop | Interrupt


class RunControls:
    """The requests to one run. Stop wins over interrupt, interrupt over holding."""

    def __init__(self, cord_hold: Callable[[], str | None]) -> None:
        """``cord_hold`` says why the cord holds training, or None; cheap, called from any thread."""
        self._cord_hold = cord_hold
        self._changed = threading.Condition()
        self._pause_reason: str | None = None
        self._guard_hold: Hold | None = None
        self._stop_reason: str | None = None
        self._interrupted = False

    def pause(self, reason: str) -> None:
        """A person asks the run to stand still."""
        with self._changed:
            self._pause_reason = reason or "paused"
            self._changed.notify_all()

    def hold_for_guard(self, hold: Hold) -> None:
        """A guard's alarm holds the run: by itself, or because it pulls the cord."""
        with self._changed:
            self._guard_hold = hold
            self._changed.notify_all()

    def lift_guard_hold(self) -> None:
        """The cord that a guard pulled was released."""
        with self._changed:
            self._guard_hold = None
            self._changed.notify_all()

    def resume(self) -> bool:
        """A person lets it go on; False when neither a person nor a guard by itself held it."""
        with self._changed:
            held_by_guard = self._guard_hold is not None and self._guard_hold.by is HoldCause.GUARD
            was_held = self._pause_reason is not None or held_by_guard
            self._pause_reason = None
            if held_by_guard:
                self._guard_hold = None
            self._changed.notify_all()
            return was_held

    def stop(self, reason: str) -> None:
        """A person ends it for good."""
        with self._changed:
            self._stop_reason = reason or "stopped"
            self._changed.notify_all()

    def interrupt(self) -> None:
        """The process ends."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def cord_changed(self) -> None:
        """The answer of ``cord_hold`` may have changed."""
        with self._changed:
            self._changed.notify_all()

    def cord_hold(self) -> str | None:
        """Why the cord holds training; None when it does not."""
        with self._changed:
            guard_hold = self._guard_hold
        if guard_hold is not None and guard_hold.by is HoldCause.CORD:
            return guard_hold.reason
        return self._cord_hold()

    def demand(self) -> Demand | None:
        """What is asked at this moment; None when the run may go on."""
        with self._changed:
            return self._demand()

    def wait_for_change(self, known: Demand | None) -> Demand | None:
        """Block until something else than ``known`` is asked, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._demand() != known)
            return self._demand()

    def _demand(self) -> Demand | None:
        if self._stop_reason is not None:
            return Stop(reason=self._stop_reason)
        if self._interrupted:
            return Interrupt()
        if self._pause_reason is not None:
            return Hold(reason=self._pause_reason, by=HoldCause.PERSON)
        if self._guard_hold is not None:
            return self._guard_hold
        cord_reason = self._cord_hold()
        return None if cord_reason is None else Hold(reason=cord_reason, by=HoldCause.CORD)
