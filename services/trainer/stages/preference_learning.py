"""Decides what one batch of comparisons does to a reward model, and how the model is tested on others.

The reward-model stage makes it; ``training_loop`` calls it. All decisions about one document share one pass
over the document and one over each summary. Dropout stays off, as in the recipes that train reward models
from small amounts of human data for one epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from andon.modeling.forward import final_scores, head_statistics
from andon.modeling.sequences import PackedBatch, PromptGroup, pack, plan_batches
from services.trainer.reward_losses import Decision, decision_loss
from services.trainer.stages.comparisons import ComparedDocument
from services.trainer.stages.reward_accuracy import (
    accuracy,
    accuracy_by_confidence,
    judge_pairs,
    longer_wins_accuracy,
)
from services.trainer.stages.training_loop import BatchReport


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelTerm:
    """An auxiliary loss that keeps the reward model a language model.

    ``coefficient`` times the mean negative log-likelihood, nats per token, of the summaries that won some
    comparison, or of all. It keeps the trunk able to tell which words belong to the document.
    """

    coefficient: float
    preferred_only: bool
    head: nn.Module | None  # hidden states to logits; None: the scorer's own input embeddings, transposed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some elements in one packed row, with decisions that refer to the row's responses."""

    batch: PackedBatch
    decisions: list[Decision]
    language_model_responses: list[int]


class PreferenceLearning:
    """Teaches a scorer to prefer what people preferred."""

    def __init__(
        self,
        scorer: PreTrainedModel,
        training: Sequence[ComparedDocument],
        held_out: Sequence[ComparedDocument],
        *,
        token_budget: int,
        device: str,
        language_model: LanguageModelTerm | None = None,
    ) -> None:
        """Every training element must state at least one preference."""
        self._scorer = scorer.eval()
        self._training = training
        self._held_out = held_out
        self._token_budget = token_budget
        self._device = device
        self._language_model = language_model

    def accumulate(self, items: list[int]) -> BatchReport:
        """Gradients of the mean loss over all decisions about these documents."""
        elements = [self._training[item] for item in items]
        groups = [element.group for element in elements]
        num_decisions = sum(len(element.informative_decisions) for element in elements)
        num_language_tokens = sum(
            len(element.group.responses[index])
            for element in elements
            for index in self._language_model_responses(element)
        )
        loss_nats = language_nats = 0.0
        pairs = correct = 0
        all_scores: list[Tensor] = []
        for indices in plan_batches(groups, self._token_budget):
            piece = self._piece([elements[index] for index in indices])
            scores, language_sum = self._pass(piece)
            preference = decision_loss(scores, piece.decisions, num_decisions=num_decisions)
            loss = preference
            if language_sum is not None and self._language_model is not None:
                language = language_sum / max(num_language_tokens, 1)
                loss = loss + self._language_model.coefficient * language
                language_nats += float(language.detach())
            torch.autograd.backward(loss)
            loss_nats += float(preference.detach())
            scores = scores.detach().cpu()
            all_scores.append(scores)
            stated = [pair for decision in piece.decisions for pair in decision.untied_pairs()]
            pairs += len(stated)
            correct += sum(bool(scores[better] > scores[worse]) for better, worse in stated)
        raw = torch.cat(all_scores)
        metrics = {
            "loss_nats": loss_nats,
            "accuracy": correct / pairs,
            "score_mean": float(raw.mean()),
            "score_deviation": float(raw.std(correction=0)),
        }
        if self._language_model is not None:
            metrics["language_model_loss_nats_per_token"] = language_nats
        return BatchReport(metrics=metrics, num_tokens=sum(group.num_tokens for group in groups))

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out comparisons, beside what the longer summary would win."""
        if not self._held_out:
            return {}
        scores = self._group_scores([element.group for element in self._held_out])
        flat: list[float] = []
        decisions: list[Decision] = []
        records = []
        record_scores = []
        record_lengths = []
        for element, own in zip(self._held_out, scores, strict=True):
            decisions += [decision.moved(len(flat)) for decision in element.informative_decisions]
            flat += own
            for record, places in zip(element.records, element.candidate_places, strict=True):
                records.append(record)
                record_scores.append([own[place] for place in places])
                record_lengths.append([len(element.group.responses[place]) for place in places])
        pairs = judge_pairs(records, record_scores, record_lengths)
        if not pairs:
            return {}
        right = accuracy(pairs)
        metrics = {
            "validation_loss_nats": float(decision_loss(torch.tensor(flat, dtype=torch.float64), decisions)),
            "validation_accuracy": right.share,
            "validation_accuracy_low": right.low,
            "validation_accuracy_high": right.high,
            "validation_pairs": float(right.n),
            "validation_comparisons": float(len(records)),
            "longer_wins_accuracy": longer_wins_accuracy(pairs).share,
        }
        for (low, high), share in accuracy_by_confidence(pairs).items():
            metrics[f"validation_accuracy_confidence_{low}_{high}"] = share.share
            metrics[f"validation_pairs_confidence_{low}_{high}"] = float(share.n)
        return metrics

    def raw_scores(self, groups: Sequence[PromptGroup]) -> list[float]:
        """The head's output for every response, by group."""
        return [score for scores in self._group_scores(groups) for score in scores]

    def _group_scores(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        scores: list[list[float]] = [[] for _ in groups]
        with torch.no_grad():
            for indices in plan_batches(groups, self._token_budget):
                batch = pack([groups[index] for index in indices], self._device)
                flat = final_scores(self._scorer, batch).tolist()
                for index in indices:
                    count = len(groups[index].responses)
                    scores[index], flat = flat[:count], flat[count:]
        return scores

    def _piece(self, elements: Sequence[ComparedDocument]) -> _Piece:
        decisions: list[Decision] = []
        language_model_responses: list[int] = []
        offset = 0
        for element in elements:
            decisions += [decision.moved(offset) for decision in element.informative_decisions]
            language_model_responses += [
                offset + index for index in sorted(self._language_model_responses(element))
            ]
            offset += len(element.group.responses)
        return _Piece(
            batch=pack([element.group for element in elements], self._device),
            decisions=decisions,
            language_model_responses=language_model_responses,
        )

    def _language_model_responses(self, element: ComparedDocument) -> set[int]:
        if self._language_model is None:
            return set()
        if not self._language_model.preferred_only:
            return set(range(len(element.group.responses)))
        return {index for decision in element.informative_decisions for index in decision.tiers[0]}

    def _pass(self, piece: _Piece) -> tuple[Tensor, Tensor | None]:
        """Scores [num_responses] and, with the auxiliary term, the summed negative log-likelihood, a
        scalar.
        """
        batch = piece.batch
        if self._language_model is None:
            return final_scores(self._scorer, batch), None
        hidden = self._scorer.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
        ).last_hidden_state[0]
        scores = self._scorer.score(hidden.index_select(0, batch.last_token_index))[:, 0].float()
        wanted = torch.zeros(batch.num_responses, dtype=torch.bool, device=hidden.device)
        wanted[piece.language_model_responses] = True
        tokens = wanted[batch.response_of_token]
        states = hidden.index_select(0, batch.predict_index[tokens])
        head = self._language_model.head
        own = self._scorer.get_input_embeddings().weight
        statistics = head_statistics(
            partial(linear, weight=own) if head is None else head,
            states,
            batch.target_ids[tokens],
            vocab_size=len(own),
            temperature=1.0,
        )
        return scores, -statistics.logprobs.sum()
