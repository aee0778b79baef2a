"""What the reward service counts, and that every series exists before the first call."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.reward.metrics import RewardMetrics
from services.reward.scorer import SummaryScore


def summary(score: float, token_count: int) -> SummaryScore:
    return SummaryScore(score=score, raw_score=score - 1, token_count=token_count)


def test_scores_are_counted_after_normalisation():
    registry = CollectorRegistry()
    metrics = RewardMetrics(registry)
    metrics.answered([[summary(-0.5, 4), summary(1.5, 6)], [summary(3.5, 20)]])
    assert registry.get_sample_value("andon_reward_documents_total") == 2
    assert registry.get_sample_value("andon_reward_mean_score") == pytest.approx(1.5)
    assert registry.get_sample_value("andon_reward_score_bucket", {"le": "0.0"}) == 1
    assert registry.get_sample_value("andon_reward_score_bucket", {"le": "2.0"}) == 2
    assert registry.get_sample_value("andon_reward_score_count") == 3
    assert registry.get_sample_value("andon_reward_summary_tokens_sum") == 30


def test_counters_start_at_0_and_names_follow_the_conventions():
    registry = CollectorRegistry()
    RewardMetrics(registry)
    assert registry.get_sample_value("andon_reward_not_finite_total") == 0
    assert registry.get_sample_value("andon_model_loads_total", {"outcome": "failed"}) == 0
    assert registry.get_sample_value("andon_model_abandoned_calls_total", {"cause": "deadline"}) == 0
    names = [
        line.split()[2]
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("# TYPE")
    ]
    assert all(name.startswith("andon_") for name in names)
