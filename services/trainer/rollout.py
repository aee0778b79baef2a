"""Which responses an update learns from: sampled by the policy service, judged by reference and reward
services.

The PPO stage calls ``RolloutCollector`` once per update. One Sample call goes to each policy replica, with a
seed that depends on the run's seed, the update and the replica only, so that a resumed run draws the same
responses. The sampler's log-probabilities are kept as they came; nothing is computed again. Advantages are
made of this in ``services.trainer.experience``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from andon.client.policy import PolicyClient, PromptSamples, SampleResult, SamplingParameters
from andon.modeling.sequences import PromptGroup, unpack, valid_mask
from andon.modeling.versions import ModelVersion
from services.trainer.errors import MalformedAnswerError, NotFiniteError, StaleSampleError
from services.trainer.peers import Peers
from services.trainer.ppo.stopping import StopRule
from services.trainer.scorers import Scorers
from services.trainer.stages.context import StageState
from services.trainer.weight_publisher import WeightPublisher


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """R responses to the prompts of one update, cut by the stop rule. L is the longest one's length."""

    groups: tuple[PromptGroup, ...]  # a prompt with its responses; R counts through them in order
    lengths: Tensor  # [R] int64
    behaviour_logprobs: (
        Tensor  # [R, L] float32, nats, from the sampler at the sampling temperature; 0 behind the end
    )
    ended_properly: Tensor  # [R] bool, by the stop rule
    model: ModelVersion  # the version that wrote every token
    settings_differences: tuple[str, ...] = ()  # where a replica drew otherwise than it was asked to

    @property
    def mask(self) -> Tensor:
        """[R, L] bool, True on response tokens."""
        return valid_mask(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Responses and what the frozen models say of them."""

    responses: Responses
    reference_logprobs: Tensor  # [R, L] float32, nats, at the sampling temperature; 0 behind the end
    scores: Tensor  # [R] float32, as the reward service normalised them, before the stop rule's penalty

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        responses = self.responses
        return {
            "prompts": [list(group.prompt) for group in responses.groups],
            "responses": [[list(response) for response in group.responses] for group in responses.groups],
            "lengths": responses.lengths,
            "behaviour_logprobs": responses.behaviour_logprobs,
            "ended_properly": responses.ended_properly,
            "model": [responses.model.family, responses.model.version, responses.model.weights_sha256],
            "settings_differences": list(responses.settings_differences),
            "reference_logprobs": self.reference_logprobs,
            "scores": self.scores,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The inverse of ``to_state``."""
        return cls(
            responses=Responses(
                groups=tuple(
                    PromptGroup(prompt=prompt, responses=responses)
                    for prompt, responses in zip(state["prompts"], state["responses"], strict=True)
                ),
                lengths=state["lengths"],
                behaviour_logprobs=state["behaviour_logprobs"],
                ended_properly=state["ended_properly"],
                model=ModelVersion(*state["model"]),
                settings_differences=tuple(state["settings_differences"]),
            ),
            reference_logprobs=state["reference_logprobs"],
            scores=state["scores"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn."""

    samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    seed: int  # of the run
    eos_token_id: int  # ends a response
    tokenizer_fingerprint: str  # of the vocabulary that prompts are written in
    judged_with_eos: (
        int | None
    )  # a token the reward model must find at the end, where the stop rule wants another
    timeout_s: float


class RolloutCollector:
    """Gathers the rollouts of one run."""

    def __init__(
        self,
        replicas: Sequence[PolicyClient],
        *,
        scorers: Scorers,
        publisher: WeightPublisher,
        peers: Peers,
        stop_rule: StopRule,
        settings: SamplingSettings,
    ) -> None:
        self._replicas = replicas
        self._scorers = scorers
        self._publisher = publisher
        self._peers = peers
        self._stop_rule = stop_rule
        self._settings = settings

    def sample(
        self, prompts: Sequence[Sequence[int]], *, update: int, state: Callable[[], StageState]
    ) -> Responses:
        """Responses of the current version to these prompts; StaleSampleError for any other version's."""
        shares = split_evenly(prompts, len(self._replicas))
        calls = [
            partial(self._sample_share, replica, share, update, number)
            for number, (replica, share) in enumerate(zip(self._replicas, shares, strict=True))
            if share
        ]
        answers = self._peers.together(calls, state=state)
        differences = {difference for answer in answers for difference in self._differences(answer)}
        return self._cut(
            [result for answer in answers for result in answer.results], tuple(sorted(differences))
        )

    def judge(
        self,
        responses: Responses,
        *,
        state: Callable[[], StageState],
        meanwhile: Callable[[], None] | None = None,
    ) -> Rollout:
        """What reference and reward model say of the responses; both are asked at the same time."""
        items = [(group.prompt, group.responses) for group in responses.groups]
        judged = [(prompt, [self.as_judged(response) for response in row]) for prompt, row in items]
        calls: list[Callable[[], list[list[float]]]] = [
            partial(self._scorers.reference_logprobs, items, temperature=self._settings.temperature),
            partial(self._scorers.scores, judged),
        ]
        logprob_rows, score_rows = self._peers.together(calls, state=state, meanwhile=meanwhile)
        scores = torch.tensor([score for row in score_rows for score in row], dtype=torch.float32)
        if [len(row) for row in score_rows] != [len(row) for _, row in judged]:
            raise MalformedAnswerError(peer="reward", problem="the numbers of scores and of responses differ")
        if not bool(scores.isfinite().all()):
            raise NotFiniteError(quantity="a score of the reward model", step=responses.model.version)
        return Rollout(
            responses=responses,
            reference_logprobs=_padded(logprob_rows, responses.lengths, peer="reference"),
            scores=scores,
        )

    def _sample_share(
        self, replica: PolicyClient, prompts: Sequence[Sequence[int]], update: int, number: int
    ) -> SampleResult:
        settings = self._settings
        parameters = SamplingParameters(
            max_new_tokens=settings.max_new_tokens,
            samples_per_prompt=settings.samples_per_prompt,
            temperature=settings.temperature,
            seed=call_seed(settings.seed, update=update, replica=number),
        )
        peer = f"policy at {replica.target}"
        required = self._publisher.current
        result = self._peers.patiently(
            peer,
            lambda: replica.sample(
                prompts, parameters, required_model=required, timeout_s=settings.timeout_s
            ),
            restore=lambda: self._publisher.bring_to_current(replica),
        )
        if len(result.results) != len(prompts):
            raise MalformedAnswerError(
                peer=peer, problem=f"{len(result.results)} results for {len(prompts)} prompts"
            )
        for prompt_samples in result.results:
            self._check(peer, prompt_samples, required)
        return result

    def _check(self, peer: str, prompt_samples: PromptSamples, required: ModelVersion) -> None:
        if len(prompt_samples.samples) != self._settings.samples_per_prompt:
            raise MalformedAnswerError(
                peer=peer, problem=f"{len(prompt_samples.samples)} samples for a prompt"
            )
        for sample in prompt_samples.samples:
            if not sample.model.is_same_name(required) or required.weights_sha256 not in (
                "",
                sample.model.weights_sha256,
            ):
                raise StaleSampleError(peer=peer, expected=required, actual=sample.model)
            if not sample.token_ids or len(sample.logprobs) != len(sample.token_ids):
                raise MalformedAnswerError(
                    peer=peer,
                    problem=f"{len(sample.logprobs)} log-probabilities for {len(sample.token_ids)} tokens",
                )
            if not all(map(math.isfinite, sample.logprobs)):
                raise NotFiniteError(quantity="a log-probability of the sampler", step=required.version)

    def _differences(self, answer: SampleResult) -> list[str]:
        """Where the sampler drew otherwise than the trainer recomputes, by the sampler's own word."""
        applied, settings = answer.applied, self._settings
        differences = []
        if not math.isclose(applied.temperature, settings.temperature, rel_tol=1e-5):
            differences.append(
                f"the sampler drew at temperature {applied.temperature:g}, not {settings.temperature:g}"
            )
        if applied.top_p != 1.0:
            differences.append(f"the sampler cut the distribution at {applied.top_p:g}")
        if set(applied.stop_token_ids) != {settings.eos_token_id} or applied.stop:
            differences.append(
                f"the sampler ends responses with {sorted(applied.stop_token_ids)} or {list(applied.stop)}, "
                f"not with {settings.eos_token_id} alone"
            )
        if answer.tokenizer_fingerprint != settings.tokenizer_fingerprint:
            differences.append("the sampler reads prompts with another tokenizer or prompt template")
        return differences

    def _cut(self, results: Sequence[PromptSamples], differences: tuple[str, ...]) -> Responses:
        groups: list[PromptGroup] = []
        logprob_rows: list[Sequence[float]] = []
        ended_properly: list[bool] = []
        for result in results:
            kept: list[Sequence[int]] = []
            for sample in result.samples:
                cut = self._stop_rule.cut(sample.token_ids)
                kept.append(sample.token_ids[: cut.length])
                logprob_rows.append(sample.logprobs[: cut.length])
                ended_properly.append(cut.ended_properly)
            groups.append(PromptGroup(prompt=result.prompt_token_ids, responses=tuple(kept)))
        lengths = torch.tensor([len(row) for row in logprob_rows])
        return Responses(
            groups=tuple(groups),
            lengths=lengths,
            behaviour_logprobs=_padded(logprob_rows, lengths, peer="policy"),
            ended_properly=torch.tensor(ended_properly),
            model=self._publisher.current,
            settings_differences=differences,
        )

    @property
    def current(self) -> ModelVersion:
        """The version that samples come from."""
        return self._publisher.current

    def as_judged(self, response: Sequence[int]) -> Sequence[int]:
        """The reward model learned from summaries that end with the end-of-sequence token."""
        if self._settings.judged_with_eos is None or response[-1] == self._settings.judged_with_eos:
            return response
        return (*response, self._settings.judged_with_eos)


def split_evenly(prompts: Sequence[Sequence[int]], parts: int) -> list[Sequence[Sequence[int]]]:
    """Consecutive shares whose sizes differ by at most one; some are empty if parts outnumber prompts."""
    bounds = [len(prompts) * part // parts for part in range(parts + 1)]
    return [prompts[begin:end] for begin, end in pairwise(bounds)]


def call_seed(seed: int, *, update: int, replica: int) -> int:
    """A seed in 0..2**63-1 that no other update or replica of the run has."""
    digest = hashlib.sha256(f"{seed}/{update}/{replica}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _padded(rows: Sequence[Sequence[float]], lengths: Tensor, *, peer: str) -> Tensor:
    """[R, L] float32 of rows that must have these lengths; 0 behind the end."""
    if [len(row) for row in rows] != lengths.tolist():
        raise MalformedAnswerError(peer=peer, problem="the numbers of log-probabilities and of tokens differ")
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return unpack(flat, lengths, 0.0)
