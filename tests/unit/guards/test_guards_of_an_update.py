"""Each guard on a healthy update, and on one with the defect that it is there for."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.trainer.experience import RewardSettings
from services.trainer.guards.baseline import PROPERTIES, BaselineGuard
from services.trainer.guards.board import GuardBoard
from services.trainer.guards.config import DEFAULT_RULES, GuardsConfig
from services.trainer.guards.guard import (
    LARGEST_STATISTIC,
    Action,
    Guard,
    GuardName,
    ProbeReading,
    UpdateFacts,
    find,
)
from services.trainer.guards.kl import (
    KlNegativeGuard,
    KlRunawayGuard,
    SamplerCalibrationGuard,
    SamplerMismatchGuard,
)
from services.trainer.guards.numbers import NumbersGuard, ProbeGuard, StepSizeGuard
from services.trainer.guards.reward import RewardDriftGuard, RewardSaturationGuard, RewardSpikeGuard
from services.trainer.guards.sign import (
    CompositionGuard,
    DirectionScoresGuard,
    DirectionTokensGuard,
    ObjectiveGuard,
)

Make = Callable[..., Any]


def threshold(name: GuardName) -> float:
    return DEFAULT_RULES[name].threshold


def with_scores(facts: UpdateFacts, scores: torch.Tensor) -> UpdateFacts:
    rollout = replace(facts.experience.rollout, scores=scores)
    return replace(facts, experience=replace(facts.experience, rollout=rollout))


def with_reading(facts: UpdateFacts, **changes: torch.Tensor) -> UpdateFacts:
    return replace(facts, reading=replace(facts.reading, **changes))


def alarms(guard: Guard, *updates: UpdateFacts) -> list[bool]:
    findings = [guard.examine(update) for update in updates]
    return [finding is not None and finding.alarming for finding in findings]


def test_no_guard_alarms_on_healthy_updates(make_update: Make) -> None:
    for seed in range(3):
        board = GuardBoard(GuardsConfig(), kl_target_nats=None)
        for number in range(1, 25):
            update = make_update(1000 * seed + number, number=number, score_mean=0.03 * number)
            findings = board.examine(update.facts)
            assert board.alarms(findings, step=number) == []
        asked = {finding.guard for finding in findings}
        assert {name for name in GuardName if not name.value.startswith("preflight")} - asked <= {
            GuardName.HACKING,
            GuardName.PEOPLE,
        }


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("whiten_advantages", [False, True])
def test_the_second_computation_gives_the_production_paths_numbers(
    make_update: Make, whiten_rewards: bool, whiten_advantages: bool
) -> None:
    settings = RewardSettings(
        penalty=-1.5,
        gamma=0.98,
        lam=0.9,
        whiten_rewards=whiten_rewards,
        whiten_advantages=whiten_advantages,
    )
    finding = CompositionGuard(0.01).examine(make_update(3, settings=settings, kl_shift=0.3).facts)
    assert finding.statistic < 1e-5


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(lambda e: replace(e, rewards=-e.rewards), id="rewards flipped"),
        pytest.param(lambda e: replace(e, advantages=-e.advantages), id="advantages flipped"),
        pytest.param(lambda e: replace(e, returns=1.05 * e.returns), id="returns scaled"),
        pytest.param(lambda e: replace(e, rewards=e.rewards.roll(1, dims=1)), id="one token late"),
        pytest.param(lambda e: replace(e, beta=-e.beta), id="KL sign"),
    ],
)
def test_rewards_and_advantages_of_another_sign_place_or_size_are_seen(
    make_update: Make, defect: Callable[[Any], Any]
) -> None:
    facts = make_update(4, kl_shift=0.2).facts
    assert alarms(CompositionGuard(0.01), facts) == [False]
    assert alarms(CompositionGuard(0.01), replace(facts, experience=defect(facts.experience))) == [True]


def test_learning_the_wrong_way_is_seen_at_once(make_update: Make) -> None:
    right, wrong = make_update(5).facts, make_update(5, step=-0.02).facts
    guard = DirectionTokensGuard(threshold(GuardName.DIRECTION_TOKENS))
    assert alarms(guard, right) == [False]
    assert alarms(guard, wrong) == [True]


def test_flipped_advantages_that_learning_follows_are_seen_by_the_raw_scores(make_update: Make) -> None:
    guard = DirectionScoresGuard(threshold(GuardName.DIRECTION_SCORES), window=10)
    assert not any(alarms(guard, *(make_update(seed).facts for seed in range(20))))
    guard.acknowledge()
    assert any(alarms(guard, *(make_update(seed, step=-0.02).facts for seed in range(3))))


def test_a_step_that_changes_nothing_is_no_evidence(make_update: Make) -> None:
    facts = make_update(6, step=0.0).facts
    assert DirectionTokensGuard(5).examine(facts) is None
    assert DirectionScoresGuard(4.5, window=10).examine(facts) is None


def test_a_score_that_falls_while_the_optimizer_gains_is_seen_and_one_that_buys_a_smaller_kl_is_not(
    make_update: Make,
) -> None:
    def course(kl_step: float) -> list[UpdateFacts]:
        return [
            make_update(seed, score_mean=-0.2 * seed, kl_shift=1.0 + kl_step * seed).facts
            for seed in range(14)
        ]

    guard = ObjectiveGuard(threshold(GuardName.OBJECTIVE), window=10)
    assert any(alarms(guard, *course(kl_step=0.05)))
    guard.acknowledge()
    assert not any(alarms(guard, *course(kl_step=-0.05)))


def test_a_kl_that_stays_negative_is_seen(make_update: Make) -> None:
    guard = KlNegativeGuard(threshold(GuardName.KL_NEGATIVE), window=10)
    assert alarms(guard, make_update(7, kl_shift=0.0).facts) == [False]
    assert alarms(guard, make_update(8, kl_shift=-0.3).facts) == [True]


def test_rounding_around_a_kl_of_zero_is_no_negative_kl(make_update: Make) -> None:
    facts = make_update(9).facts
    rollout = facts.experience.rollout
    tiny = rollout.responses.behaviour_logprobs + 1e-6
    same = replace(
        facts, experience=replace(facts.experience, rollout=replace(rollout, reference_logprobs=tiny))
    )
    assert alarms(KlNegativeGuard(5, window=10), *[same] * 10) == [False] * 10


def test_a_kl_that_runs_away_is_seen(make_update: Make) -> None:
    assert alarms(KlRunawayGuard(60), make_update(7, kl_shift=12.0).facts) == [True]
    assert GuardsConfig().threshold_of_kl(6.0) == 24.0
    assert GuardsConfig().threshold_of_kl(None) == 60.0
    told = GuardsConfig.model_validate({"rules": {"kl_runaway": {"threshold": 5}}})
    assert told.threshold_of_kl(6.0) == 5.0


def test_a_sampler_that_kept_old_weights_is_seen_and_one_in_bfloat16_is_not(make_update: Make) -> None:
    def with_noise(seed: int, size: float) -> UpdateFacts:
        facts = make_update(seed).facts
        noise = size * torch.randn(facts.reading.logprobs_before.shape)
        return with_reading(facts, logprobs_before=facts.reading.logprobs_before + noise)

    torch.manual_seed(0)
    guard = SamplerMismatchGuard(threshold(GuardName.SAMPLER_MISMATCH), window=10)
    assert alarms(guard, with_noise(1, 1e-6), with_noise(2, 0.02)) == [False, True]
    # What is usual is learned from updates that were right: the first is not, in a run in bfloat16.
    bfloat16 = SamplerMismatchGuard(0.03, window=10)
    assert not any(alarms(bfloat16, *(with_noise(seed, 0.02) for seed in range(10))))
    assert alarms(bfloat16, with_noise(11, 0.5)) == [True]


def test_a_sampler_that_says_itself_that_it_drew_otherwise_is_seen(make_update: Make) -> None:
    facts = replace(
        make_update(1).facts, settings_differences=("the sampler drew at temperature 1, not 0.7",)
    )
    guard = SamplerMismatchGuard(1e-3, window=10)
    finding = guard.examine(facts)
    assert finding.alarming
    assert "temperature" in finding.message


@pytest.mark.parametrize("said_over_drawn", [0.8, 1.25])
def test_tokens_drawn_at_another_temperature_than_said_are_seen(
    make_update: Make, said_over_drawn: float
) -> None:
    facts = make_update(2, responses=[[0] * 60] * 64).facts
    guard = SamplerCalibrationGuard(threshold(GuardName.SAMPLER_CALIBRATION))
    assert alarms(guard, facts) == [False]
    # Tokens as the fixture draws them, under the distribution of another temperature.
    chance = torch.Generator().manual_seed(2)
    torch.randint(2, 13, (64,), generator=chance)
    logits = torch.randn(64, 60, 50, generator=chance)
    tokens = torch.multinomial(logits.softmax(-1).view(-1, 50), 1, generator=chance).view(64, 60, 1)
    said = (logits / said_over_drawn).log_softmax(-1)
    told = with_reading(
        facts,
        logprobs_before=said.gather(-1, tokens)[..., 0],
        entropies_before=-(said.exp() * said).sum(-1),
    )
    assert alarms(guard, told) == [True]


def test_numbers_that_are_none_and_numbers_out_of_bounds_are_seen(make_update: Make) -> None:
    facts = make_update(1).facts
    guard = NumbersGuard(1, window=10)
    usual = [replace(facts, metrics={"policy_grad_norm": 1.0 + 0.1 * n, "ratio_max": 1.3}) for n in range(5)]
    assert not any(alarms(guard, *usual))
    for metrics in (
        {"policy_grad_norm": math.nan},
        {"value_loss": math.inf},
        {"policy_grad_norm": 500.0},
        {"ratio_max": 1.1e9},
        {"ratio_min": 0.9e-9},
        {"explained_variance": -101.0},
    ):
        assert alarms(guard, replace(facts, metrics=metrics)) == [True], metrics
    assert alarms(guard, replace(facts, weights_finite=False)) == [True]


def test_damaged_weights_and_changed_frozen_models_are_seen(make_update: Make) -> None:
    facts = make_update(1).facts
    step = StepSizeGuard(threshold(GuardName.STEP_SIZE))
    after = facts.reading.logprobs_after
    assert alarms(step, facts, with_reading(facts, logprobs_after=after - 3.0)) == [False, True]
    assert alarms(step, with_reading(facts, logprobs_after=torch.full_like(after, math.nan))) == [True]
    probe = ProbeGuard(threshold(GuardName.PROBE))
    changed = replace(facts, probe=ProbeReading(reference_error_nats=0.0, score_error=0.2))
    assert alarms(probe, facts, changed) == [False, True]


def test_a_jump_a_slide_and_a_crowd_at_the_top_of_the_scores_are_seen(make_update: Make) -> None:
    learning = [make_update(seed, score_mean=0.05 * seed).facts for seed in range(12)]
    spike = RewardSpikeGuard(threshold(GuardName.REWARD_SPIKE), window=10)
    assert not any(alarms(spike, *learning))
    assert alarms(spike, make_update(13, score_mean=30.0).facts) == [True]

    drift = RewardDriftGuard(threshold(GuardName.REWARD_DRIFT))
    assert not any(alarms(drift, *learning))
    assert any(alarms(drift, *(make_update(seed, score_mean=-0.5 * seed).facts for seed in range(12))))

    saturation = RewardSaturationGuard(threshold(GuardName.REWARD_SATURATION))
    assert not any(alarms(saturation, *learning))
    assert alarms(saturation, with_scores(learning[0], torch.full((64,), 6.0))) == [True]


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        (GuardName.REWARD_VARIANCE, {"score_std": 100.0}),
        (GuardName.REWARD_VARIANCE, {"score_std": 0.01}),
        (GuardName.LENGTH_DRIFT, {"responses": [[number % 7 for number in range(60)]] * 64}),
        (GuardName.REPETITION, {"responses": [[4, 5] * 6] * 64}),
    ],
)
def test_a_policy_that_turns_into_something_else_is_seen(
    make_update: Make, name: GuardName, defect: dict[str, Any]
) -> None:
    (watched,) = [entry for entry in PROPERTIES if entry.guard is name]
    guard = BaselineGuard(watched, threshold(name), baseline_updates=3)
    assert not any(alarms(guard, *(make_update(seed).facts for seed in range(10))))
    assert alarms(guard, make_update(11, **defect).facts) == [True]
    guard.acknowledge()
    assert not any(alarms(guard, *(make_update(seed, **defect).facts for seed in range(10))))


def test_lost_entropy_and_lost_endings_are_seen(make_update: Make) -> None:
    facts = make_update(1).facts
    by_name = {entry.guard: entry for entry in PROPERTIES}
    entropy = BaselineGuard(
        by_name[GuardName.ENTROPY_COLLAPSE], threshold(GuardName.ENTROPY_COLLAPSE), baseline_updates=1
    )
    collapsed = with_reading(facts, entropies_before=facts.reading.entropies_before / 100)
    assert alarms(entropy, facts, facts, collapsed) == [False, False, True]
    endings = BaselineGuard(
        by_name[GuardName.INVALID_ENDINGS], threshold(GuardName.INVALID_ENDINGS), baseline_updates=1
    )
    responses = facts.experience.rollout.responses
    endless = replace(responses, ended_properly=torch.zeros_like(responses.ended_properly))
    rollout = replace(facts.experience.rollout, responses=endless)
    worse = replace(facts, experience=replace(facts.experience, rollout=rollout))
    assert alarms(endings, facts, worse) == [False, True]


def test_a_statistic_that_is_no_number_alarms() -> None:
    for statistic in (math.nan, math.inf, 1e300):
        finding = find(GuardName.NUMBERS, statistic, 5.0, "")
        assert finding.statistic == LARGEST_STATISTIC
        assert finding.alarming
    assert not find(GuardName.NUMBERS, -math.inf, 5.0, "").alarming
    assert not find(GuardName.NUMBERS, 5.0, 5.0, "").alarming


def test_a_board_taken_up_again_finds_what_one_that_went_on_finds(make_update: Make) -> None:
    whole, first = (GuardBoard(GuardsConfig(), kl_target_nats=6.0) for _ in range(2))
    updates = [make_update(seed, number=seed + 1).facts for seed in range(12)]
    for facts in updates[:6]:
        assert whole.examine(facts) == first.examine(facts)
    second = GuardBoard(GuardsConfig(), kl_target_nats=6.0)
    second.restore(first.state())
    for facts in updates[6:]:
        assert whole.examine(facts) == second.examine(facts)


def test_a_state_that_was_taken_does_not_change_with_later_updates(make_update: Make) -> None:
    board = GuardBoard(GuardsConfig(), kl_target_nats=None)
    board.examine(make_update(1).facts)
    taken = board.state()
    kept = repr(taken)
    board.examine(make_update(2).facts)
    assert repr(taken) == kept


def test_rules_say_what_follows(make_update: Make) -> None:
    config = GuardsConfig.model_validate(
        {"rules": {"composition": {"action": "warn", "threshold": 0.5}, "probe": {"action": "off"}}}
    )
    board = GuardBoard(config, kl_target_nats=None)
    facts = make_update(1).facts
    experience = replace(facts.experience, rewards=-facts.experience.rewards)
    changed = replace(
        facts, experience=experience, probe=ProbeReading(reference_error_nats=9.0, score_error=9.0)
    )
    (alarm,) = board.alarms(board.examine(changed), step=7)
    assert (alarm.finding.guard, alarm.action, alarm.step) == (GuardName.COMPOSITION, Action.WARN, 7)
    assert alarm.finding.threshold == 0.5
    with pytest.raises(ValueError, match="no effect"):
        GuardsConfig.model_validate({"enabled": False, "rules": {"probe": {"action": "off"}}})
