"""How figures are written and drawn, and how long a report of quality is kept."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.labeling.answers import AnswerDraft, Choice
from services.labeling.import_store import ImportStore
from services.labeling.imports import ImportRow
from services.labeling.metrics import LabelingMetrics
from services.labeling.quality.intervals import Estimate
from services.labeling.quality_reports import QualityReports
from services.labeling.requests import RepeatableRequest
from services.labeling.tasks import Candidate
from services.labeling.threads import DatabaseThreads
from services.labeling.web import figures
from services.labeling.web.charts import (
    BAR_WIDTH,
    CHART_HEIGHT,
    CHART_WIDTH,
    Point,
    interval_bar,
    series_chart,
)
from services.labeling.web.research_words import decision_in_words, tiers_in_letters

NONE = Estimate(value=None, low=None, high=None, num_units=0)


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, num_units=9)


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2013", "-").replace("\u2212", "-")


def test_figures_have_units_and_a_missing_one_is_a_dash() -> None:
    assert plain(figures.percent(0.7706)) == "77.1 %"
    assert plain(figures.percent_interval(estimate(0.77, 0.7, 0.8449))) == "70.0-84.5 %"
    assert plain(figures.coefficient(-0.346)) == "-0.35"
    assert plain(figures.coefficient_interval(estimate(0.1, -0.2, 0.4))) == "-0.20 to 0.40"
    assert [plain(figures.seconds(value)) for value in (0.04, 99.9, 99.96, 3 * 3600)] == [
        "0.0 s",
        "99.9 s",
        "1.7 min",
        "3.0 h",
    ]
    assert [plain(figures.hours(value)) for value in (0.0, 0.001, 0.5, 47.0, 72.0)] == [
        "0 min",
        "1 min",
        "30 min",
        "47.0 h",
        "3.0 days",
    ]
    assert plain(figures.probability(0.0004)) == "< 0.001"
    assert figures.rate(0.25) == "0.2"
    assert figures.rate(1234.5) == "1,234"
    dash = figures.NOTHING
    assert [figures.percent(None), figures.coefficient(None), figures.seconds(None)] == [dash] * 3
    assert figures.percent_interval(NONE) == figures.coefficient_interval(NONE) == dash
    assert figures.hours(None) == dash


def test_times_ago_grow_coarser() -> None:
    now_us = 10**15
    spans = [(30, "just now"), (90, "1 min ago"), (7200, "2 h ago"), (3 * 86400, "3 days ago")]
    for span_s, words in spans:
        assert plain(figures.ago(now_us - span_s * 10**6, now_us)) == words
    assert figures.ago(now_us + 5, now_us) == "just now"


def test_an_excerpt_is_one_line_of_bounded_length() -> None:
    assert figures.excerpt("a\n b\tc") == "a b c"
    assert len(figures.excerpt("word " * 1000, 50)) <= 50


def test_marks_stand_in_order_and_inside_the_drawing() -> None:
    bar = interval_bar(estimate(0.5, 0.0, 1.0), known=(0.25,))
    assert bar is not None
    assert 0 < bar.low_x < bar.known_x[0] < bar.x < bar.high_x < BAR_WIDTH
    assert bar.x == BAR_WIDTH / 2
    assert interval_bar(NONE) is None
    points = [
        Point(label=str(index), estimate=estimate(value, value - 0.1, value + 0.1))
        for index, value in enumerate([0.2, 0.9, 0.5])
    ]
    chart = series_chart([*points, Point(label="gap", estimate=NONE)], write=str, high=1.0)
    assert chart is not None
    ys = [mark.y for mark in chart.marks]
    assert ys[1] < ys[2] < ys[0]  # larger figures stand higher
    assert all(0 < mark.x < CHART_WIDTH and 0 < mark.y < CHART_HEIGHT for mark in chart.marks)
    assert [tick.words for tick in chart.y_ticks] == ["0.0", "0.5", "1.0"]
    assert chart.marks[1].words == "1: 0.9, 95 % interval 0.8 to 1.0 (n = 9)"
    assert series_chart(points[:1], write=str) is None


def test_decisions_are_told_in_the_readers_letters() -> None:
    order = (2, 0, 1)  # candidate 2 is A, 0 is B, 1 is C
    assert tiers_in_letters(((1,), (0, 2)), order) == "C > A = B"
    assert decision_in_words(Choice(best_index=0), order) == "B is best"


class Seconds:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_report_is_kept_while_it_is_true_and_made_at_most_every_few_seconds(
    open_store: Callable[..., Any],
) -> None:
    opened = open_store()
    imports = ImportStore(opened.database, clock=opened.clock)

    def add(number: int) -> None:
        row = ImportRow(
            row=1,
            document_id="d",
            document="d",
            candidates=(Candidate(text="a"), Candidate(text="b")),
            answer=AnswerDraft(lease_id="", decision=Choice(best_index=0)),
            labeler_id=f"labeler-{number}",
        )
        request = RepeatableRequest(method="t", request_id=str(number), digest="d")
        imports.record(request, [row], project="default", batch="b")

    async def look() -> None:
        threads = DatabaseThreads(
            num_readers=2, num_writers=1, max_queued_calls=10, metrics=LabelingMetrics(CollectorRegistry())
        )
        clock = Seconds()
        reports = QualityReports(opened.database, threads, monotonic_s=clock)
        add(1)
        first, again = await asyncio.gather(reports.report("default"), reports.report("default"))
        assert first is again
        assert first.report.overall.num_answers == 1
        add(2)
        assert (await reports.report("default")).report is first.report  # a moment old
        clock.now_s += 6
        second = await reports.report("default")
        assert (second.report.overall.num_answers, second.last_comparison_id) == (2, 2)
        clock.now_s += 30
        assert (await reports.report("default")).report is second.report  # nothing was added
        clock.now_s += 31
        assert (await reports.report("default")).report is not second.report  # roles may have changed
        assert (await reports.report("default", batch="b")).report.overall.num_answers == 2
        await threads.close()

    asyncio.run(look())
