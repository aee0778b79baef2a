"""What the guard benchmark plans and how it puts finished runs together."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.guards.faults import FAULTS
from benchmarks.guards.plan import ALL_GUARDS, HEALTHY_RUNS, SEEDS, planned_runs
from benchmarks.guards.report import clopper_pearson, in_markdown, summarize, write_report
from services.trainer.stages.ppo_config import PpoConfig

MODELS = {"prompts": "prompts.jsonl", "policy": "sft/1", "reference": "sft/1", "reward_model": "reward/1"}


def line(**changes: Any) -> dict[str, Any]:
    return {
        "held_by": [],
        "actions": [],
        "warned": [],
        "at_update": None,
        "planted_after": 0,
        "updates": 12,
        "bad_published": 0,
        "peaks": {"step_size": 0.25},
        "score_gain": 0.5,
        "guard_share": 0.1,
        "gold": [],
        **changes,
    }


def test_every_fault_has_five_runs_with_all_guards_and_healthy_runs_are_fifty_at_least() -> None:
    runs = planned_runs(faults=None, healthy=HEALTHY_RUNS)
    assert len({run.key for run in runs}) == len(runs)
    for fault in FAULTS:
        full = [run for run in runs if run.fault is fault and run.guards == ALL_GUARDS]
        assert sorted(run.seed for run in full) == list(SEEDS)
    assert sum(run.fault is None for run in runs) == HEALTHY_RUNS >= 50
    assert len(SEEDS) >= 5


def test_every_planned_configuration_is_one_that_the_trainer_takes() -> None:
    for run in planned_runs(faults=None, healthy=HEALTHY_RUNS):
        PpoConfig.model_validate({**run.full_config, **MODELS})


def test_healthy_runs_differ_and_are_the_same_each_time() -> None:
    configs = [run.config for run in planned_runs(faults=[], healthy=30)]
    assert configs == [run.config for run in planned_runs(faults=[], healthy=30)]
    for key in ("learning_rate", "epochs", "minibatches", "temperature", "kl", "schedule", "value_init"):
        assert len({json.dumps(config[key]) for config in configs}) > 1


def test_counts_by_hand() -> None:
    runs = planned_runs(faults=["reward_sign", "reward_scale_midway"], healthy=3)
    lines = {
        "healthy/0/0": line(),
        "healthy/1/1": line(held_by=["reward_drift"], actions=["hold"], updates=7),
        "healthy/2/2": line(held_by=["probe"], actions=["cord"], warned=["length_drift"], score_gain=-0.1),
        "reward_sign/0": line(held_by=["preflight_composition", "preflight_labels"], at_update=0),
        "reward_sign/1": line(held_by=["preflight_composition"], at_update=0),
        "reward_sign/0/no-preflight": line(held_by=["composition"], at_update=1),
        "reward_sign/1/no-preflight": line(bad_published=12),
        # Planted after the third update and noticed at the fourth: after one update.
        "reward_scale_midway/0": line(held_by=["probe", "probe"], at_update=4, planted_after=3),
        "unknown/0": line(held_by=["probe"], at_update=1),
    }
    results = summarize(lines, runs)
    sign, scale = results["faults"]
    assert (sign["fault"], sign["runs"], sign["caught"], sign["median_updates"]) == ("reward_sign", 2, 2, 0)
    assert sign["by"] == {"preflight_composition": 2, "preflight_labels": 1}
    assert (scale["median_updates"], scale["by"]) == (1, {"probe": 1})
    (alone,) = results["without_preflight"]
    assert (alone["runs"], alone["caught"], alone["bad_versions_published"]) == (2, 1, 12)
    healthy = results["healthy"]
    assert (healthy["runs"], healthy["updates"]) == (3, 31)
    assert (healthy["cord_pulls"], healthy["holds"], healthy["score_rose"]) == (1, 2, 2)
    assert healthy["warned_by"] == {"length_drift": 1}


def test_the_interval_of_clopper_and_pearson() -> None:
    # No success in n trials: from 0 to 1 - 0.025^(1/n).
    assert clopper_pearson(0, 60) == (0.0, pytest.approx(1 - 0.025 ** (1 / 60), abs=1e-5))
    # Clopper and Pearson's own example, 10 of 20 by symmetry around one half; 4 of 20 from published tables.
    low, high = clopper_pearson(10, 20)
    assert low + high == pytest.approx(1, abs=1e-4)
    assert clopper_pearson(4, 20) == pytest.approx((0.0573, 0.4366), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_the_report_replaces_its_section_only(tmp_path: Path) -> None:
    runs = planned_runs(faults=["reward_sign"], healthy=1)
    lines = {
        "healthy/0/0": line(),
        "reward_sign/0": line(held_by=["preflight_composition"], at_update=0),
    }
    document = tmp_path / "docs" / "guards.md"
    document.parent.mkdir()
    document.write_text("# Guards\n\nSaid by people.\n\n## Measured\n\nold figures\n")
    write_report(lines, runs, root=tmp_path)
    results = json.loads((tmp_path / "benchmarks" / "results" / "guards.json").read_text())
    written = document.read_text()
    assert written == "# Guards\n\nSaid by people.\n\n## Measured\n\n" + in_markdown(results)
    assert "old figures" not in written
    assert "| `reward_sign` |" in written
    assert (tmp_path / "docs" / "images" / "guards.png").read_bytes().startswith(b"\x89PNG")
