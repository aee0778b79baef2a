"""What is looked at before the first update, through the very path that training uses.

The same clients, services and composition function: a sign that is wrong anywhere between a labeler's choice
and a token's reward shows here before a single weight has moved. Each function takes answers that were
gathered in ``services.trainer.stages.ppo_preflight`` and gives a finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.trainer.experience import Experience
from services.trainer.guards.guard import Finding, GuardName, find
from services.trainer.guards.statistics.hypothesis import mean_below_p, share_above_chance_p
from services.trainer.rollout import Rollout

FEWEST_REFERENCES = 8
# Mean differences to float32 that a number format explains, with room: nats per token, deviations of a score.
TOLERANCE = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.05}
NUDGE = 0.125  # a power of two: adding it to a float32 rounds little

Evaluate = Callable[[Rollout], Experience]  # the production path from a rollout to rewards and advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How often what must be better got the higher composed reward. A tie counts as wrong."""

    right: int
    total: int


def check_settings(differences: Sequence[str], *, threshold: float) -> Finding:
    """Tokenizer, temperature and stop rule of trainer, sampler, reference and reward model are the same."""
    message = "; ".join(differences) or "sampler, reference, reward model and trainer agree"
    return find(GuardName.PREFLIGHT_SETTINGS, float(len(differences)), threshold, message)


def check_models(
    errors: Mapping[str, float], *, dtypes: Mapping[str, str], own_dtype: str, threshold: float
) -> Finding:
    """The services answer as the models in the store do, loaded a second time by the trainer.

    ``errors``: by service, the mean absolute difference: nats per token, or standard deviations of a score.
    ``own_dtype`` is what the trainer computes in. Statistic: the largest difference in units of what the
    coarser of the two number formats explains.
    """
    coarser = {
        service: max(dtypes[service], own_dtype, key=lambda dtype: TOLERANCE[dtype]) for service in errors
    }
    sizes = {service: error / TOLERANCE[coarser[service]] for service, error in errors.items()}
    worst = max(sizes, key=lambda service: sizes[service])
    return find(
        GuardName.PREFLIGHT_MODELS,
        sizes[worst],
        threshold,
        f"the {worst} service differs from the stored model by {errors[worst]:.3g} on average, "
        f"{coarser[worst]} explains {TOLERANCE[coarser[worst]]:g}",
    )


def check_composition(rollout: Rollout, evaluate: Evaluate, *, beta: float, threshold: float) -> Finding:
    """Finite differences of the composed reward and of the advantage.

    A higher policy log-probability at one token must cost beta times the difference there and nothing
    elsewhere; a higher score must pay in full at the response's last token and nowhere else, and must raise
    that token's advantage. Statistic: the largest error, in units of what was to be expected (of the nudge,
    where nothing was).
    """
    proper = replace(
        rollout,
        responses=replace(
            rollout.responses, ended_properly=torch.ones_like(rollout.responses.ended_properly)
        ),
    )
    before = evaluate(proper)
    lengths = rollout.responses.lengths
    row = int(lengths.argmax())
    last, middle = int(lengths[row]) - 1, int(lengths[row]) // 2

    nudged_logprobs = proper.responses.behaviour_logprobs.clone()
    nudged_logprobs[row, middle] += NUDGE
    further = evaluate(
        replace(proper, responses=replace(proper.responses, behaviour_logprobs=nudged_logprobs))
    )
    nudged_scores = proper.scores.clone()
    nudged_scores[row] += NUDGE
    better = evaluate(replace(proper, scores=nudged_scores))

    errors = {
        "a higher log-probability costs beta times the difference": _error_at(
            further.rewards - before.rewards, row, middle, expected=-beta * NUDGE
        ),
        "a higher score pays at the last token": _error_at(
            better.rewards - before.rewards, row, last, expected=NUDGE
        ),
        "a higher score raises the advantage": 0.0
        if bool(better.advantages[row, last] > before.advantages[row, last])
        else math.inf,
    }
    worst = max(errors, key=lambda relation: errors[relation])
    held = "holds" if errors[worst] <= threshold else "does not hold"
    return find(
        GuardName.PREFLIGHT_COMPOSITION,
        errors[worst],
        threshold,
        f'"{worst}" {held}: the error is {errors[worst]:.3g}',
    )


def check_labels(ranking: Ranking, *, threshold: float) -> Finding | None:
    """What people preferred gets the higher composed reward more often than by chance.

    Statistic: the p value of the one-sided binomial test; the threshold is the level at which chance is ruled
    out. A reward model without any knowledge alarms with 1 - threshold, a good one with the test's missing
    power. None where there was nothing to rank.
    """
    if ranking.total == 0:
        return None
    p_value = share_above_chance_p(ranking.right, ranking.total)
    return find(
        GuardName.PREFLIGHT_LABELS,
        p_value,
        threshold,
        f"people's choice got the higher reward in {ranking.right} of {ranking.total} comparisons "
        f"(p = {p_value:.2g} of chance)",
    )


def check_references(beaten: Mapping[str, NDArray[np.bool_]], *, threshold: float) -> Finding | None:
    """References get a higher composed reward than spoiled texts more often than by chance.

    ``beaten``: by kind of spoiled text, [documents] whether the reference beat it. A reward model may be
    blind to one kind and still be sound, so the share of kinds that each reference beat is tested, over
    documents.
    Statistic: the p value of the one-sided t test. None for fewer than eight documents.
    """
    shares = np.mean([list(wins) for wins in beaten.values()], axis=0)
    if len(shares) < FEWEST_REFERENCES:
        return None
    p_value = mean_below_p(-shares, bound=-0.5)
    told = ", ".join(f"{what} in {wins.mean():.0%}" for what, wins in beaten.items())
    return find(
        GuardName.PREFLIGHT_REFERENCES,
        p_value,
        threshold,
        f"references beat {told} of {len(shares)} documents (p = {p_value:.2g} of chance)",
    )


def _error_at(change: Tensor, row: int, column: int, *, expected: float) -> float:
    """The largest difference to a change of ``expected`` at one place and none elsewhere."""
    wanted = torch.zeros_like(change, dtype=torch.float64)
    wanted[row, column] = expected
    size = abs(expected) if expected else NUDGE
    return float((change.double() - wanted).abs().max()) / size
