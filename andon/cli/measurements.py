"""Decides how policies and reward models are measured through the services: texts, scores, KL, accuracy.

``andon demo`` and ``andon evaluate`` call this. Whatever is asked of a service here can be asked again, so a
service that is being started again is waited for and given its model back. The statistics themselves are in
``andon.evaluation``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from andon.cli.simulated_labelers import patiently
from andon.client.policy import PolicyClient, SampleResult, SamplingParameters
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.corpus.builtin.edits import Edit, edit_summary
from andon.corpus.builtin.generate import Post
from andon.corpus.builtin.judge import GoldJudge
from andon.corpus.records import ComparisonRecord, DocumentRecord
from andon.errors import FailedPreconditionError
from andon.evaluation.summary import RewardModelSummary
from andon.evaluation.win_rate import wilson_interval
from andon.modeling.versions import ModelVersion

PROMPTS_PER_CALL = 256
MODEL_REASONS = ("MODEL_NOT_LOADED", "MODEL_VERSION_MISMATCH")

Advance = Callable[[int], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTexts:
    """What one policy or baseline wrote, one text per document."""

    name: str
    version: ModelVersion | None  # None for baselines
    texts: tuple[str, ...]
    ended: tuple[bool, ...] | None  # whether each response ended by itself; None for baselines


class Measuring:
    """The three model services with the models that are to be measured."""

    def __init__(
        self,
        *,
        policy: PolicyClient,
        reference: ReferenceClient,
        reward: RewardClient,
        reference_model: ModelVersion,
        reward_model: ModelVersion,
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._reward = reward
        self._reference_model = reference_model
        self._reward_model = reward_model

    def sample(
        self,
        model: ModelVersion,
        documents: Sequence[str],
        parameters: SamplingParameters,
        advance: Advance | None = None,
    ) -> list[SampleResult]:
        """Samples of one policy, in calls of so many prompts; each call's seed follows the one before."""
        answers: list[SampleResult] = []
        for number, start in enumerate(range(0, len(documents), PROMPTS_PER_CALL)):
            part = documents[start : start + PROMPTS_PER_CALL]
            chosen = replace(parameters, seed=None if parameters.seed is None else parameters.seed + number)
            answers.append(
                with_model(
                    partial(self._policy.sample, part, chosen, required_model=model, wait_for_ready=True),
                    partial(self._policy.load_model, str(model), wait_for_ready=True),
                )
            )
            if advance is not None:
                advance(len(part))
        return answers

    def greedy_texts(
        self,
        name: str,
        model: ModelVersion,
        documents: Sequence[DocumentRecord],
        *,
        max_new_tokens: int,
        advance: Advance | None = None,
    ) -> PolicyTexts:
        """One summary per document at temperature 0."""
        parameters = SamplingParameters(max_new_tokens=max_new_tokens, temperature=0.0, seed=0)
        answers = self.sample(model, [record.document for record in documents], parameters, advance)
        drawn = [result.samples[0] for answer in answers for result in answer.results]
        return PolicyTexts(
            name=name,
            version=model,
            texts=tuple(sample.text for sample in drawn),
            ended=tuple(sample.finish_reason != "length" for sample in drawn),
        )

    def reward_scores(self, documents: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The reward model's scores of several texts per document; an empty text scores minus infinity."""
        items = [
            (document, [text for text in row if text.strip()])
            for document, row in zip(documents, texts, strict=True)
        ]
        asked = [item for item in items if item[1]]
        answer = with_model(
            partial(self._reward.score, asked, required_model=self._reward_model, wait_for_ready=True),
            partial(self._reward.load_model, str(self._reward_model), wait_for_ready=True),
        )
        rows = iter(answer.items)
        scores: list[list[float]] = []
        for row, (_, spoken) in zip(texts, items, strict=True):
            given = iter(next(rows) if spoken else ())
            scores.append([next(given).score if text.strip() else -math.inf for text in row])
        return scores

    def kl_nats(
        self,
        model: ModelVersion,
        documents: Sequence[str],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        advance: Advance | None = None,
    ) -> float:
        """Mean over responses of log pi - log pi_ref, summed over each response's tokens.

        The responses are the policy's own samples; both log-probabilities are at the sampling temperature.
        """
        parameters = SamplingParameters(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        gaps: list[float] = []
        for answer in self.sample(model, documents, parameters, advance):
            items = [
                (result.prompt_token_ids, [sample.token_ids for sample in result.samples])
                for result in answer.results
            ]
            under_reference = with_model(
                partial(
                    self._reference.logprobs,
                    items,
                    temperature=temperature,
                    required_model=self._reference_model,
                    wait_for_ready=True,
                ),
                partial(self._reference.load_model, str(self._reference_model), wait_for_ready=True),
            )
            for result, rows in zip(answer.results, under_reference.items, strict=True):
                for sample, reference_logprobs in zip(result.samples, rows, strict=True):
                    gaps.append(math.fsum(sample.logprobs) - math.fsum(reference_logprobs))
        return statistics.fmean(gaps)

    def reward_model_summary(
        self, comparisons: Sequence[ComparisonRecord], posts: Sequence[Post] | None, *, edit_seed: int = 0
    ) -> RewardModelSummary:
        """How far to believe the reward model, on comparisons and posts that it never saw."""
        scores = self.reward_scores(
            [record.document for record in comparisons],
            [[candidate.text for candidate in record.candidates] for record in comparisons],
        )
        right = [
            preference(row[better], row[worse])
            for record, row in zip(comparisons, scores, strict=True)
            for better, worse in record.untied_pairs()
        ]
        longer = [
            preference(
                len(record.candidates[better].text.split()), len(record.candidates[worse].text.split())
            )
            for record in comparisons
            for better, worse in record.untied_pairs()
        ]
        low, high = wilson_interval(sum(right), len(right))
        agreements = labeler_agreements(comparisons)
        edits = {} if posts is None else self.edit_test(posts, seed=edit_seed)
        return RewardModelSummary(
            accuracy=statistics.fmean(right),
            accuracy_low=low,
            accuracy_high=high,
            n=len(right),
            labeler_agreement=statistics.fmean(agreements) if agreements else None,
            labeler_agreement_n=len(agreements),
            longer_wins_accuracy=statistics.fmean(longer),
            gold_accuracy=None if posts is None else gold_accuracy(comparisons, scores, posts),
            edit_test={name: statistics.fmean(verdicts) for name, verdicts in edits.items()},
            edit_test_n=max((len(verdicts) for verdicts in edits.values()), default=0),
        )

    def edit_test(self, posts: Sequence[Post], *, seed: int) -> dict[str, list[float]]:
        """For each kind of edit, whether the reward model prefers each reference to its spoiled copy."""
        verdicts: dict[str, list[float]] = {}
        for edit in Edit:
            pairs = [
                (post.document, [post.reference, spoiled])
                for post in posts
                if (spoiled := edit_summary(post, post.reference, edit, seed)) is not None
            ]
            if pairs:
                scores = self.reward_scores([pair[0] for pair in pairs], [pair[1] for pair in pairs])
                verdicts[edit.value] = [preference(original, spoiled) for original, spoiled in scores]
        return verdicts


def with_model(call: Callable[[], Answer], load: Callable[[], object]) -> Answer:
    """Makes a call that needs a certain model; loads it first where the service has another or none."""

    def attempt() -> Answer:
        try:
            return call()
        except FailedPreconditionError as error:
            if error.reason not in MODEL_REASONS:
                raise
            load()
            return call()

    return patiently(attempt)


def preference(first: float, second: float) -> float:
    """1 where the first is larger, 0 where the second is, one half where they are equal."""
    return 0.5 if first == second else float(first > second)


def labeler_agreements(comparisons: Sequence[ComparisonRecord]) -> list[float]:
    """For each pair of candidates that two labelers ordered, 1 where they agree and 0 where they do not.

    Pairs that either of them ties are left out, as in Stiennon et al. 2020, whose labelers could not tie.
    """
    orders: dict[tuple[str, tuple[str, ...]], list[ComparisonRecord]] = {}
    for record in comparisons:
        key = (record.document_id, tuple(candidate.text for candidate in record.candidates))
        orders.setdefault(key, []).append(record)
    agreements: list[float] = []
    for records in orders.values():
        for place, first in enumerate(records):
            for second in records[place + 1 :]:
                if first.labeler_id == second.labeler_id:
                    continue
                stated = set(second.untied_pairs())
                for better, worse in first.untied_pairs():
                    if (better, worse) in stated or (worse, better) in stated:
                        agreements.append(float((better, worse) in stated))
    return agreements


def gold_accuracy(
    comparisons: Sequence[ComparisonRecord], scores: Sequence[Sequence[float]], posts: Sequence[Post]
) -> float | None:
    """How often the reward model orders two candidates as the judge without noise does; ties left out."""
    judge = GoldJudge()
    known = {post.document: post for post in posts}
    verdicts: list[float] = []
    seen: set[tuple[str, str, str]] = set()
    for record, row in zip(comparisons, scores, strict=True):
        post = known[record.document]
        texts = [candidate.text for candidate in record.candidates]
        for first in range(len(texts)):
            for second in range(first + 1, len(texts)):
                key = (record.document, texts[first], texts[second])
                gold = judge.prefer(post, texts[first], texts[second])
                if gold == 0.5 or key in seen:
                    continue
                seen.add(key)
                reward = preference(row[first], row[second])
                verdicts.append(reward if gold == 1.0 else 1.0 - reward)
    return statistics.fmean(verdicts) if verdicts else None


def gold_scores(posts: Sequence[Post], texts: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """The judge's totals by policy, one per post."""
    judge = GoldJudge()
    return {
        name: [judge.score(post, text).total for post, text in zip(posts, rows, strict=True)]
        for name, rows in texts.items()
    }
