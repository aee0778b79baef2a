"""What guards say of samples of an earlier version, and of what was sampled ahead for a later update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.trainer.experience import Proximal, evaluate_rollout
from services.trainer.guards.board import GuardBoard
from services.trainer.guards.config import DEFAULT_RULES, GuardsConfig
from services.trainer.guards.guard import Guard, GuardName, SamplerReading, UpdateFacts
from services.trainer.guards.kl import SamplerCalibrationGuard, SamplerMismatchGuard
from services.trainer.guards.numbers import NumbersGuard
from services.trainer.guards.sign import CompositionGuard

Make = Callable[..., Any]


def stale(update: Any, *, moved: float = 0.3) -> UpdateFacts:
    """The update as one that learns from samples of weights that it has moved away from since."""
    experience = update.experience
    responses = experience.rollout.responses
    chance = torch.Generator().manual_seed(8)
    distance = moved * torch.randn(responses.behaviour_logprobs.shape, generator=chance) * responses.mask
    found = evaluate_rollout(
        experience.rollout,
        experience.values,
        beta=experience.beta,
        settings=experience.settings,
        proximal=Proximal(logprobs=responses.behaviour_logprobs + distance, staleness=1, weight_limit=1.2),
    )
    facts: UpdateFacts = update.facts
    reading = replace(
        facts.reading,
        logprobs_before=update.before + distance,
        logprobs_after=update.after + distance,
    )
    return replace(facts, experience=found, reading=reading, ahead=(written(update),))


def written(update: Any) -> SamplerReading:
    """What the sampler wrote with the weights that are read."""
    responses = update.experience.rollout.responses
    return SamplerReading(
        behaviour_logprobs=responses.behaviour_logprobs,
        logprobs=update.before,
        entropies=update.entropies,
        mask=responses.mask,
    )


def alarms(guard: Guard, *updates: UpdateFacts) -> list[bool]:
    findings = [guard.examine(update) for update in updates]
    return [finding is not None and finding.alarming for finding in findings]


def mismatch() -> SamplerMismatchGuard:
    return SamplerMismatchGuard(DEFAULT_RULES[GuardName.SAMPLER_MISMATCH].threshold, window=10)


def test_no_guard_alarms_on_healthy_stale_updates(make_update: Make) -> None:
    board = GuardBoard(GuardsConfig(), kl_target_nats=None)
    for number in range(1, 6):
        findings = board.examine(stale(make_update(number, number=number)))
        assert [finding for finding in findings if finding.alarming] == []
        assert {finding.guard for finding in findings} >= {
            GuardName.SAMPLER_MISMATCH,
            GuardName.SAMPLER_CALIBRATION,
            GuardName.COMPOSITION,
        }


def test_that_the_policy_has_moved_on_is_no_mismatch_but_old_weights_in_a_sampler_are(
    make_update: Make,
) -> None:
    facts = stale(make_update(1))
    assert alarms(mismatch(), facts) == [False]
    # The next batch, just written, is said to come from the newest weights and does not.
    (right,) = facts.ahead
    wrong = replace(right, logprobs=facts.reading.logprobs_before)
    assert alarms(mismatch(), replace(facts, ahead=(wrong,))) == [True]


def test_a_training_pass_that_reads_otherwise_than_the_guards_is_seen(make_update: Make) -> None:
    facts = stale(make_update(1))
    proximal = 1.1 * facts.experience.proximal_logprobs
    wrong = replace(facts, experience=replace(facts.experience, proximal_logprobs=proximal))
    assert alarms(mismatch(), facts, wrong) == [False, True]


def test_calibration_is_of_the_weights_that_drew_the_tokens(make_update: Make) -> None:
    update = make_update(2)
    guard = SamplerCalibrationGuard(DEFAULT_RULES[GuardName.SAMPLER_CALIBRATION].threshold)
    facts = stale(update)
    # By the weights of now the tokens are far less surprising than their distribution says: no defect.
    surer = replace(facts, reading=replace(facts.reading, logprobs_before=torch.zeros_like(update.before)))
    assert alarms(guard, facts, surer) == [False, False]
    (right,) = facts.ahead
    wrong = replace(right, logprobs=torch.zeros_like(right.logprobs))
    assert alarms(guard, replace(facts, ahead=(wrong,))) == [True]
    assert guard.examine(replace(facts, ahead=())) is None  # the last update: nothing was sampled


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(lambda e: replace(e, weights=torch.ones_like(e.weights)), id="no weights"),
        pytest.param(lambda e: replace(e, weights=1 / e.weights.clamp(min=0.1)), id="upside down"),
        pytest.param(lambda e: replace(e, weights=e.weights.roll(1, dims=1)), id="one token late"),
        pytest.param(lambda e: replace(e, weight_limit=1.5), id="another limit"),
        pytest.param(lambda e: replace(e, proximal_logprobs=2 * e.proximal_logprobs), id="another policy"),
    ],
)
def test_weights_that_are_not_those_of_the_second_computation_are_seen(
    make_update: Make, defect: Callable[[Any], Any]
) -> None:
    facts = stale(make_update(4))
    assert float(facts.experience.weights.max()) == pytest.approx(1.2)  # the limit is reached
    guard = CompositionGuard(0.01)
    found = guard.examine(facts)
    assert found.statistic < 1e-5
    assert alarms(guard, replace(facts, experience=defect(facts.experience))) == [True]


def test_a_weight_beyond_all_bounds_is_seen_before_it_is_cut(make_update: Make) -> None:
    facts = stale(make_update(1))
    metrics = {"policy_grad_norm": 1.0, "ratio_max": 1.1, "behaviour_weight_max": 2e9}
    assert alarms(NumbersGuard(1, window=10), replace(facts, metrics=metrics)) == [True]
