"""The cord beside fifty labelers who lease and answer without a pause, on both engines: the benchmark's own
checks, which fail when a pull is not heard, when the record is not exactly what was done, when the run does
not stand still or go on, or when an answer of the labelers is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.cord import DOORS_OF_ENGINE, Scene, measure


def scene_of(engine: str, request: pytest.FixtureRequest, **fields: Any) -> Scene:
    if engine == "postgresql":
        request.getfixturevalue("postgres_server")  # skips or fails where PostgreSQL is not installed
    return Scene(engine=engine, num_labelers=50, num_tasks=500, **fields)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_every_pull_is_heard_under_load(
    engine: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    rows = measure(scene_of(engine, request, num_pulls=2, with_run=False))
    assert [row["door"] for row in rows] == list(DOORS_OF_ENGINE[engine])
    for row in rows:
        record_property(f"{row['door']}_seconds_to_the_watcher", row["watcher_max_s"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_run_stands_still_under_load_and_holds_when_the_service_is_killed(
    engine: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    rows = measure(scene_of(engine, request, num_pulls=2, num_kills=1, with_run=True))
    assert [row["what"] for row in rows] == ["pull"] * len(DOORS_OF_ENGINE[engine]) + ["kill"]
    for row in rows[:-1]:
        record_property(f"{row['door']}_seconds_to_standing_still", row["still_max_s"])
