"""What pairs of samples mean as values of gates: each is the larger, the better for the canary.

``gates.standard`` says what each value is. The reward and the reference service are asked for all pairs of a
round at once, and for both samples of a pair in one call, so that a model that is exchanged meanwhile judges
both sides or neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.errors import FailedPreconditionError
from andon.evaluation.repetition import repeated_share
from services.canary.evidence.probes import Pair

CALL_TIMEOUT_S = 60.0


def score_values(reward: RewardClient, pairs: Sequence[Pair]) -> list[float]:
    """The reward model's scores, canary's less stable's. Raises AndonError."""
    scores = reward.score(
        [(pair.document, (pair.stable_sample.text, pair.canary_sample.text)) for pair in pairs],
        timeout_s=CALL_TIMEOUT_S,
    )
    return [canary.score - stable.score for stable, canary in scores.items]


def kl_values(reference: ReferenceClient, pairs: Sequence[Pair], *, temperature: float) -> list[float]:
    """Estimates of the KL from the reference model, nats per response: stable's less the canary's.

    Each is the sum over the sample's own tokens of policy_logprob - reference_logprob, both at the sampling
    temperature. Raises AndonError, FailedPreconditionError TOKENIZER_MISMATCH where a token id does not mean
    the same to the reference model.
    """
    items = [
        (
            pair.canary.samples.prompt_token_ids,
            (pair.stable_sample.token_ids, pair.canary_sample.token_ids),
        )
        for pair in pairs
    ]
    answer = reference.logprobs(items, temperature=temperature, timeout_s=CALL_TIMEOUT_S)
    for pair in pairs:
        for side in (pair.stable, pair.canary):
            if side.tokenizer_fingerprint != answer.tokenizer_fingerprint:
                raise FailedPreconditionError(
                    f"the reference model {answer.model} has another tokenizer than a policy",
                    reason="TOKENIZER_MISMATCH",
                )
    return [
        _kl(pair.stable_sample.logprobs, of_stable) - _kl(pair.canary_sample.logprobs, of_canary)
        for pair, (of_stable, of_canary) in zip(pairs, answer.items, strict=True)
    ]


def longer_values(pairs: Sequence[Pair]) -> list[float]:
    """Natural logarithm of stable's tokens over the canary's."""
    return [math.log(len(pair.stable_sample.token_ids) / len(pair.canary_sample.token_ids)) for pair in pairs]


def repetition_values(pairs: Sequence[Pair]) -> list[float]:
    """Share of 3-grams that occurred before: stable's less the canary's."""
    return [
        repeated_share(pair.stable_sample.token_ids) - repeated_share(pair.canary_sample.token_ids)
        for pair in pairs
    ]


def latency_values(pairs: Sequence[Pair]) -> list[float]:
    """Natural logarithm of stable's seconds over the canary's."""
    return [math.log(max(pair.stable.seconds, 1e-6) / max(pair.canary.seconds, 1e-6)) for pair in pairs]


def _kl(policy_logprobs: Sequence[float], reference_logprobs: Sequence[float]) -> float:
    return math.fsum(
        policy - reference for policy, reference in zip(policy_logprobs, reference_logprobs, strict=True)
    )
