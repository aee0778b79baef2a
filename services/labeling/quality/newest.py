"""Decides how good the newest answers are, in the few figures that a monitor watches.

The reports tell a researcher everything about a project; here everybody's newest answers are taken together,
over all projects, so that a change of people's labeling shows within hours. Only labelers count. A figure
that stands on few answers would raise alarms by chance, so it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.labeling.quality.agreement import agreement_shares, shared_labels
from services.labeling.quality.gold import gold_accuracy, share_right
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.records import ONBOARDING, JudgedAnswer, Purpose
from services.labeling.quality.units import first_answers, label_table

MIN_UNITS = 30
"""On fewer pairs of labels, or answers, a share near one half is not known to within 0.17."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownItemAgreement:
    """How right answers are to items whose answer researchers know; None where too few were given."""

    recent: float | None
    baseline: float | None  # of the answers before these


def labeler_agreement(answers: Iterable[JudgedAnswer]) -> float | None:
    """The share of pairs of labelers' labels of one unit that are the same; None on too few pairs."""
    table = label_table(answer for answer in answers if _counts(answer))
    return _value(agreement_shares(shared_labels(table, researchers=()), researchers=()).labeler_labeler)


def known_item_agreement(answers: Iterable[JudgedAnswer], *, num_recent: int) -> KnownItemAgreement:
    """How right first answers to gold items are: the ``num_recent`` newest, and the rest."""
    known = [
        answer
        for answer in first_answers(answers)
        if _counts(answer) and answer.purpose is Purpose.GOLD and share_right(answer) is not None
    ]
    split = max(0, len(known) - num_recent)
    return KnownItemAgreement(recent=_accuracy(known[split:]), baseline=_accuracy(known[:split]))


def _counts(answer: JudgedAnswer) -> bool:
    return not answer.is_researcher and answer.purpose not in ONBOARDING


def _accuracy(answers: Sequence[JudgedAnswer]) -> float | None:
    return _value(gold_accuracy(answers).accuracy)


def _value(estimate: Estimate) -> float | None:
    return estimate.value if estimate.num_units >= MIN_UNITS else None
