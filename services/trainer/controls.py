"""What people, the operating system and the cord ask of a running run.

The servicer's calls and the shutdown set requests from their threads; the run's thread looks at ``demand``
between optimizer steps and waits in ``wait_for_change`` while it is held. Knows neither runs nor checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stand still until this is lifted."""

    reason: str
    by_person: bool  # PauseRun, which only ResumeRun lifts; otherwise only the cord


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
        self._stop_reason: str | None = None
        self._interrupted = False

    def pause(self, reason: str) -> None:
        """A person asks the run to stand still."""
        with self._changed:
            self._pause_reason = reason or "paused"
            self._changed.notify_all()

    def resume(self) -> bool:
        """A person lets it go on; False when no person had paused it."""
        with self._changed:
            was_paused = self._pause_reason is not None
            self._pause_reason = None
            self._changed.notify_all()
            return was_paused

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
            return Hold(reason=self._pause_reason, by_person=True)
        cord_reason = self._cord_hold()
        return None if cord_reason is None else Hold(reason=cord_reason, by_person=False)
