"""Decides what the reward model minimises, given decisions that people made.

Pure: torch and the standard library. The reward-model stage calls ``decision_loss`` on the raw scores of one
batch; one loss covers the three kinds of decisions, each picked by the decision itself:

    a pair             -log sigmoid(r_better - r_worse)                     Stiennon et al. 2020
    best of K          -log softmax(r)[best]                                Ziegler et al. 2019, eq. 1
    a ranking of K     mean of the pair loss over all untied pairs          Ouyang et al. 2022, eq. 1

For K = 2 the three are the same. Ties state no pair; a decision in which all are tied has no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One person's decision about scores of the batch.

    ``tiers`` holds indices into the flat scores, best tier first; those of one tier are tied. With
    ``only_best_known`` the first tier has the best one alone and nothing is known of the order of the others.
    """

    tiers: tuple[tuple[int, ...], ...]
    only_best_known: bool = False

    def untied_pairs(self) -> list[tuple[int, int]]:
        """All (better, worse) pairs of indices that the decision states."""
        return [
            (better, worse)
            for rank, tier in enumerate(self.tiers)
            for better in tier
            for lower in self.tiers[rank + 1 :]
            for worse in lower
        ]

    def moved(self, offset: int) -> Decision:
        """The same decision about scores that stand ``offset`` places further on."""
        return replace(self, tiers=tuple(tuple(index + offset for index in tier) for tier in self.tiers))


def decision_loss(
    scores: Tensor, decisions: Sequence[Decision], *, num_decisions: int | None = None
) -> Tensor:
    """Mean of the decisions' losses, nats. Every decision weighs the same, however many pairs it states.

    scores: [num_responses], raw outputs of the head, any float dtype. Fully tied decisions are left out of
    the mean. ``num_decisions`` is the divisor when the batch at hand is one piece of a larger one.
    Sign: descending raises the better one's score and lowers the worse one's.
    """
    better: list[int] = []
    worse: list[int] = []
    weights: list[float] = []
    choices: list[Tensor] = []
    informative = 0
    for decision in decisions:
        pairs = decision.untied_pairs()
        if not pairs:
            continue
        informative += 1
        if decision.only_best_known and len(pairs) > 1:
            order = [index for tier in decision.tiers for index in tier]  # the best one first
            target = torch.zeros((), dtype=torch.long, device=scores.device)
            choices.append(cross_entropy(scores[order], target))
            continue
        better.extend(pair[0] for pair in pairs)
        worse.extend(pair[1] for pair in pairs)
        weights.extend([1.0 / len(pairs)] * len(pairs))
    total = scores.sum() * 0.0  # keeps the graph when nothing is left to learn
    if weights:
        margins = scores[better] - scores[worse]
        total = total - (logsigmoid(margins) * margins.new_tensor(weights)).sum()
    if choices:
        total = total + torch.stack(choices).sum()
    return total / max(informative if num_decisions is None else num_decisions, 1)
