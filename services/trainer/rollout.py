"""Which responses an update learns from: sampled by the policy service, judged by reference and reward
services.

``RolloutCollector`` is called once per update, by ``services.trainer.rollouts_ahead``. In as many parts as
the configuration says, one Sample call goes to each policy replica, and what came back is judged while the
next part is written. The seed of a call depends on the run's seed, the update, the replica and the part only,
and every service is asked one thing after the other, so that a resumed run draws and judges the same
responses with the same bits. The sampler's log-probabilities are kept as they came; nothing is computed
again. Advantages are made of this in ``services.trainer.experience``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
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

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "prompts": [list(group.prompt) for group in self.groups],
            "responses": [[list(response) for response in group.responses] for group in self.groups],
            "lengths": self.lengths,
            "behaviour_logprobs": self.behaviour_logprobs,
            "ended_properly": self.ended_properly,
            "model": [self.model.family, self.model.version, self.model.weights_sha256],
            "settings_differences": list(self.settings_differences),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Responses:
        """The inverse of ``to_state``."""
        return cls(
            groups=tuple(
                PromptGroup(prompt=prompt, responses=responses)
                for prompt, responses in zip(state["prompts"], state["responses"], strict=True)
            ),
            lengths=state["lengths"],
            behaviour_logprobs=state["behaviour_logprobs"],
            ended_properly=state["ended_properly"],
            model=ModelVersion(*state["model"]),
            settings_differences=tuple(state["settings_differences"]),
        )

    @classmethod
    def join(cls, parts: Sequence[Responses]) -> Responses:
        """The parts of one version behind each other; a single part is given back as it is."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            groups=tuple(group for part in parts for group in part.groups),
            lengths=torch.cat([part.lengths for part in parts]),
            behaviour_logprobs=stack_rows([part.behaviour_logprobs for part in parts]),
            ended_properly=torch.cat([part.ended_properly for part in parts]),
            model=parts[0].model,
            settings_differences=_without_repetition(part.settings_differences for part in parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Responses and what the frozen models say of them."""

    responses: Responses
    reference_logprobs: Tensor  # [R, L] float32, nats, at the sampling temperature; 0 behind the end
    scores: Tensor  # [R] float32, as the reward service normalised them, before the stop rule's penalty

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "responses": self.responses.to_state(),
            "reference_logprobs": self.reference_logprobs,
            "scores": self.scores,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The inverse of ``to_state``."""
        return cls(
            responses=Responses.from_state(state["responses"]),
            reference_logprobs=state["reference_logprobs"],
            scores=state["scores"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPart:
    """Some prompts of a rollout, in the hands of the services. R and L are those of its responses."""

    responses: Future[Responses]
    reference_logprobs: Future[Tensor]  # [R, L] float32
    scores: Future[Tensor]  # [R] float32

    @property
    def is_written(self) -> bool:
        """Whether all its responses are there."""
        written = self.responses
        return written.done() and not written.cancelled() and written.exception() is None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn."""

    parts: int  # Sample calls of an update to each replica, one after the other
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
        # One thread for each service: it is asked one thing after the other, and answers the same each time.
        self._at_replicas = [_thread(f"policy-{number}") for number in range(len(replicas))]
        self._written = _thread("written")
        self._at_reference = _thread("reference")
        self._at_reward = _thread("reward")

    def begin(self, prompts: Sequence[Sequence[int]], *, update: int) -> list[RolloutPart]:
        """Have the current version write responses to these prompts, and have them judged. Does not wait.

        The parts' futures raise StaleSampleError for samples of any other version.
        """
        required = self._publisher.current
        shares = [share for share in split_evenly(prompts, self._settings.parts) if share]
        return [self._begin_part(share, update, number, required) for number, share in enumerate(shares)]

    def judge(self, parts: Sequence[Responses]) -> list[RolloutPart]:
        """Have parts that were written before be judged. Does not wait."""
        return [self._judged(_known(part)) for part in parts]

    def collect(self, parts: Sequence[RolloutPart], *, state: Callable[[], StageState]) -> Rollout:
        """Wait for what reference and reward model say of the parts."""
        responses = Responses.join(self._peers.wait_for([part.responses for part in parts], state=state))
        verdicts = [future for part in parts for future in (part.reference_logprobs, part.scores)]
        answers = self._peers.wait_for(verdicts, state=state)
        return Rollout(
            responses=responses,
            reference_logprobs=stack_rows(answers[0::2]),
            scores=torch.cat(answers[1::2]),
        )

    def close(self) -> None:
        """Begin nothing more. Calls in progress end when the run's connections are closed."""
        for thread in (*self._at_replicas, self._written, self._at_reference, self._at_reward):
            thread.shutdown(wait=False, cancel_futures=True)

    def _begin_part(
        self, prompts: Sequence[Sequence[int]], update: int, part: int, required: ModelVersion
    ) -> RolloutPart:
        shares = split_evenly(prompts, len(self._replicas))
        answers = [
            thread.submit(partial(self._sample_share, replica, share, update, number, part, required))
            for number, (thread, replica, share) in enumerate(
                zip(self._at_replicas, self._replicas, shares, strict=True)
            )
            if share
        ]
        return self._judged(self._written.submit(lambda: self._cut(_all_of(answers), required)))

    def _judged(self, responses: Future[Responses]) -> RolloutPart:
        return RolloutPart(
            responses=responses,
            reference_logprobs=self._at_reference.submit(
                lambda: self._reference_logprobs(responses.result())
            ),
            scores=self._at_reward.submit(lambda: self._scores(responses.result())),
        )

    def _reference_logprobs(self, responses: Responses) -> Tensor:
        items = [(group.prompt, group.responses) for group in responses.groups]
        rows = self._scorers.reference_logprobs(items, temperature=self._settings.temperature)
        return _padded(rows, responses.lengths, peer="reference")

    def _scores(self, responses: Responses) -> Tensor:
        judged = [
            (group.prompt, [self.as_judged(response) for response in group.responses])
            for group in responses.groups
        ]
        rows = self._scorers.scores(judged)
        if [len(row) for row in rows] != [len(row) for _, row in judged]:
            raise MalformedAnswerError(peer="reward", problem="the numbers of scores and of responses differ")
        scores = torch.tensor([score for row in rows for score in row], dtype=torch.float32)
        if not bool(scores.isfinite().all()):
            raise NotFiniteError(quantity="a score of the reward model", step=responses.model.version)
        return scores

    def _sample_share(
        self,
        replica: PolicyClient,
        prompts: Sequence[Sequence[int]],
        update: int,
        number: int,
        part: int,
        required: ModelVersion,
    ) -> SampleResult:
        settings = self._settings
        parameters = SamplingParameters(
            max_new_tokens=settings.max_new_tokens,
            samples_per_prompt=settings.samples_per_prompt,
            temperature=settings.temperature,
            seed=call_seed(settings.seed, update=update, replica=number, part=part),
        )
        peer = f"policy at {replica.target}"
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

    def _cut(self, answers: Sequence[SampleResult], model: ModelVersion) -> Responses:
        groups: list[PromptGroup] = []
        logprob_rows: list[Sequence[float]] = []
        ended_properly: list[bool] = []
        for result in (result for answer in answers for result in answer.results):
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
            model=model,
            settings_differences=_without_repetition(map(self._differences, answers)),
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


def call_seed(seed: int, *, update: int, replica: int, part: int = 0) -> int:
    """A seed in 0..2**63-1 that no other update, replica or part of the run has."""
    name = f"{seed}/{update}/{replica}" + (f"/{part}" if part else "")
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stack_rows(blocks: Sequence[Tensor]) -> Tensor:
    """[R, L] of blocks [R_i, L_i], with 0 behind the shorter ones; a single block is given back as it is."""
    if len(blocks) == 1:
        return blocks[0]
    width = max(block.shape[1] for block in blocks)
    return torch.cat([torch.nn.functional.pad(block, (0, width - block.shape[1])) for block in blocks])


def _thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)


def _without_repetition(told: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(sorted({difference for differences in told for difference in differences}))


def _known(responses: Responses) -> Future[Responses]:
    future: Future[Responses] = Future()
    future.set_result(responses)
    return future


def _all_of(answers: Sequence[Future[SampleResult]]) -> list[SampleResult]:
    done, _ = wait(answers, return_when=FIRST_EXCEPTION)
    for failed in (answer for answer in done if answer.exception() is not None):
        failed.result()
    return [answer.result() for answer in answers]


def _padded(rows: Sequence[Sequence[float]], lengths: Tensor, *, peer: str) -> Tensor:
    """[R, L] float32 of rows that must have these lengths; 0 behind the end."""
    if [len(row) for row in rows] != lengths.tolist():
        raise MalformedAnswerError(peer=peer, problem="the numbers of log-probabilities and of tokens differ")
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return unpack(flat, lengths, 0.0)
