"""What a researcher decides for a project and for a batch, and which decisions are taken.

A project is one question put to one group of people: its instructions, what its page asks for, and what a
labeler goes through before the first item. A batch is a set of tasks inside it with rules of who gets what.
The stores keep these values as JSON; the servicer and the pages fill them in.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_text

DEFAULT_PROJECT = "default"
MAX_TITLE_CHARS = 200
MAX_INSTRUCTIONS_CHARS = 50_000
MAX_ONBOARDING_ITEMS = 100
MAX_ATTEMPTS = 10
MAX_SHARES_TOGETHER = 0.9
MAX_PRIORITY = 1_000_000
MAX_ITEM_S = 86_400.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


class BatchMode(enum.Enum):
    """How labels and policies follow each other (Stiennon et al. 2020, Bai et al. 2022)."""

    OFFLINE = "offline"  # a fixed set of comparisons
    BATCHED = "batched"  # a large batch is collected, then everything is trained anew from the base
    ONLINE = "online"  # labels arrive while the policy changes: the newest tasks come first


@dataclass(frozen=True, slots=True, kw_only=True)
class OnboardingSettings:
    """What a labeler goes through before they work; all zero: nothing."""

    training_count: int = 0  # items with feedback
    screening_count: int = 0  # items without
    min_agreement: float = 0.0  # admitted from this share of right screening answers on, 0..1
    max_item_s: float | None = None  # and when an item took no longer on average
    max_attempts: int = 1  # how often the screening may be taken

    @property
    def is_needed(self) -> bool:
        """Whether anything stands before the first item."""
        return self.training_count > 0 or self.screening_count > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """What a researcher decides for a project."""

    title: str = ""  # the name when empty
    naive_reading: bool = False  # ask for a reading of the candidates before the document is shown
    rating_axes: bool = False  # ask for 1..7 on accuracy, coverage, coherence and overall
    no_indifference: bool = False  # leave 5 out of the 9-point scale
    reading_aids: bool = False  # offer word differences and look-up; their use is logged
    onboarding: OnboardingSettings = field(default_factory=OnboardingSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What a researcher decides for a batch. Shares are 0..1 of each labeler's items."""

    mode: BatchMode = BatchMode.BATCHED
    calibration_share: float = 0.0  # from the project's shared pool, which researchers label too
    drift_share: float = 0.0  # supervised against reference
    gold_share: float = 0.0  # the right answer is known
    repeat_share: float = 0.0  # answered before by the same labeler
    max_answers_per_labeler: int | None = None
    priority: int = 0  # batches of a project are worked off from the highest down
    is_closed: bool = False

    @property
    def has_shares(self) -> bool:
        """Whether some items of a labeler are of another kind than ordinary ones."""
        return any((self.calibration_share, self.drift_share, self.gold_share, self.repeat_share))


def check_project_name(name: str) -> None:
    """A project's name is 1 to 100 letters, digits, dots, underscores and hyphens."""
    if _NAME.fullmatch(name) is None:
        raise InvalidFieldError(
            "1 to 100 letters, digits, '.', '_' or '-'", reason="INVALID_PROJECT", field="project"
        )


def check_project_filter(name: str) -> None:
    """As :func:`check_project_name`, but empty means every project."""
    if name:
        check_project_name(name)


def check_instructions(text: str) -> None:
    """Instructions are a plain text of bearable length."""
    check_text(text, field="instructions", max_chars=MAX_INSTRUCTIONS_CHARS)


def check_project_settings(settings: ProjectSettings) -> None:
    """Refuse what could never work."""
    check_text(settings.title, field="title", max_chars=MAX_TITLE_CHARS)
    onboarding = settings.onboarding
    for name in ("training_count", "screening_count"):
        _check_range(name, getattr(onboarding, name), 0, MAX_ONBOARDING_ITEMS)
    _check_range("min_agreement", onboarding.min_agreement, 0.0, 1.0)
    _check_range("max_attempts", onboarding.max_attempts, 1, MAX_ATTEMPTS)
    if onboarding.max_item_s is not None and not 0 < onboarding.max_item_s <= MAX_ITEM_S:
        raise _invalid("max_item_s", f"{onboarding.max_item_s}; more than 0, at most {MAX_ITEM_S:g}")


def check_batch_settings(settings: BatchSettings) -> None:
    """Refuse what could never work."""
    shares = ("calibration_share", "drift_share", "gold_share", "repeat_share")
    for name in shares:
        _check_range(name, getattr(settings, name), 0.0, MAX_SHARES_TOGETHER)
    together = math.fsum(getattr(settings, name) for name in shares)
    if together > MAX_SHARES_TOGETHER + 1e-9:
        raise _invalid("calibration_share", f"all shares make {together:g}; at most {MAX_SHARES_TOGETHER:g}")
    if settings.max_answers_per_labeler is not None and settings.max_answers_per_labeler < 1:
        raise _invalid("max_answers_per_labeler", "at least 1, or none for no limit")
    _check_range("priority", settings.priority, -MAX_PRIORITY, MAX_PRIORITY)


def settings_to_json(settings: ProjectSettings | BatchSettings) -> dict[str, Any]:
    """As JSON holds it; what has its default is written too, so that a later default changes nothing."""
    return dataclasses.asdict(settings, dict_factory=_plain)


def project_settings_from_json(values: Mapping[str, Any]) -> ProjectSettings:
    """Read what :func:`settings_to_json` wrote; defaults hold where it says nothing."""
    rest = {name: value for name, value in values.items() if name != "onboarding"}
    return ProjectSettings(**rest, onboarding=OnboardingSettings(**values.get("onboarding", {})))


def batch_settings_from_json(values: Mapping[str, Any], *, priority: int, is_closed: bool) -> BatchSettings:
    """Read what :func:`settings_to_json` wrote. Priority and state have columns of their own."""
    rest = {name: value for name, value in values.items() if name not in ("mode", "priority", "is_closed")}
    mode = BatchMode(values.get("mode", BatchMode.BATCHED.value))
    return BatchSettings(**rest, mode=mode, priority=priority, is_closed=is_closed)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in items}


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise _invalid(name, f"{value}; {low:g} to {high:g}")


def _invalid(name: str, message: str) -> InvalidFieldError:
    return InvalidFieldError(message, reason="INVALID_SETTINGS", field=name)
