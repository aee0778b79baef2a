"""Decides what ``andon evaluate`` measures on services that run already."""

from __future__ import annotations

import time
from dataclasses import dataclass

from andon.cli.measurements import Advance, Measuring
from andon.cli.policy_comparison import compare_policies
from andon.cli.simulated_labelers import post_from_record
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.corpus.builtin.generate import Post
from andon.corpus.records import ComparisonRecord, DocumentRecord
from andon.evaluation.summary import Report
from andon.modeling.versions import ModelVersion

KL_DOCUMENTS = 256
SHOWN_SAMPLES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What a person asked for."""

    data: str
    documents: tuple[DocumentRecord, ...]  # all with reference summaries
    comparisons: tuple[ComparisonRecord, ...]  # held out; empty when the reward model is not to be measured
    model_names: tuple[str, ...]  # the served policy when empty
    max_new_tokens: int
    temperature: float  # of the samples that measure the KL
    seed: int
    model_store: str


def evaluate_policies(
    request: EvaluationRequest,
    policy: PolicyClient,
    reference: ReferenceClient,
    reward: RewardClient,
    advance: Advance,
) -> Report:
    """Compares the policies, the first one in more detail; the policy service keeps the first."""
    started_s = time.monotonic()
    served = policy.model_info().model if not request.model_names else None
    models = {str(served): served} if served is not None else _versions(request.model_names, policy)
    reference_model = reference.model_info().model
    reward_model = reward.model_info().info.model
    measuring = Measuring(
        policy=policy,
        reference=reference,
        reward=reward,
        reference_model=reference_model,
        reward_model=reward_model,
    )
    posts = _posts(request.documents)
    comparison = compare_policies(
        measuring,
        models,
        request.documents,
        posts,
        max_new_tokens=request.max_new_tokens,
        shown_samples=SHOWN_SAMPLES,
        advance=advance,
    )
    first = next(iter(models.values()))
    kl_nats = measuring.kl_nats(
        first,
        [record.document for record in request.documents[:KL_DOCUMENTS]],
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    judged = measuring.reward_model_summary(request.comparisons, None) if request.comparisons else None
    notes = ["The gold judge is simulated: it knows the facts of the built-in posts."] if posts else []
    return Report(
        title=f"Evaluation of {', '.join(models)}",
        notes=notes,
        seed=request.seed,
        win_rates=comparison.win_rates,
        policies=comparison.summaries,
        kl_nats=kl_nats,
        reward_model=judged,
        curves=(),
        samples=comparison.samples,
        seconds={"total": round(time.monotonic() - started_s, 3)},
        model_store=request.model_store,
        models={
            **{f"policy {number}": str(model) for number, model in enumerate(models.values(), 1)},
            "reference": str(reference_model),
            "reward model": str(reward_model),
        },
        config={
            "data": request.data,
            "documents": len(request.documents),
            "max_new_tokens": request.max_new_tokens,
            "temperature": request.temperature,
        },
    )


def _versions(names: tuple[str, ...], policy: PolicyClient) -> dict[str, ModelVersion]:
    """The versions behind the names, as the policy service resolves them; it serves the last one now."""
    return {str(version): version for version in (policy.load_model(name).model for name in names)}


def _posts(documents: tuple[DocumentRecord, ...]) -> list[Post] | None:
    if any(record.facts is None for record in documents):
        return None
    return [post_from_record(record) for record in documents]
