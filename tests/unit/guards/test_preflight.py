"""What is looked at before the first update, as findings from answers that a test makes up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.trainer.experience import Experience, evaluate_rollout
from services.trainer.guards.preflight import (
    Ranking,
    check_composition,
    check_labels,
    check_models,
    check_references,
    check_settings,
)
from services.trainer.rollout import Rollout
from tests.unit.guards.conftest import SETTINGS

BETA = 0.1


def evaluate(rollout: Rollout) -> Experience:
    silent = torch.zeros_like(rollout.reference_logprobs)
    return evaluate_rollout(rollout, silent, beta=BETA, settings=SETTINGS)


def composed(rollout: Rollout, evaluated: Callable[[Rollout], Experience] = evaluate) -> float:
    return check_composition(rollout, evaluated, beta=BETA, threshold=0.01).statistic


def test_the_production_path_passes(make_update: Callable[..., Any]) -> None:
    assert composed(make_update(1, kl_shift=0.3).experience.rollout) < 1e-3


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(lambda e: replace(e, rewards=-e.rewards), id="all of it flipped"),
        pytest.param(lambda e: replace(e, rewards=100 * e.rewards), id="scaled"),
        pytest.param(lambda e: replace(e, rewards=e.rewards.roll(-1, dims=1)), id="one token early"),
        pytest.param(lambda e: replace(e, advantages=-e.advantages), id="advantages flipped"),
        pytest.param(lambda e: replace(e, rewards=0 * e.rewards), id="nothing paid"),
    ],
)
def test_a_composition_with_another_sign_place_or_size_does_not(
    make_update: Callable[..., Any], defect: Callable[[Experience], Experience]
) -> None:
    assert composed(make_update(1).experience.rollout, lambda rollout: defect(evaluate(rollout))) > 0.01


def test_a_flipped_kl_alone_is_seen(make_update: Callable[..., Any]) -> None:
    def flipped(rollout: Rollout) -> Experience:
        exchanged = replace(
            rollout,
            responses=replace(rollout.responses, behaviour_logprobs=rollout.reference_logprobs),
            reference_logprobs=rollout.responses.behaviour_logprobs,
        )
        return evaluate(exchanged)

    assert composed(make_update(1).experience.rollout, flipped) == pytest.approx(2.0, rel=0.01)


def test_a_missing_kl_penalty_is_no_defect_where_none_is_wanted(make_update: Callable[..., Any]) -> None:
    def without(rollout: Rollout) -> Experience:
        silent = torch.zeros_like(rollout.reference_logprobs)
        return evaluate_rollout(rollout, silent, beta=0.0, settings=SETTINGS)

    rollout = make_update(1).experience.rollout
    assert not check_composition(rollout, without, beta=0.0, threshold=0.01).alarming
    assert check_composition(rollout, without, beta=BETA, threshold=0.01).alarming


@pytest.mark.parametrize(("right", "alarming"), [(128, True), (140, True), (154, False), (64, True)])
def test_people_must_be_agreed_with_above_chance(right: int, alarming: bool) -> None:
    finding = check_labels(Ranking(right=right, total=256), threshold=0.01)
    assert finding is not None
    assert finding.alarming is alarming
    assert check_labels(Ranking(right=0, total=0), threshold=0.01) is None


def references(*shares: float, documents: int = 64) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    return {f"kind {number}": chance.random(documents) < share for number, share in enumerate(shares)}


@pytest.mark.parametrize(
    ("shares", "alarming"),
    [
        ((0.95, 0.7, 0.35), False),  # prefers halves, and is sound all the same
        ((0.5, 0.95, 0.75), False),  # does not see whose summary it is
        ((0.5, 0.5, 0.5), True),
        ((0.32, 0.17, 0.23), True),  # learned from exchanged labels
    ],
)
def test_references_must_beat_spoiled_texts(shares: tuple[float, ...], alarming: bool) -> None:
    finding = check_references(references(*shares), threshold=0.01)
    assert finding is not None
    assert finding.alarming is alarming


def test_few_references_say_nothing() -> None:
    assert check_references(references(0.1, 0.1, 0.1, documents=7), threshold=0.01) is None


def test_differences_of_settings_and_models_are_told() -> None:
    assert not check_settings([], threshold=0).alarming
    told = check_settings(["the policy ends with token 7"], threshold=0)
    assert told.alarming
    assert "token 7" in told.message
    dtypes = {"policy": "bfloat16", "reward model": "float32"}
    assert not check_models(
        {"policy": 0.01, "reward model": 1e-5}, dtypes=dtypes, own_dtype="float32", threshold=1
    ).alarming
    wrong = check_models(
        {"policy": 0.01, "reward model": 0.02}, dtypes=dtypes, own_dtype="float32", threshold=1
    )
    assert wrong.alarming
    assert "the reward model service" in wrong.message
    rounded = check_models({"reward model": 0.02}, dtypes=dtypes, own_dtype="bfloat16", threshold=1)
    assert not rounded.alarming
