"""Decides how a reward model learns to tell a summary with exchanged words from one without.

What ``token_detection`` finds at each word has to be gathered where the score is read. A few thousand noisy
comparisons may or may not teach that; pairs of a summary and its copies with exchanged words, of which there
are as many as one likes, do. So this is a second phase, with all layers in place: of two
copies of a summary, the one with fewer exchanged words shall score higher. It needs no label either.

Called by ``reward_model``; the updates are those of ``training_loop``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from transformers import PreTrainedModel

from andon.modeling.forward import final_scores
from andon.modeling.sequences import PromptGroup, pack, plan_batches
from services.trainer.reward_losses import Decision, decision_loss
from services.trainer.stages.exchanged_words import Corrupted, ExchangedWords
from services.trainer.stages.optimization import OptimizationConfig
from services.trainer.stages.training_loop import BatchReport


class SummaryDetectionConfig(OptimizationConfig):
    """What the phase between token detection and the comparisons does, with the data of the former."""

    steps: int = Field(ge=1)  # updates
    batch_documents: int = Field(default=8, ge=1)
    variants: int = Field(default=3, ge=1)  # of each summary per update, beside the summary itself
    frozen_base: bool = False  # only the new layers and the head learn in this phase
    # Of the places where a word can be exchanged. Few, so that one wrong word counts.
    replaced_share: float = Field(default=0.15, gt=0, lt=1)


class SummaryDetection:
    """Teaches the head to score a whole summary the lower, the more of its words were exchanged."""

    def __init__(
        self,
        scorer: PreTrainedModel,
        words: ExchangedWords,
        *,
        variants: int,
        end_token: int,
        token_budget: int,
        device: str,
    ) -> None:
        self._scorer = scorer.eval()
        self._words = words
        self._variants = variants
        self._end_token = end_token
        self._token_budget = token_budget
        self._device = device

    def accumulate(self, items: list[int]) -> BatchReport:
        """Gradients of the mean pair loss over these examples; one whose copies are all alike has none."""
        groups: list[PromptGroup] = []
        decisions: list[Decision] = []
        for item, copies in zip(items, self._words.copies(items, variants=self._variants), strict=True):
            example = self._words.examples[item]
            texts = [example.responses[0], *(copy.token_ids for copy in copies)]
            groups.append(PromptGroup(example.prompt, [[*text, self._end_token] for text in texts]))
            decisions.append(fewest_exchanges_first(copies))
        num_informative = sum(len(decision.tiers) > 1 for decision in decisions)
        loss_nats = 0.0
        pairs = correct = 0
        for indices in plan_batches(groups, self._token_budget):
            scores = final_scores(self._scorer, pack([groups[index] for index in indices], self._device))
            moved = [
                decisions[index].moved(place * (self._variants + 1)) for place, index in enumerate(indices)
            ]
            loss = decision_loss(scores, moved, num_decisions=num_informative)
            torch.autograd.backward(loss)
            loss_nats += float(loss.detach())
            known = scores.tolist()
            stated = [pair for decision in moved for pair in decision.untied_pairs()]
            pairs += len(stated)
            correct += sum(known[better] > known[worse] for better, worse in stated)
        return BatchReport(
            metrics={
                "summary_detection_loss_nats": loss_nats,
                "summary_detection_accuracy": correct / max(pairs, 1),
            },
            num_tokens=sum(group.num_tokens for group in groups),
        )

    def validate(self) -> dict[str, float]:
        """Nothing: exchanged words are drawn anew for every update, so training accuracy is honest."""
        return {}


def fewest_exchanges_first(copies: Sequence[Corrupted]) -> Decision:
    """The order of a summary, at 0, and its copies."""
    counts = [0, *(copy.is_original.count(False) for copy in copies)]
    return Decision(
        tiers=tuple(
            tuple(index for index, own in enumerate(counts) if own == count) for count in sorted(set(counts))
        )
    )
