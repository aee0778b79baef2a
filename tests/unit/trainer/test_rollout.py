"""Sampling and judging with scripted services: versions, cuts, seeds, and answers that do not fit."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from andon.client.policy import PromptSamples, Sample, SampleResult, SamplingParameters
from andon.client.values import CallTiming
from andon.modeling.versions import ModelVersion
from services.trainer.errors import MalformedAnswerError, NotFiniteError, StaleSampleError
from services.trainer.peers import Peers
from services.trainer.ppo.stopping import EosRule, PeriodRule, StopRule
from services.trainer.rollout import (
    Responses,
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


def test_a_part_is_judged_while_the_next_is_written() -> None:
    first_is_scored, second_is_asked = threading.Event(), threading.Event()

    class Slow(Replica):
        def sample(self, prompts: Sequence[Sequence[int]], parameters: Any, **options: Any) -> SampleResult:
            if self.seeds:  # the second part is written only once the first is judged
                second_is_asked.set()
                assert first_is_scored.wait(30)
            return super().sample(prompts, parameters, **options)

    class Watched(Judges):
        def scores(self, items: Sequence[Any]) -> list[list[float]]:
            assert second_is_asked.wait(30)
            found = super().scores(items)
            first_is_scored.set()
            return found

    replica = Slow(sample(5, EOS), sample(5, 6, 7))
    rollout = rollout_of(collector(replica, judges=Watched(), parts=2), [[1], [2], [3]])

    assert [list(group.prompt) for group in rollout.responses.groups] == [[1], [2], [3]]
    assert rollout.scores.tolist() == [2.0, 3.0] * 3
    assert rollout.reference_logprobs.tolist() == [[-0.5, -0.5, 0.0], [-0.5, -0.5, -0.5]] * 3
    assert replica.seeds == [call_seed(11, update=1, replica=0, part=part) for part in (0, 1)]


def test_parts_of_different_width_are_padded_together() -> None:
    narrow, wide = (
        rollout_of(collector(Replica(sample(*tokens))), [[1]]).responses for tokens in ((EOS,), (5, 6, EOS))
    )
    joined = Responses.join([narrow, wide])
    assert joined.behaviour_logprobs.tolist() == [[-1.0, 0.0, 0.0], [-1.0, -2.0, -3.0]]
    assert joined.mask.sum(dim=1).tolist() == [1, 3]
    again = Responses.from_state(joined.to_state())
    assert torch.equal(again.behaviour_logprobs, joined.behaviour_logprobs)
    assert (again.model, again.lengths.tolist()) == (CURRENT, [1, 3])


def test_the_failure_of_one_replica_does_not_wait_for_another() -> None:
    may_end = threading.Event()

    class Hanging(Replica):
        def sample(self, *_: Any, **__: Any) -> SampleResult:
            assert may_end.wait(30)
            raise AssertionError("nobody asked for the answer")

    try:
        with pytest.raises(MalformedAnswerError):
            rollout_of(collector(Hanging(sample(5, EOS)), Replica(sample())), [[1], [2]])
    finally:
        may_end.set()


def test_even_shares() -> None:
    items = [[number] for number in range(7)]
    assert [len(share) for share in split_evenly(items, 3)] == [2, 2, 3]
    assert [item for share in split_evenly(items, 3) for item in share] == items
    assert [len(share) for share in split_evenly(items[:1], 2)] == [0, 1]


def test_seeds_fit_the_protocol_and_repeat() -> None:
    seeds = {
        call_seed(1, update=update, replica=replica, part=part)
        for update in range(50)
        for replica in range(4)
        for part in range(3)
    }
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert call_seed(1, update=2, replica=3) == call_seed(1, update=2, replica=3)
