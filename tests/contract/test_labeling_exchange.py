"""Import, agreement and export through the command line and a real service, on real data.

The expected figures come from the raw files by scikit-learn, statsmodels and krippendorff.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
import structlog
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
from typer.testing import CliRunner

from andon.cli.main import app
from andon.corpus.loaders import load_comparisons
from tests.site import SiteUnderTest
from tests.tokens import TOKENS

runner = CliRunner()
Labels = dict[Any, dict[str, str]]  # item -> rater -> label


@pytest.fixture
def site(start_site: Callable[..., SiteUnderTest]) -> SiteUnderTest:
    return start_site()


@pytest.fixture
def run(site: SiteUnderTest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("ANDON_TOKEN", TOKENS["admin"])

    def run_it(*arguments: str, exit_code: int = 0) -> Any:
        with structlog.testing.capture_logs():  # the service runs in this process, and would write to stdout
            result = runner.invoke(app, [*arguments, "--labeling-target", site.running.target])
        assert result.exit_code == exit_code, (result.output, result.stderr)
        return result

    return run_it


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def pandalm(shared: Path) -> tuple[Path, Labels]:
    path = shared / "data/pandalm_human/comparisons.dev.jsonl.gz"
    return path, {
        number: {rater: str(choice) for rater, choice in row["choices"].items()}
        for number, row in enumerate(read(path))
    }


def squality(shared: Path) -> tuple[Path, Labels]:
    path = shared / "data/squality_human_eval/comparisons.dev.jsonl.gz"
    labels: Labels = defaultdict(dict)
    for row in read(path):
        labels[row["item_id"], tuple(row["systems"])][row["worker_id"]] = str(row["choice"])
    return path, labels


def xsum(shared: Path) -> tuple[Path, Labels]:
    path = shared / "data/xsum_factuality_raters/factuality.jsonl.gz"
    return path, {
        (row["document_id"], row["system"]): {
            rater: str(verdict) for rater, verdict in row["factual"].items() if verdict is not None
        }
        for row in read(path)
    }


@pytest.mark.parametrize("data", [pandalm, squality, xsum])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_agreement_is_what_independent_libraries_say(
    data: Callable[[Path], tuple[Path, Labels]], shared_dir: Path, run: Callable[..., Any]
) -> None:
    path, labels = data(shared_dir)
    imported = json.loads(run("label", "import", str(path), "--project", "p", "--json").stdout)
    assert imported["recorded_count"] == sum(len(by_rater) for by_rater in labels.values())
    found = json.loads(run("label", "agreement", "--project", "p", "--json").stdout)

    raters = sorted({rater for by_rater in labels.values() for rater in by_rater})
    expected = {}
    for a, b in combinations(raters, 2):
        both = [(one[a], one[b]) for one in labels.values() if a in one and b in one]
        if both:
            share = sum(x == y for x, y in both) / len(both)
            expected[a, b] = (len(both), share, cohen_kappa_score(*zip(*both, strict=True)))
    assert {(pair["a"], pair["b"]) for pair in found["pairs"]} == set(expected)
    for pair in found["pairs"]:
        count, share, kappa = expected[pair["a"], pair["b"]]
        assert pair["n"] == count
        assert pair["agreement"] == pytest.approx(share, abs=1e-12)
        assert pair["cohen_kappa"] == pytest.approx(kappa, abs=1e-12)
        assert pair["agreement_interval"][0] < share < pair["agreement_interval"][1]

    complete = [sorted(one.values()) for one in labels.values() if len(one) == 3]
    table, _ = aggregate_raters(np.array(complete))
    assert found["fleiss_kappa"] == pytest.approx(fleiss_kappa(table), abs=1e-12)
    codes = {label: code for code, label in enumerate(sorted({x for one in complete for x in one}))}
    matrix = [[codes[one[rater]] if rater in one else np.nan for one in labels.values()] for rater in raters]
    alpha = krippendorff.alpha(reliability_data=matrix, level_of_measurement="nominal")
    assert found["krippendorff_alpha"] == pytest.approx(alpha, abs=1e-12)


def test_an_import_repeated_records_nothing_twice(shared_dir: Path, run: Callable[..., Any]) -> None:
    path = str(shared_dir / "data/squality_human_eval/comparisons.dev.jsonl.gz")
    first = json.loads(run("label", "import", path, "--project", "p", "--json").stdout)
    again = json.loads(run("label", "import", path, "--project", "p", "--json").stdout)
    assert (first["recorded_count"], first["repeated_count"], first["task_count"]) == (630, 0, 210)
    assert (again["recorded_count"], again["repeated_count"], again["task_count"]) == (0, 630, 0)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_was_imported_comes_out_in_every_format(
    shared_dir: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    source = str(shared_dir / "data/pandalm_human/comparisons.dev.jsonl.gz")
    run("label", "import", source, "--project", "p")
    original = load_comparisons(source)
    ties = sum(len(record.tiers) == 1 for record in original)

    run("label", "export", "--project", "p", "--out", str(tmp_path / "all.jsonl.gz"))
    everything = load_comparisons(str(tmp_path / "all.jsonl.gz"))
    assert [
        (one.document, one.candidates, one.tiers, one.labeler_id, one.document_id) for one in everything
    ] == [(one.document, one.candidates, one.tiers, one.labeler_id, one.document_id) for one in original]

    for name in ("tldr", "hh"):
        out = tmp_path / f"{name}.jsonl"
        run("label", "export", "--project", "p", "--format", name, "--out", str(out))
        pairs = load_comparisons(str(out))
        assert len(pairs) == len(original) - ties
        manifest = json.loads((tmp_path / f"{name}.jsonl.manifest.json").read_text())
        removed = {one["name"]: one["removed_count"] for one in manifest["filters"]}
        assert removed["tie"] == ties
        assert removed["superseded"] == removed["onboarding"] == 0
        assert manifest["outputs"][0]["row_count"] == len(pairs)
        strict = [one for one in original if len(one.tiers) == 2]
        assert [one.candidates[one.tiers[0][0]].text.strip() for one in pairs] == [
            one.candidates[one.tiers[0][0]].text.strip() for one in strict
        ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_held_out_labelers_and_majorities_and_splits_are_named_in_the_manifest(
    shared_dir: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    source = str(shared_dir / "data/squality_human_eval/comparisons.dev.jsonl.gz")
    run("label", "import", source, "--project", "p")
    folds = ("--folds", "2", "--fold", "0")
    run("label", "export", "--project", "p", *folds, "--out", str(tmp_path / "rest.jsonl"))
    run("label", "export", "--project", "p", *folds, "--only-fold", "--out", str(tmp_path / "held.jsonl"))
    rest, held = (load_comparisons(str(tmp_path / name)) for name in ("rest.jsonl", "held.jsonl"))
    assert len(rest) + len(held) == 630
    assert not {one.labeler_id for one in rest} & {one.labeler_id for one in held}
    manifest = json.loads((tmp_path / "rest.jsonl.manifest.json").read_text())
    removed = {one["name"]: one["removed_count"] for one in manifest["filters"]}
    assert removed["labeler_fold"] == len(held)

    split = ("--votes", "majority", "--split", "train=0.7,validation=0.3")
    run("label", "export", "--project", "p", *split, "--out", str(tmp_path / "split.jsonl"))
    sides = [load_comparisons(str(tmp_path / f"split.{side}.jsonl")) for side in ("train", "validation")]
    assert not {one.document for one in sides[0]} & {one.document for one in sides[1]}
    manifest = json.loads((tmp_path / "split.jsonl.manifest.json").read_text())
    removed = {one["name"]: one["removed_count"] for one in manifest["filters"]}
    assert len(sides[0]) + len(sides[1]) + removed["split_vote"] == 210


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_refused_rows_are_told_and_the_others_recorded(run: Callable[..., Any], tmp_path: Path) -> None:
    good = {"document": "d", "summaries": ["a", "b"], "choice": 0, "worker_id": "w"}
    rows = [
        json.dumps(good),
        "not json",
        json.dumps({**good, "choice": 7}),
        json.dumps({**good, "summaries": ["a"] * 12, "choice": 1}),
        json.dumps({**good, "worker_id": "x\ty"}),
        json.dumps({**good, "document": "d" * 300_000}),
        json.dumps({**good, "choice": 1, "worker_id": "v"}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    report = json.loads(run("label", "import", str(path), "--project", "p", "--json").stdout)
    assert (report["recorded_count"], report["task_count"], report["refused_count"]) == (2, 1, 5)
    assert [one["row"] for one in report["refused"]] == [2, 3, 4, 5, 6]
    assert {one["reason"] for one in report["refused"]} >= {"NOT_JSON", "INVALID_LABELER", "TEXT_TOO_LONG"}
    run("label", "import", str(path), "--project", "p", "--batch", "again", "--strict", exit_code=2)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_errors_of_the_exchange_commands(run: Callable[..., Any], tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"document": "d", "summaries": ["a", "b"], "choice": 0}\n')
    run("label", "import", str(tmp_path / "absent.jsonl"), "--project", "p", exit_code=1)
    run("label", "agreement", "--project", "nobody", exit_code=1)
    run("label", "import", str(good), "--project", "a/b", exit_code=2)
    run("label", "export", "--split", "train=0.5,test=0.5", exit_code=2)
    run("label", "export", "--folds", "1", exit_code=2)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_project_is_made_once(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "how.txt").write_text("Read well.")
    command = ("label", "project", "p", "--instructions", str(tmp_path / "how.txt"), "--screening", "2")
    assert "is made" in run(*command).output
    assert "was there already" in run(*command).output
    run("label", "project", "p", "--title", "other", exit_code=1)
