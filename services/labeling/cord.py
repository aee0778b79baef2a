"""When the andon cord is pulled, and what a pull or a release changes.

Anyone may pull, at any time, also a cord that is pulled already: the further reason joins the record. Only
a release of a pulled cord lets training go on. The record is a list of numbered events and the state is its
last one; :mod:`services.labeling.cord_store` keeps it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.labeling.errors import CordNotPulledError, InvalidFieldError
from services.labeling.limits import check_text

MAX_ACTOR_CHARS = 200
MAX_REASON_CHARS = 10_000


class CordAction(enum.Enum):
    """What somebody did to the cord."""

    PULL = "pull"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class CordEvent:
    """One pull or release."""

    number: int  # from 1, without gaps
    action: CordAction
    actor: str
    reason: str
    event_us: int


def is_pulled(last: CordEvent | None) -> bool:
    """Whether training must stand still. ``last`` is None for a cord that nobody ever touched."""
    return last is not None and last.action is CordAction.PULL


def check_cord_act(*, actor: str, reason: str) -> None:
    """Whoever acts gives a name and a reason."""
    if not actor.strip():
        raise InvalidFieldError("who acts must be named", reason="INVALID_ACTOR", field="actor")
    check_text(actor, field="actor", max_chars=MAX_ACTOR_CHARS, reason="INVALID_ACTOR")
    if not reason.strip():
        raise InvalidFieldError("a reason must be given", reason="EMPTY_REASON", field="reason")
    check_text(reason, field="reason", max_chars=MAX_REASON_CHARS)


def next_event(
    last: CordEvent | None, *, action: CordAction, actor: str, reason: str, now_us: int
) -> CordEvent:
    """The event that this act adds to the record."""
    if action is CordAction.RELEASE and not is_pulled(last):
        raise CordNotPulledError()
    number = 1 if last is None else last.number + 1
    return CordEvent(number=number, action=action, actor=actor, reason=reason, event_us=now_us)
