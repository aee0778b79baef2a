"""Whether to believe the answers: agreement, speed, bias, gold and drift, for a project and for one person.

All figures come from ``services.labeling.quality.report``; here is only how they are laid out, and which
published figures stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.responses import Response

from services.labeling.quality.drift import Drift, DriftTests
from services.labeling.quality.gold import GoldAccuracy
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.kappa import PairAgreement
from services.labeling.quality.rankings import FIRST, SECOND, TIE
from services.labeling.quality.report import LabelerQuality, OverallQuality, QualityReport
from services.labeling.quality_reports import MAX_PEOPLE_FOR_PAIRS
from services.labeling.web.call import Call
from services.labeling.web.charts import IntervalBar, Point, SeriesChart, interval_bar, series_chart
from services.labeling.web.figures import percent, seconds
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.problems import PageError
from services.labeling.web.research_desk import (
    MAX_LABELER_CHARS,
    batches_of,
    project_of,
    render_in_project,
    wanted_batch,
)

table = PageTable()

MAX_PAIRS_SHOWN = 100
_SHOWN_LABELS = (FIRST, SECOND, TIE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRow:
    """One figure of agreement with what others report."""

    name: str
    help: str
    estimate: Estimate
    bar: IntervalBar | None
    is_share: bool  # else a coefficient
    published: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionRow:
    """How often each label was given where one was right."""

    right: str
    given: tuple[int, ...]  # in the order of the columns
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSeries:
    """One series over time with what its tests say."""

    name: str
    help: str
    chart: SeriesChart | None
    tests: DriftTests


@table.get("/projects/{project}/quality", roles=RESEARCHERS)
async def show_quality(call: Call) -> Response:
    """Everybody together, then person by person, then pair by pair."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    batch = wanted_batch(call, batches)
    kept = await call.site.quality_reports.report(project.name, batch=batch)
    report = kept.report
    pairs = _most_shared(report)
    return await render_in_project(
        call,
        "researcher_quality.html",
        project,
        "quality",
        batches=batches,
        batch=batch,
        overall=report.overall,
        agreement=_agreement_rows(report.overall),
        labelers=report.labelers,
        bars={one.labeler_id: _labeler_bars(one) for one in report.labelers},
        pairs=pairs,
        num_pairs=None if report.pairs is None else len(report.pairs),
        pair_bars=[interval_bar(pair.cohen_kappa, low=-1.0) for pair in pairs],
        max_people_for_pairs=MAX_PEOPLE_FOR_PAIRS,
        confusion=_confusion_rows(report.overall.gold),
        labels=_SHOWN_LABELS,
        drift=_drift_series(report.overall.drift),
        last_comparison_id=kept.last_comparison_id,
    )


@table.get("/projects/{project}/quality/labeler", roles=RESEARCHERS)
async def show_labeler(call: Call) -> Response:
    """One person's figures."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    batch = wanted_batch(call, batches)
    name = call.query("name", max_chars=MAX_LABELER_CHARS)
    kept = await call.site.quality_reports.report(project.name, batch=batch)
    found = next((one for one in kept.report.labelers if one.labeler_id == name), None)
    if found is None:
        raise PageError(404, "Nobody of this name has answered here.")
    pairs = [pair for pair in kept.report.pairs or () if name in (pair.a, pair.b)]
    return await render_in_project(
        call,
        "researcher_labeler.html",
        project,
        "quality",
        batches=batches,
        batch=batch,
        one=found,
        overall=kept.report.overall,
        pairs=[(pair.b if pair.a == name else pair.a, pair) for pair in pairs],
        confusion=_confusion_rows(found.gold),
        labels=_SHOWN_LABELS,
        drift=_drift_series(found.drift),
        place_bars=[
            interval_bar(place.share, known=(1 / place.num_candidates,)) for place in found.bias.places
        ],
    )


def _agreement_rows(overall: OverallQuality) -> list[AgreementRow]:
    shares = overall.agreement

    def share(
        name: str, words: str, estimate: Estimate, known: tuple[float, ...] = (), published: str = ""
    ) -> AgreementRow:
        return AgreementRow(
            name=name,
            help=words,
            estimate=estimate,
            bar=interval_bar(estimate, known=known),
            is_share=True,
            published=published,
        )

    def coefficient(name: str, words: str, estimate: Estimate) -> AgreementRow:
        return AgreementRow(
            name=name,
            help=words,
            estimate=estimate,
            bar=interval_bar(estimate, low=-1.0),
            is_share=False,
            published="",
        )

    return [
        share(
            "Labeler with labeler",
            "Two labelers who saw the same pair say the same.",
            shares.labeler_labeler,
            (0.72, 0.726),
            "72 % S20, 72.6 ± 1.5 % I22",
        ),
        share(
            "Labeler with researcher",
            "A labeler says what a researcher says about the same pair.",
            shares.labeler_researcher,
            (0.77,),
            "77 ± 2 % S20",
        ),
        share(
            "Researcher with researcher",
            "Two researchers say the same: what can be hoped for.",
            shares.researcher_researcher,
            (0.73,),
            "73 ± 4 % S20",
        ),
        share(
            "Labeler with the majority",
            "A labeler says what most of the others say, where they have a majority.",
            shares.labeler_majority,
        ),
        share(
            "Labeler with themself",
            "A labeler says the same when asked again later (planned repeats).",
            overall.self_agreement,
        ),
        coefficient(
            "Fleiss' kappa",
            "Agreement beyond chance of all people; 0 is chance, 1 is perfect.",
            overall.fleiss_kappa,
        ),
        coefficient(
            "Krippendorff's alpha",
            "The same with any number of people for each item; labels without an order.",
            overall.krippendorff_alpha,
        ),
        coefficient(
            "Kendall's tau-b",
            "How alike full rankings of three and more candidates are, on average over pairs of people.",
            overall.tau_b,
        ),
    ]


def _labeler_bars(one: LabelerQuality) -> Mapping[str, IntervalBar | None]:
    return {
        "majority": interval_bar(one.with_majority),
        "first": interval_bar(one.bias.first_side_rate, known=(0.5,)),
    }


def _most_shared(report: QualityReport) -> list[PairAgreement]:
    """The pairs of people who have most items in common."""
    ordered = sorted(report.pairs or (), key=lambda pair: (-pair.agreement.num_units, pair.a, pair.b))
    return ordered[:MAX_PAIRS_SHOWN]


def _confusion_rows(gold: GoldAccuracy) -> list[ConfusionRow]:
    rows = []
    for right in _SHOWN_LABELS:
        given = tuple(gold.confusion.get((right, label), 0) for label in _SHOWN_LABELS)
        if sum(given):
            rows.append(ConfusionRow(right=right, given=given, total=sum(given)))
    return rows


def _drift_series(drift: Drift) -> list[DriftSeries]:
    labels = [_day(window.start_us) for window in drift.windows]
    majority = [
        Point(label=label, estimate=window.majority_agreement)
        for label, window in zip(labels, drift.windows, strict=True)
    ]
    supervised = [
        Point(label=label, estimate=window.supervised_wins)
        for label, window in zip(labels, drift.windows, strict=True)
    ]
    times = [
        Point(label=label, estimate=window.median_s)
        for label, window in zip(labels, drift.windows, strict=True)
    ]

    def whole_percent(value: float) -> str:
        return percent(value, 0)

    return [
        DriftSeries(
            name="Agreement with the majority",
            help="Should stay where it is.",
            chart=series_chart(majority, write=whole_percent, high=1.0),
            tests=drift.majority_agreement,
        ),
        DriftSeries(
            name="Supervised beats reference",
            help="Both texts come from fixed sources, so this share should not move.",
            chart=series_chart(supervised, write=whole_percent, high=1.0),
            tests=drift.supervised_wins,
        ),
        DriftSeries(
            name="Median time an item",
            help="Faster may be practice or haste; look at agreement too.",
            chart=series_chart(times, write=seconds),
            tests=drift.seconds,
        ),
    ]


def _day(moment_us: int) -> str:
    moment = datetime.fromtimestamp(moment_us / 1e6, tz=UTC)
    return f"{moment.day} {moment:%b}"
