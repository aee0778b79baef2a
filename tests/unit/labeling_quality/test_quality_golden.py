"""The figures against numbers that others computed."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.labeling.quality.agreement import agreement_shares, shared_labels
from services.labeling.quality.alpha import Level, krippendorff_alpha
from services.labeling.quality.intervals import wilson_interval
from services.labeling.quality.kappa import fleiss_kappa, pair_agreements

RTOL, ATOL = 1e-9, 1e-10


def golden(shared_dir: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    vector = json.loads((shared_dir / "golden" / f"{name}.json").read_text())
    return vector["inputs"], vector["outputs"]


def test_cohen_kappa_takes_a_tie_as_a_label(shared_dir: Path) -> None:
    inputs, outputs = golden(shared_dir, "10_cohen_kappa_ties")
    table = {
        item: {"one": (first,), "two": (second,)}
        for item, (first, second) in enumerate(zip(inputs["rater_1"], inputs["rater_2"], strict=True))
    }

    (pair,) = pair_agreements(table)

    assert (pair.a, pair.b) == ("one", "two")
    assert pair.agreement.value == pytest.approx(outputs["observed_agreement"], rel=RTOL, abs=ATOL)
    assert pair.cohen_kappa.value == pytest.approx(outputs["kappa"], rel=RTOL, abs=ATOL)
    assert pair.cohen_kappa.num_units == 18


def test_fleiss_kappa(shared_dir: Path) -> None:
    inputs, outputs = golden(shared_dir, "10_fleiss_kappa")
    table = {}
    for item, counts in enumerate(inputs["counts"]):
        labels = [label for label, number in enumerate(counts) for _ in range(number)]
        table[item] = {str(rater): (label,) for rater, label in enumerate(labels)}

    kappa = fleiss_kappa(table)

    assert kappa.value == pytest.approx(outputs["kappa"], rel=RTOL, abs=ATOL)
    assert kappa.num_units == len(inputs["counts"])


@pytest.mark.parametrize(
    ("level", "name"), [(Level.NOMINAL, "alpha_nominal"), (Level.ORDINAL, "alpha_ordinal")]
)
def test_krippendorff_alpha_with_missing_labels(shared_dir: Path, level: Level, name: str) -> None:
    inputs, outputs = golden(shared_dir, "10_krippendorff_alpha")
    table = {
        unit: {str(rater): (label,) for rater, label in enumerate(column)}
        for unit, column in enumerate(zip(*inputs["data"], strict=True))
    }

    alpha = krippendorff_alpha(table, level=level)

    assert alpha.value == pytest.approx(outputs[name], rel=RTOL, abs=ATOL)
    assert alpha.num_units == sum(
        sum(label is not None for label in column) >= 2 for column in zip(*inputs["data"], strict=True)
    )


def test_pooled_agreement_of_pairs_of_labels(shared_dir: Path) -> None:
    inputs, outputs = golden(shared_dir, "10_pairwise_agreement")
    table = {
        item: {str(labeler): (label,) for labeler, label in enumerate(row)}
        for item, row in enumerate(inputs["labels"])
    }

    shares = agreement_shares(shared_labels(table, researchers=()), researchers=())

    assert shares.labeler_labeler.value == pytest.approx(outputs["agreement"], rel=RTOL, abs=ATOL)
    assert shares.labeler_labeler.num_units == outputs["pairs"]
    assert shares.labeler_researcher.value is None


def test_wilson_interval(shared_dir: Path) -> None:
    _, outputs = golden(shared_dir, "10_pairwise_agreement")

    interval = wilson_interval(outputs["agreeing"] / outputs["pairs"], outputs["pairs"])

    assert interval == pytest.approx(outputs["wilson95"], rel=RTOL, abs=ATOL)
