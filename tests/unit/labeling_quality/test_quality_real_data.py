"""The figures on real labelers' answers, against scikit-learn, statsmodels and the krippendorff package."""

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss_kappa

from services.labeling.quality.alpha import Level, krippendorff_alpha
from services.labeling.quality.intervals import Estimate
from services.labeling.quality.kappa import fleiss_kappa, pair_agreements
from services.labeling.quality.rankings import mean_tau_b
from services.labeling.quality.records import JudgedAnswer
from services.labeling.quality.units import label_table

TIERS: dict[int | None, tuple[tuple[int, ...], ...]] = {0: ((0,), (1,)), 1: ((1,), (0,)), None: ((0, 1),)}
NAMES = ("pandalm_human", "squality_human_eval", "xsum_factuality_raters")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def choices(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    """Per item, each rater's choice: 0, 1 or None for a tie; True or False for verdicts."""
    folder = shared_dir / "data" / name
    if name == "pandalm_human":
        return [row["choices"] for row in rows(folder / "comparisons.dev.jsonl.gz")]
    if name == "squality_human_eval":
        items: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in rows(folder / "comparisons.dev.jsonl.gz"):
            items.setdefault((row["item_id"], *row["systems"]), {})[row["worker_id"]] = row["choice"]
        return list(items.values())
    return [
        {rater: verdict for rater, verdict in row["factual"].items() if verdict is not None}
        for row in rows(folder / "factuality.jsonl.gz")
    ]


@pytest.fixture(params=NAMES)
def items(request: pytest.FixtureRequest, shared_dir: Path) -> list[dict[str, Any]]:
    return choices(shared_dir, request.param)


@pytest.fixture
def table(items: list[dict[str, Any]], make_answer: Any) -> dict[int, dict[str, tuple[str | None, ...]]]:
    answers: list[JudgedAnswer] = []
    for task_id, item in enumerate(items):
        for rater, choice in item.items():
            decision = {"verdict": choice} if isinstance(choice, bool) else {"tiers": TIERS[choice]}
            answers.append(make_answer(task_id, rater, **decision))
    return label_table(answers)


def matrix(items: list[dict[str, Any]]) -> Any:
    """[rater, item] codes, not a number where the rater did not answer."""
    raters = sorted({rater for item in items for rater in item})
    code = {0: 0.0, 1: 1.0, None: 2.0}  # True and False are 1 and 0
    return np.array(
        [[code[item[rater]] if rater in item else math.nan for item in items] for rater in raters]
    )


def test_cohen_kappa_of_all_pairs(items: list[dict[str, Any]], table: Any) -> None:
    raters = sorted({rater for item in items for rater in item})

    pairs = pair_agreements(table)

    assert [(pair.a, pair.b) for pair in pairs] == list(combinations(raters, 2))
    for pair in pairs:
        shared = [(str(item[pair.a]), str(item[pair.b])) for item in items if {pair.a, pair.b} <= item.keys()]
        one, other = zip(*shared, strict=True)
        assert pair.agreement.num_units == pair.cohen_kappa.num_units == len(shared)
        assert pair.agreement.value == pytest.approx(np.mean(np.array(one) == np.array(other)), rel=1e-12)
        assert pair.cohen_kappa.value == pytest.approx(cohen_kappa_score(one, other), rel=1e-9, abs=1e-12)
        # The published large-sample variance, on items that are tasks of one unit each.
        labels = sorted({*one, *other})
        counts = Counter(shared)
        published = cohens_kappa(np.array([[counts[a, b] for b in labels] for a in labels]))
        assert half_width(pair.cohen_kappa) == pytest.approx(1.96 * published.std_kappa, rel=0.05)


def test_fleiss_kappa(items: list[dict[str, Any]], table: Any) -> None:
    complete = [[str(choice) for choice in item.values()] for item in items if len(item) == 3]
    counts, _ = aggregate_raters(np.array(complete))

    kappa = fleiss_kappa(table)

    assert kappa.value == pytest.approx(statsmodels_fleiss_kappa(counts), rel=1e-9)
    assert kappa.num_units == len(complete)


def test_krippendorff_alpha(items: list[dict[str, Any]], table: Any) -> None:
    expected = krippendorff.alpha(reliability_data=matrix(items), level_of_measurement="nominal")

    alpha = krippendorff_alpha(table)

    assert alpha.value == pytest.approx(expected, rel=1e-9)
    assert alpha.num_units == sum(len(item) >= 2 for item in items)


def test_interval_of_alpha_is_that_of_resampled_items(items: list[dict[str, Any]], table: Any) -> None:
    data = matrix(items)
    rng = np.random.default_rng(5)
    resampled = [
        krippendorff.alpha(
            reliability_data=data[:, rng.integers(0, data.shape[1], data.shape[1])],
            level_of_measurement="nominal",
            value_domain=[0.0, 1.0, 2.0],
        )
        for _ in range(400)
    ]

    assert half_width(krippendorff_alpha(table)) == pytest.approx(1.96 * np.std(resampled), rel=0.12)


@pytest.fixture
def reviews(shared_dir: Path) -> list[dict[str, list[int]]]:
    """Per SQuALITY question, each reviewer's overall ratings of three systems, put on 1..7."""
    return [
        {
            review["worker_id"]: [1 + rating * 6 // 100 for rating in review["overall_rating"]]
            for review in row["reviews"]
        }
        for row in rows(shared_dir / "data" / "squality_human_eval" / "items.dev.jsonl.gz")
    ]


def test_ordinal_alpha_of_ratings(reviews: list[dict[str, list[int]]]) -> None:
    reviewers = sorted({reviewer for review in reviews for reviewer in review})
    data = np.array(
        [
            [review[who][system] if who in review else math.nan for review in reviews for system in range(3)]
            for who in reviewers
        ]
    )
    levels = [float(level) for level in range(1, 8)]
    table = {task: {who: tuple(own) for who, own in review.items()} for task, review in enumerate(reviews)}

    alpha = krippendorff_alpha(table, level=Level.ORDINAL)

    expected = krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal", value_domain=levels)
    assert alpha.value == pytest.approx(expected, rel=1e-9)
    # The three ratings of a question are one task: whole questions are resampled.
    rng = np.random.default_rng(5)
    questions = data.reshape(len(reviewers), len(reviews), 3)
    resampled = [
        krippendorff.alpha(
            reliability_data=questions[:, rng.integers(0, len(reviews), len(reviews))].reshape(
                len(reviewers), -1
            ),
            level_of_measurement="ordinal",
            value_domain=levels,
        )
        for _ in range(400)
    ]
    assert half_width(alpha) == pytest.approx(1.96 * np.std(resampled), rel=0.12)


def test_mean_tau_b_of_rankings(reviews: list[dict[str, list[int]]]) -> None:
    rankings = [
        {
            who: tuple(
                tuple(place for place, rating in enumerate(ratings) if rating == level)
                for level in sorted(set(ratings), reverse=True)
            )
            for who, ratings in review.items()
        }
        for review in reviews
    ]
    pairs = [pair for review in reviews for pair in combinations(review.values(), 2)]
    taus = [kendalltau(one, other).statistic for one, other in pairs]
    taus = [tau for tau in taus if not math.isnan(tau)]  # everything tied

    estimate = mean_tau_b(rankings)

    assert estimate.num_units == len(taus) > 100
    assert estimate.value == pytest.approx(np.mean(taus), rel=1e-9)


def half_width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return (estimate.high - estimate.low) / 2
