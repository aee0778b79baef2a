"""Detectors of jumps and drifts, against the golden series, published run lengths and numbers by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.trainer.guards.statistics.changes import Cusum, PageHinkley, RobustZ, Side


@pytest.fixture
def golden_series(shared_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    vector = json.loads((shared_dir / "golden" / "15_page_hinkley_cusum.json").read_text())
    return vector["inputs"], vector["outputs"]


def first_above(statistics: list[float], threshold: float) -> int | None:
    return next((index for index, statistic in enumerate(statistics) if statistic > threshold), None)


def test_page_hinkley_gives_the_golden_statistics_and_alarm(
    golden_series: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    inputs, outputs = golden_series
    test, statistics = PageHinkley(delta=inputs["page_hinkley"]["delta"]), []
    for x in inputs["series"]:
        test = test.after(x)
        statistics.append(test.statistic)

    assert statistics == pytest.approx(outputs["page_hinkley_statistic"], rel=1e-9, abs=1e-10)
    alarm = first_above(statistics, inputs["page_hinkley"]["threshold"])
    assert alarm == outputs["page_hinkley_alarm_index"] == 37


@pytest.mark.parametrize(("side", "name"), [("rise", "up"), ("fall", "down")])
def test_cusum_gives_the_golden_sums_and_alarms(
    golden_series: tuple[dict[str, Any], dict[str, Any]], side: Side, name: str
) -> None:
    inputs, outputs = golden_series
    settings = inputs["cusum"]
    test, statistics = Cusum(reference=settings["k"], side=side, mean=settings["mu0"], deviation=1.0), []
    for x in inputs["series"]:
        test = test.after(x)
        statistics.append(test.statistic)

    assert statistics == pytest.approx(outputs[f"cusum_{name}"], rel=1e-9, abs=1e-10)
    assert first_above(statistics, settings["h"]) == outputs[f"cusum_{name}_alarm_index"]


def run_length(test: Cusum, threshold: float, draw: Callable[[], float]) -> int:
    length = 0
    while test.statistic <= threshold:
        test = test.after(draw())
        length += 1
    return length


@pytest.mark.parametrize(
    ("shift", "runs", "published"),
    [(0.0, 400, 168.0), (1.0, 1000, 8.38), (2.0, 1000, 3.34)],  # Lucas and Crosier 1982: k 0.5, h 4
)
def test_cusum_runs_as_long_as_published_before_it_alarms(shift: float, runs: int, published: float) -> None:
    chance = np.random.default_rng(1)
    lengths = [
        run_length(
            Cusum(reference=0.5, mean=0.0, deviation=1.0), 4.0, lambda: float(chance.normal(shift, 1.0))
        )
        for _ in range(runs)
    ]
    error = float(np.std(lengths)) / math.sqrt(runs)
    assert np.mean(lengths) == pytest.approx(published, abs=3 * error)
    assert error < 0.06 * published  # the comparison means something


def test_cusum_learns_its_baseline_and_does_not_test_it() -> None:
    test = Cusum(reference=0.5, learn_from=4, floor=0.1)
    for x in (1.0, 3.0, 1.0, 3.0):
        test = test.after(x)
        assert test.statistic == 0.0
    # Mean 2; squares of the deviations sum up to 4, over 3: 1.1547.
    test = test.after(2 + 3 * 1.1547)
    assert test.statistic == pytest.approx(2.5, abs=1e-3)


def test_cusum_of_a_constant_start_counts_in_floors() -> None:
    test = Cusum(reference=0.5, side="fall", learn_from=2, floor=0.1)
    for x in (5.0, 5.0, 4.7):
        test = test.after(x)
    assert test.statistic == pytest.approx(2.5)


def test_robust_z_by_hand() -> None:
    test = RobustZ(window=5, min_history=5, floor=0.01)
    for x in (1.0, 2.0, 3.0, 4.0, 100.0):
        test = test.after(x)
        assert test.statistic is None
    # Median 3, absolute deviations 2 1 0 1 97 with median 1: the outlier moves neither.
    up = test.after(5.0)
    assert up.statistic == pytest.approx(2 * 0.6745, abs=1e-4)
    assert test.after(1.0).statistic == pytest.approx(-2 * 0.6745, abs=1e-4)
    assert up.history == (2.0, 3.0, 4.0, 100.0, 5.0)


def test_a_constant_history_does_not_explode() -> None:
    test = RobustZ(window=5, min_history=3, floor=0.5)
    for _ in range(5):
        test = test.after(7.0)
    assert test.statistic == 0.0
    assert test.after(7.1).statistic == pytest.approx(0.2)


def test_robust_z_with_a_known_floor_rarely_exceeds_five_by_chance() -> None:
    chance = np.random.default_rng(2)
    test, values = RobustZ(window=10, min_history=4, floor=1.0), []
    for x in chance.normal(size=20_000):
        test = test.after(float(x))
        values.append(0.0 if test.statistic is None else abs(test.statistic))
    # At most one in 20,000 is claimed: more than 3 come by chance in one of 50 such tests.
    assert sum(value > 5 for value in values) <= 3
    assert 10 <= sum(value > 3.5 for value in values) <= 40


def test_robust_z_sees_a_jump_that_the_mean_and_deviation_with_it_would_hide() -> None:
    chance = np.random.default_rng(3)
    test = RobustZ(window=10, min_history=4, floor=1.0)
    for x in chance.normal(size=10):
        test = test.after(float(x))
    for x in (50.0, 50.0, 50.0):  # a jump that stays is still one while the past is the majority
        test = test.after(x)
        assert test.statistic is not None
        assert test.statistic > 20


def test_page_hinkley_false_alarms_and_delay() -> None:
    """With an allowance of half a deviation and a limit of 8: rarely by chance, soon after a shift."""
    chance = np.random.default_rng(4)

    def first_alarm(values: np.ndarray[Any, Any]) -> int | None:
        test = PageHinkley(delta=0.5)
        for index, x in enumerate(values):
            test = test.after(float(x))
            if test.statistic > 8:
                return index
        return None

    null = [first_alarm(chance.normal(size=100)) for _ in range(500)]
    assert sum(index is not None for index in null) / 500 <= 0.02
    shifted = [
        first_alarm(np.concatenate([chance.normal(size=20), chance.normal(2.0, 1.0, size=30)]))
        for _ in range(200)
    ]
    delays = [index - 20 for index in shifted if index is not None]
    assert len(delays) >= 0.99 * 200
    assert np.median(delays) <= 10


@pytest.mark.parametrize(
    "fresh",
    [
        RobustZ(window=4, min_history=2, floor=0.1),
        Cusum(reference=0.5, learn_from=3, floor=0.1),
        Cusum(reference=0.5, side="fall", mean=0.0, deviation=2.0),
        PageHinkley(delta=0.1),
    ],
)
def test_a_detector_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    fresh: RobustZ | Cusum | PageHinkley,
) -> None:
    series = [0.3, -1.2, 0.9, 2.0, 1.5, 3.1]
    whole: Any = fresh
    for x in series:
        whole = whole.after(x)
    for cut in range(len(series)):
        part: Any = fresh
        for x in series[:cut]:
            part = part.after(x)
        part = type(fresh)(**json.loads(json.dumps(asdict(part))))
        for x in series[cut:]:
            part = part.after(x)
        assert part == whole


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "fresh",
    [
        RobustZ(window=4, min_history=2, floor=0.1),
        Cusum(reference=0.5, learn_from=3, floor=0.1),
        Cusum(reference=0.5, mean=0.0, deviation=2.0),
        PageHinkley(delta=0.1),
    ],
)
def test_what_is_no_number_is_not_passed_over(fresh: RobustZ | Cusum | PageHinkley, odd: float) -> None:
    test: Any = fresh
    for x in (1.0, 1.1, 0.9, 1.0):
        test = test.after(x)
    assert not math.isfinite(test.after(odd).statistic)


def test_robust_z_compares_what_follows_with_numbers_only() -> None:
    test = RobustZ(window=4, min_history=2, floor=1.0)
    for x in (1.0, 1.0, math.nan, 1.0):
        test = test.after(x)
    assert test.statistic == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: RobustZ(window=4, min_history=5, floor=1.0),
        lambda: RobustZ(window=4, min_history=2, floor=0.0),
        lambda: Cusum(reference=0.5),
        lambda: Cusum(reference=0.5, mean=0.0),
        lambda: Cusum(reference=0.5, mean=0.0, deviation=0.0),
        lambda: Cusum(reference=0.5, learn_from=4),
    ],
)
def test_settings_without_a_meaning_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"positive|history|baseline|both"):
        make()
