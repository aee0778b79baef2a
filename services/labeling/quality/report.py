"""Gathers every figure of a researcher's quality page: overall, for each person, for each pair of people.

Onboarding answers (training, screening) count nowhere here; admission judges those. Work grows with the
number of answers, except for the table of pairs, which the caller asks for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.labeling.quality.agreement import (
    AgreementShares,
    SharedLabels,
    agreement_shares,
    shared_labels,
    with_labelers,
    with_majority,
    with_researchers,
)
from services.labeling.quality.alpha import krippendorff_alpha
from services.labeling.quality.bias import Bias, bias_of
from services.labeling.quality.consistency import self_agreement
from services.labeling.quality.drift import WEEK_US, Drift, drift_of
from services.labeling.quality.gold import GoldAccuracy, gold_accuracy
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.kappa import PairAgreement, fleiss_kappa, pair_agreements
from services.labeling.quality.rankings import mean_tau_b
from services.labeling.quality.records import ONBOARDING, JudgedAnswer, Tiers
from services.labeling.quality.speed import Speed, SpeedRule, speed_of
from services.labeling.quality.units import label_table, ranking_table


@dataclass(frozen=True, slots=True, kw_only=True)
class OverallQuality:
    """The figures of all people together, researchers too unless said otherwise."""

    num_answers: int
    num_labelers: int  # researchers not counted
    num_researchers: int
    agreement: AgreementShares
    fleiss_kappa: Estimate
    krippendorff_alpha: Estimate  # nominal
    tau_b: Estimate  # the mean over pairs of rankings of three and more candidates
    self_agreement: Estimate  # labelers only, as all that follows
    gold: GoldAccuracy
    bias: Bias
    speed: Speed
    drift: Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerQuality:
    """The figures of one person."""

    labeler_id: str
    is_researcher: bool
    num_answers: int
    with_labelers: Estimate  # share of other labelers' labels of the same units that are the same
    with_researchers: Estimate  # likewise with researchers'
    with_majority: Estimate  # share of labels that are those of the majority of the others
    tau_b: Estimate  # the mean over other people's rankings of three and more candidates
    self_agreement: Estimate
    gold: GoldAccuracy
    bias: Bias
    speed: Speed
    drift: Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementReport:
    """How far people agree, and nothing else: the same figures as in the whole report."""

    shares: AgreementShares
    fleiss_kappa: Estimate
    krippendorff_alpha: Estimate  # nominal
    pairs: tuple[PairAgreement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """Whether to believe the answers, and whom to talk to."""

    overall: OverallQuality
    labelers: tuple[LabelerQuality, ...]  # by name, researchers too
    pairs: tuple[PairAgreement, ...] | None  # None when not asked for


def quality_report(
    answers: Iterable[JudgedAnswer],
    *,
    include_pairs: bool = True,
    window_us: int = WEEK_US,
    speed_rule: SpeedRule | None = None,
) -> QualityReport:
    """Every figure of these answers.

    Answers are those that stand: a correction has replaced what it supersedes. Whoever answered once as a
    researcher counts as one. Windows of drift begin with the first answer for everybody, so that people's
    windows can be laid side by side.
    """
    kept = _without_onboarding(answers)
    rule = speed_rule or SpeedRule()
    researchers = _researchers(kept)
    table = label_table(kept)
    rankings = ranking_table(kept)
    shared = shared_labels(table, researchers=researchers)
    start_us = kept[0].answer_us if kept else None
    by_person: defaultdict[str, list[JudgedAnswer]] = defaultdict(list)
    for answer in kept:
        by_person[answer.labeler_id].append(answer)
    of_labelers = [answer for answer in kept if answer.labeler_id not in researchers]
    overall = OverallQuality(
        num_answers=len(kept),
        num_labelers=len(by_person) - len(researchers),
        num_researchers=len(researchers),
        agreement=agreement_shares(shared, researchers=researchers),
        fleiss_kappa=fleiss_kappa(table),
        krippendorff_alpha=krippendorff_alpha(table),
        tau_b=mean_tau_b(rankings.values()),
        self_agreement=self_agreement(of_labelers),
        gold=gold_accuracy(of_labelers),
        bias=bias_of(of_labelers),
        speed=speed_of(of_labelers, rule=rule),
        drift=drift_of(of_labelers, shared=shared, window_us=window_us, start_us=start_us),
    )
    labelers = tuple(
        _labeler_quality(
            labeler_id,
            own,
            researchers=researchers,
            shared=shared,
            rankings=rankings,
            rule=rule,
            window_us=window_us,
            start_us=start_us,
        )
        for labeler_id, own in sorted(by_person.items())
    )
    return QualityReport(
        overall=overall, labelers=labelers, pairs=pair_agreements(table) if include_pairs else None
    )


def agreement_report(answers: Iterable[JudgedAnswer]) -> AgreementReport:
    """Only the agreement of these answers, in a fraction of the whole report's time."""
    kept = _without_onboarding(answers)
    researchers = _researchers(kept)
    table = label_table(kept)
    return AgreementReport(
        shares=agreement_shares(shared_labels(table, researchers=researchers), researchers=researchers),
        fleiss_kappa=fleiss_kappa(table),
        krippendorff_alpha=krippendorff_alpha(table),
        pairs=pair_agreements(table),
    )


def _without_onboarding(answers: Iterable[JudgedAnswer]) -> list[JudgedAnswer]:
    return sorted(
        (answer for answer in answers if answer.purpose not in ONBOARDING),
        key=lambda answer: (answer.answer_us, answer.comparison_id),
    )


def _researchers(answers: Iterable[JudgedAnswer]) -> frozenset[str]:
    return frozenset(answer.labeler_id for answer in answers if answer.is_researcher)


def _labeler_quality(
    labeler_id: str,
    answers: Sequence[JudgedAnswer],
    *,
    researchers: Collection[str],
    shared: Mapping[int, Mapping[str, SharedLabels]],
    rankings: Mapping[int, Mapping[str, Tiers]],
    rule: SpeedRule,
    window_us: int,
    start_us: int | None,
) -> LabelerQuality:
    tasks = sorted({answer.task_id for answer in answers})
    met = [[shared[task][labeler_id]] for task in tasks if labeler_id in shared.get(task, {})]
    return LabelerQuality(
        labeler_id=labeler_id,
        is_researcher=labeler_id in researchers,
        num_answers=len(answers),
        with_labelers=with_labelers(met),
        with_researchers=with_researchers(met),
        with_majority=with_majority(met),
        tau_b=mean_tau_b((rankings[task] for task in tasks if task in rankings), subject=labeler_id),
        self_agreement=self_agreement(answers),
        gold=gold_accuracy(answers),
        bias=bias_of(answers),
        speed=speed_of(answers, rule=rule),
        drift=drift_of(answers, shared=shared, window_us=window_us, start_us=start_us),
    )
