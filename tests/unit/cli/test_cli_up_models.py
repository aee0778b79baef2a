"""Which models `andon up` has the services serve."""

from pathlib import Path

from andon.cli.up_command import models_to_serve
from andon.modeling.store import ModelStore


def store_with(folder: Path, **aliases: str) -> ModelStore:
    (folder / "aliases").mkdir(parents=True)
    for name, version in aliases.items():
        (folder / "aliases" / name.replace("_at_", "@")).write_text(version + "\n")
    return ModelStore(folder)


def test_an_empty_store_leaves_the_services_without_models(tmp_path: Path) -> None:
    assert models_to_serve(ModelStore(tmp_path / "nothing"), {}) == {}


def test_the_supervised_model_stands_in_for_a_policy(tmp_path: Path) -> None:
    store = store_with(tmp_path, sft_at_latest="sft/2")
    assert models_to_serve(store, {}) == {
        "policy": {"model": "sft@latest"},
        "reference": {"model": "sft@latest"},
    }


def test_stable_comes_before_latest_and_settings_before_both(tmp_path: Path) -> None:
    store = store_with(
        tmp_path, policy_at_latest="policy/9", policy_at_stable="policy/4", reward_at_latest="reward/1"
    )
    assert models_to_serve(store, {})["policy"] == {"model": "policy@stable"}
    assert models_to_serve(store, {"reward": {"model": "reward/1"}}) == {"policy": {"model": "policy@stable"}}
