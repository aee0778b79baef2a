"""Sampling and judging with scripted services: versions, cuts, seeds, and answers that do not fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from andon.client.policy import PromptSamples, Sample, SampleResult, SamplingParameters
from andon.client.values import CallTiming
from andon.modeling.versions import ModelVersion
from services.trainer.errors import MalformedAnswerError, NotFiniteError, StaleSampleError
from services.trainer.peers import Peers
from services.trainer.ppo.stopping import EosRule, PeriodRule, StopRule
from services.trainer.rollout import (
    Rollout,
    RolloutCollector,
    SamplingSettings,
    call_seed,
    split_evenly,
)
from services.trainer.stages.context import StageClients

CURRENT = ModelVersion("policy", 7, "ab" * 32)
EOS = 3
PERIOD = 9


class Context:
    clients = StageClients()

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def asked_to_halt(self) -> bool:
        return False

    def obey(self, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing is asked."""


class Publisher:
    current = CURRENT

    def bring_to_current(self, replica: object) -> None:
        raise AssertionError("no replica was away")


class Replica:
    """Answers every prompt with the same scripted samples."""

    target = "host:1"

    def __init__(self, *samples: Sample, **applied: Any) -> None:
        """``applied``: parameters that it uses whatever it was asked for."""
        self.samples = samples
        self.applied = applied
        self.seeds: list[int | None] = []
        self.prompts: list[Sequence[int]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], parameters: SamplingParameters, **_: Any
    ) -> SampleResult:
        self.seeds.append(parameters.seed)
        self.prompts += prompts
        return SampleResult(
            results=tuple(
                PromptSamples(prompt_token_ids=tuple(prompt), samples=self.samples) for prompt in prompts
            ),
            model=CURRENT,
            seed=parameters.seed or 0,
            timing=CallTiming(queue_s=0.0, compute_s=0.0),
            applied=replace(parameters, stop_token_ids=(EOS,), **self.applied),
            tokenizer_fingerprint="the same",
        )


class Judges:
    """Reference and reward model."""

    def __init__(self, scores: list[list[float]] | None = None) -> None:
        self.scored: list[Any] = []
        self._scores = scores

    def reference_logprobs(self, items: Sequence[Any], *, temperature: float) -> list[list[float]]:
        return [[-0.5] * len(response) for _, responses in items for response in responses]

    def scores(self, items: Sequence[Any]) -> list[list[float]]:
        self.scored = list(items)
        return self._scores or [[float(len(response)) for response in responses] for _, responses in items]


def sample(*token_ids: int, model: ModelVersion = CURRENT, logprobs: Sequence[float] | None = None) -> Sample:
    values = tuple(logprobs) if logprobs is not None else tuple(-1.0 - i for i in range(len(token_ids)))
    return Sample(
        token_ids=token_ids, text="", logprobs=values, finish_reason="eos", model=model, first_token_s=0.0
    )


def collector(
    *replicas: Replica,
    judges: Judges | None = None,
    rule: StopRule | None = None,
    eos: int | None = None,
    parts: int = 1,
) -> RolloutCollector:
    return RolloutCollector(
        replicas,  # type: ignore[arg-type]
        scorers=judges or Judges(),  # type: ignore[arg-type]
        publisher=Publisher(),  # type: ignore[arg-type]
        peers=Peers(Context()),  # type: ignore[arg-type]
        stop_rule=rule or EosRule(eos_token_id=EOS),
        settings=SamplingSettings(
            parts=parts,
            samples_per_prompt=len(replicas[0].samples),
            temperature=0.7,
            max_new_tokens=8,
            seed=11,
            eos_token_id=EOS,
            tokenizer_fingerprint="the same",
            judged_with_eos=eos,
            timeout_s=1.0,
        ),
    )


def rollout_of(gatherer: RolloutCollector, prompts: Sequence[Sequence[int]], *, update: int = 1) -> Rollout:
    try:
        return gatherer.collect(gatherer.begin(prompts, update=update), state=dict)
    finally:
        gatherer.close()


@pytest.mark.parametrize(
    ("applied", "told"),
    [
        ({"temperature": 1.0}, "temperature 1, not 0.7"),
        ({"top_p": 0.9}, "cut the distribution at 0.9"),
        ({"stop": ("\n",)}, "not with 3 alone"),
    ],
)
def test_a_sampler_that_draws_otherwise_than_asked_is_named(applied: dict[str, Any], told: str) -> None:
    replica = Replica(sample(5, EOS), **applied)
    (difference,) = rollout_of(collector(replica), [[1, 2]]).responses.settings_differences
    assert told in difference


def test_responses_are_cut_and_padded_behind_their_end() -> None:
    replica = Replica(sample(5, EOS), sample(5, 6, 7))
    responses = rollout_of(collector(replica), [[1, 2]]).responses

    assert responses.lengths.tolist() == [2, 3]
    assert responses.behaviour_logprobs.tolist() == [[-1.0, -2.0, 0.0], [-1.0, -2.0, -3.0]]
    assert responses.ended_properly.tolist() == [True, False]
    assert responses.model == CURRENT
    assert [list(response) for response in responses.groups[0].responses] == [[5, EOS], [5, 6, 7]]


def test_the_period_rule_cuts_and_the_reward_model_sees_a_finished_summary() -> None:
    rule = PeriodRule(period_token_ids=frozenset({PERIOD}), after=1)
    judges = Judges()
    gatherer = collector(Replica(sample(PERIOD, 5, PERIOD, 6)), judges=judges, rule=rule, eos=EOS)
    rollout = rollout_of(gatherer, [[1, 2]])

    assert rollout.responses.lengths.tolist() == [3]
    assert [list(response) for response in judges.scored[0][1]] == [[PERIOD, 5, PERIOD, EOS]]
    assert rollout.reference_logprobs.tolist() == [[-0.5, -0.5, -0.5]]


@pytest.mark.parametrize(
    "model",
    [
        ModelVersion("policy", 6, "ab" * 32),
        ModelVersion("sft", 7, "ab" * 32),
        ModelVersion("policy", 7, "cd" * 32),
    ],
)
def test_a_sample_of_another_version_is_refused(model: ModelVersion) -> None:
    replica = Replica(sample(5, EOS), sample(6, EOS, model=model))
    with pytest.raises(StaleSampleError, match="policy/7"):
        rollout_of(collector(replica), [[1]])


@pytest.mark.parametrize("bad", [sample(), sample(5, EOS, logprobs=[-1.0])])
def test_a_malformed_sample_is_refused(bad: Sample) -> None:
    with pytest.raises(MalformedAnswerError):
        rollout_of(collector(Replica(bad)), [[1]])


def test_a_log_probability_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NotFiniteError):
        rollout_of(collector(Replica(sample(5, EOS, logprobs=[-1.0, float("nan")]))), [[1]])


def test_a_score_that_is_not_finite_is_refused() -> None:
    gatherer = collector(Replica(sample(5, EOS)), judges=Judges([[float("nan")]]))
    with pytest.raises(NotFiniteError, match="reward model"):
        rollout_of(gatherer, [[1]])


def test_missing_scores_are_refused() -> None:
    gatherer = collector(Replica(sample(5, EOS)), judges=Judges([[1.0, 2.0]]))
    with pytest.raises(MalformedAnswerError, match="reward"):
        rollout_of(gatherer, [[1]])


def test_replicas_share_the_prompts_and_have_seeds_of_their_own() -> None:
    replicas = [Replica(sample(5, EOS)) for _ in range(3)]
    gatherer = collector(*replicas)
    prompts = [[number] for number in range(1, 8)]
    first, second = gatherer.begin(prompts, update=1), gatherer.begin(prompts, update=2)
    responses = gatherer.collect(first, state=dict).responses
    gatherer.collect(second, state=dict)
    gatherer.close()

    assert [list(group.prompt) for group in responses.groups] == prompts
    assert [len(replica.prompts) for replica in replicas] == [4, 4, 6]
    seeds = [seed for replica in replicas for seed in replica.seeds]
    assert len(set(seeds)) == 6


def test_a_replica_without_prompts_is_not_asked() -> None:
    replicas = [Replica(sample(5, EOS)) for _ in range(3)]
    rollout_of(collector(*replicas), [[1]])
    assert sum(len(replica.seeds) for replica in replicas) == 1


def test_even_shares() -> None:
    items = [[number] for number in range(7)]
    assert [len(share) for share in split_evenly(items, 3)] == [2, 2, 3]
    assert [item for share in split_evenly(items, 3) for item in share] == items
    assert [len(share) for share in split_evenly(items[:1], 2)] == [0, 1]


def test_seeds_fit_the_protocol_and_repeat() -> None:
    seeds = {call_seed(1, update=update, replica=replica) for update in range(50) for replica in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert call_seed(1, update=2, replica=3) == call_seed(1, update=2, replica=3)
