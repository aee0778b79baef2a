"""Onboarding: training, screening, admission, second attempts."""

from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.answers import Telemetry
from services.labeling.errors import NotAdmittedError
from services.labeling.onboarding_store import Stage
from services.labeling.projects import OnboardingSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from tests.labeling_stores import HOUR_US, SiteStores, known, pair


@pytest.fixture
def school(site: SiteStores) -> SiteStores:
    """A project with two training items, two screening items out of four, and one real task."""
    settings = ProjectSettings(
        onboarding=OnboardingSettings(
            training_count=2, screening_count=2, min_agreement=1.0, max_item_s=60, max_attempts=2
        )
    )
    site.projects.create_project("p", settings, "", actor="rita")
    site.submit("school", *[known(f"t{n}", Purpose.TRAINING) for n in range(2)], project="p")
    site.submit("school", *[known(f"s{n}", Purpose.SCREENING) for n in range(4)])
    site.submit("work", pair("x"), project="p")
    return site


def take_step(site: SiteStores, *, best: int, seconds: float = 10) -> Stage:
    """Answer the item that comes next, and say what comes after it."""
    step = site.onboarding.advance("p", "ann")
    assert step.task_id is not None
    item = site.site.lease_for_onboarding("ann", step.task_id, attempt=step.attempt, duration_us=HOUR_US)
    expected = site.site.expectation(item)
    assert expected is not None
    assert expected.tiers[0] == (item.shown_order.index(1),)
    site.answer("ann", item, best=best, telemetry=Telemetry(active_us=round(seconds * 1e6)))
    return site.onboarding.advance("p", "ann").stage


def test_whoever_passes_the_screening_may_work(school: SiteStores, lease_one: Callable[..., Any]) -> None:
    with pytest.raises(NotAdmittedError):
        school.next("ann", "p")
    assert take_step(school, best=0) is Stage.TRAINING  # wrong, and told so
    assert take_step(school, best=1) is Stage.SCREENING
    assert take_step(school, best=1) is Stage.SCREENING
    assert take_step(school, best=1) is Stage.ADMITTED
    assert school.next("ann", "p").document == "document x"
    (attempt,) = school.onboarding.attempts("p")
    assert (attempt.stage, attempt.num_answered, attempt.num_right) == (Stage.ADMITTED, 2, 2)
    assert attempt.mean_item_s == pytest.approx(10)
    assert school.export() == []  # onboarding is no data
    assert len(school.export(with_onboarding=True)) == 4


def test_whoever_fails_gets_other_items_once_more(school: SiteStores) -> None:
    seen: list[int] = []
    for _ in range(2):
        take_step(school, best=1)
    for best in (1, 0):
        step = school.onboarding.advance("p", "ann")
        assert step.task_id is not None
        seen.append(step.task_id)
        stage = take_step(school, best=best)
    assert stage is Stage.MAY_RETRY
    with pytest.raises(NotAdmittedError):
        school.next("ann", "p")
    step = school.onboarding.retry("p", "ann")
    assert (step.stage, step.attempt) == (Stage.SCREENING, 2)
    for best in (0, 0):
        step = school.onboarding.advance("p", "ann")
        assert step.task_id not in seen
        stage = take_step(school, best=best)
    assert stage is Stage.FAILED
    assert school.onboarding.retry("p", "ann").stage is Stage.FAILED
    school.onboarding.overrule("p", "ann", admit=True, actor="rita")
    assert school.onboarding.advance("p", "ann").stage is Stage.ADMITTED
    assert school.next("ann", "p").document == "document x"


def test_whoever_is_too_slow_is_not_admitted(school: SiteStores) -> None:
    for _ in range(2):
        take_step(school, best=1)
    take_step(school, best=1, seconds=10)
    assert take_step(school, best=1, seconds=1000) is Stage.MAY_RETRY


def test_a_screening_without_items_says_so(site: SiteStores) -> None:
    settings = ProjectSettings(onboarding=OnboardingSettings(screening_count=2))
    site.projects.create_project("p", settings, "", actor="rita")
    assert site.onboarding.advance("p", "ann").stage is Stage.NOT_READY
