"""How a project's and a batch's settings become a form and come back from one.

Shares are written in percent. What the settings may be is decided in ``services.labeling.projects``; here is
only the way there and back, so that showing and sending without a change gives the same settings.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from services.labeling.errors import InvalidFieldError
from services.labeling.projects import (
    MAX_ATTEMPTS,
    MAX_INSTRUCTIONS_CHARS,
    MAX_ITEM_S,
    MAX_ONBOARDING_ITEMS,
    MAX_PRIORITY,
    MAX_SHARES_TOGETHER,
    MAX_TITLE_CHARS,
    BatchMode,
    BatchSettings,
    OnboardingSettings,
    ProjectSettings,
    check_batch_settings,
    check_instructions,
    check_project_settings,
    settings_to_json,
)
from services.labeling.web.research_desk import TypedForm

MAX_NAME_CHARS = 100
_MAX_ANSWERS = 10_000_000
_SHARES = ("calibration_share", "drift_share", "gold_share", "repeat_share")
_ONLY_DOTS = re.compile(r"\.+")  # would be lost in an address


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectForm:
    """What a researcher decided for a project."""

    settings: ProjectSettings
    instructions: str


def project_values(settings: ProjectSettings, instructions: str) -> dict[str, str]:
    """The settings as a form shows them."""
    onboarding = settings.onboarding
    return {
        "title": settings.title,
        "instructions": instructions,
        "naive_reading": _yes(settings.naive_reading),
        "rating_axes": _yes(settings.rating_axes),
        "no_indifference": _yes(settings.no_indifference),
        "reading_aids": _yes(settings.reading_aids),
        "training_count": str(onboarding.training_count),
        "screening_count": str(onboarding.screening_count),
        "min_agreement": _number(100 * onboarding.min_agreement),
        "max_item_s": "" if onboarding.max_item_s is None else _number(onboarding.max_item_s),
        "max_attempts": str(onboarding.max_attempts),
    }


def read_project(typed: TypedForm) -> ProjectForm:
    """The settings that were typed; ``typed.errors`` says what is wrong with them."""
    title = typed.text("title", max_chars=MAX_TITLE_CHARS)
    instructions = typed.text("instructions", max_chars=MAX_INSTRUCTIONS_CHARS)
    settings = ProjectSettings(
        title=title,
        naive_reading=typed.checked("naive_reading"),
        rating_axes=typed.checked("rating_axes"),
        no_indifference=typed.checked("no_indifference"),
        reading_aids=typed.checked("reading_aids"),
        onboarding=OnboardingSettings(
            training_count=typed.integer(
                "training_count", minimum=0, maximum=MAX_ONBOARDING_ITEMS, default=0
            ),
            screening_count=typed.integer(
                "screening_count", minimum=0, maximum=MAX_ONBOARDING_ITEMS, default=0
            ),
            min_agreement=typed.share("min_agreement", max_percent=100),
            max_item_s=typed.number("max_item_s", minimum=0, maximum=MAX_ITEM_S),
            max_attempts=typed.integer("max_attempts", minimum=1, maximum=MAX_ATTEMPTS, default=1),
        ),
    )
    typed.check(lambda: check_project_settings(settings))
    typed.check(lambda: check_instructions(instructions))
    return ProjectForm(settings=settings, instructions=instructions)


def batch_values(settings: BatchSettings) -> dict[str, str]:
    """The settings as a form shows them."""
    most = settings.max_answers_per_labeler
    return {
        "mode": settings.mode.value,
        **{name: _number(100 * getattr(settings, name)) for name in _SHARES},
        "max_answers_per_labeler": "" if most is None else str(most),
        "priority": str(settings.priority),
        "is_closed": _yes(settings.is_closed),
    }


def read_batch(typed: TypedForm) -> BatchSettings:
    """The settings that were typed; ``typed.errors`` says what is wrong with them."""
    max_percent = 100 * MAX_SHARES_TOGETHER
    mode = BatchMode(typed.choice("mode", tuple(mode.value for mode in BatchMode)))
    shares = {name: typed.share(name, max_percent=max_percent) for name in _SHARES}
    together = sum(shares.values())
    if together > MAX_SHARES_TOGETHER + 1e-9 and not typed.errors.keys() & set(_SHARES):
        typed.errors[_SHARES[0]] = (
            f"the four shares make {100 * together:g} % together; at most {max_percent:g} %, "
            "the rest is new work"
        )
        shares = dict.fromkeys(_SHARES, 0.0)
    settings = BatchSettings(
        mode=mode,
        **shares,
        max_answers_per_labeler=typed.integer(
            "max_answers_per_labeler", minimum=1, maximum=_MAX_ANSWERS, default=0
        )
        or None,
        priority=typed.integer("priority", minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY, default=0),
        is_closed=typed.checked("is_closed"),
    )
    typed.check(lambda: check_batch_settings(settings))
    return settings


def state_of(settings: ProjectSettings | BatchSettings, instructions: str = "") -> str:
    """A digest by which a form knows that somebody else has changed the settings meanwhile."""
    content = json.dumps([settings_to_json(settings), instructions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def check_name_in_address(name: str, *, field: str) -> None:
    """A name of dots only would be lost in an address."""
    if _ONLY_DOTS.fullmatch(name):
        raise InvalidFieldError("must hold a letter or a digit", reason="INVALID_NAME", field=field)


def _yes(is_on: bool) -> str:
    return "yes" if is_on else ""


def _number(value: float) -> str:
    return f"{value:.10g}"
