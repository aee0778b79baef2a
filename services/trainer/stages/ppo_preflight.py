"""What a PPO run shows its guards before the first update, through the very path that training uses.

That is samples and their composed rewards, labelers' choices, references beside spoiled copies of them, and
answers of the services beside those of the same models loaded here. What they mean is decided in
``services.trainer.guards.preflight``; ``ppo_guards`` calls this and tells the run what was found.
"""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from andon.client.values import ModelInfo
from andon.corpus.loaders import load_comparisons
from andon.corpus.records import ComparisonRecord
from andon.modeling.forward import final_scores
from andon.modeling.loading import load_causal_lm, load_scorer, read_normalization
from andon.modeling.sequences import PromptGroup, pack, plan_batches
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError
from services.trainer.experience import Experience, RewardSettings, evaluate_rollout
from services.trainer.guards.config import GuardsConfig
from services.trainer.guards.guard import Finding, GuardName
from services.trainer.guards.preflight import (
    Ranking,
    check_composition,
    check_labels,
    check_models,
    check_references,
    check_settings,
)
from services.trainer.guards.readings import read_policy
from services.trainer.peers import Peers
from services.trainer.precision import precision_now
from services.trainer.prompts import PromptSet
from services.trainer.rollout import Responses, Rollout, RolloutCollector
from services.trainer.scorers import Scorers
from services.trainer.stages.comparisons import LABELING_PREFIX, cut_summary
from services.trainer.stages.context import StageContext, StageState

_log = structlog.stdlib.get_logger(__name__)

Pair: TypeAlias = tuple[
    Sequence[int], tuple[Sequence[int], Sequence[int]]
]  # a prompt, the better and the worse

SPOILED = ("another document's reference", "their own words in another order", "their own first half")
SHORTEST_REFERENCE = 6  # tokens; of fewer no half is left


class PpoPreflight:
    """Gathers what stands between a labeler's choice and a token's reward."""

    def __init__(
        self,
        config: GuardsConfig,
        context: StageContext,
        *,
        codec: TextCodec,
        prompts: PromptSet,
        policy: PreTrainedModel,
        collector: RolloutCollector,
        scorers: Scorers,
        peers: Peers,
        reward_settings: RewardSettings,
        temperature: float,
        token_budget: int,
    ) -> None:
        self._config = config
        self._context = context
        self._codec = codec
        self._prompts = prompts
        self._policy = policy
        self._collector = collector
        self._scorers = scorers
        self._peers = peers
        self._reward_settings = reward_settings
        self._temperature = temperature
        self._token_budget = token_budget

    def findings(
        self,
        *,
        beta: float,
        infos: Mapping[str, ModelInfo],
        reference: LocatedModel,
        reward_model: LocatedModel,
        state: Callable[[], StageState],
    ) -> list[Finding]:
        """One of each guard that has something to look at.

        ``infos``: what each service says of its model, by a name for messages.
        """
        config = self._config.preflight
        parts = self._collector.begin(self._prompts.prompts[: config.samples], update=0)
        rollout = self._collector.collect(parts, state=state)
        findings: list[Finding | None] = [
            check_settings(
                [
                    *self._differences(infos),
                    *rollout.responses.settings_differences,
                    *self._scorers.settings_differences,
                ],
                threshold=self._threshold(GuardName.PREFLIGHT_SETTINGS),
            ),
            check_composition(
                rollout,
                lambda changed: self._evaluate(changed, beta),
                beta=beta,
                threshold=self._threshold(GuardName.PREFLIGHT_COMPOSITION),
            ),
            self._check_labels(beta, state),
            self._check_references(beta, state),
        ]
        if config.compare_models:
            findings.append(
                check_models(
                    self._service_errors(rollout, reference, reward_model),
                    dtypes={name: info.dtype for name, info in infos.items()},
                    own_dtype=precision_now(self._context.device),
                    threshold=self._threshold(GuardName.PREFLIGHT_MODELS),
                )
            )
        return [finding for finding in findings if finding is not None]

    def _differences(self, infos: Mapping[str, ModelInfo]) -> list[str]:
        differences = []
        for name, info in infos.items():
            if info.tokenizer_fingerprint != self._codec.fingerprint:
                differences.append(f"the {name} has another tokenizer or prompt template")
            if info.eos_token_id != self._codec.eos_token_id:
                differences.append(f"the {name} ends with token {info.eos_token_id}")
        return differences

    def _check_labels(self, beta: float, state: Callable[[], StageState]) -> Finding | None:
        source = self._config.preflight.comparisons
        if source is None:
            _log.warning("preflight_without_labels", hint="guards.preflight.comparisons names none")
            return None
        pairs: list[Pair] = []
        for record in self._comparisons(source):
            better, worse = record.untied_pairs()[0]
            texts = record.candidates[better].text, record.candidates[worse].text
            prompt = self._codec.encode_document(record.document)
            first, second = (self._codec.encode_summary(text) for text in texts)
            pairs.append((prompt, (first, second)))
        if not pairs:
            return None
        right = self._first_is_better(pairs, beta, state)
        ranking = Ranking(right=int(right.sum()), total=len(right))
        return check_labels(ranking, threshold=self._threshold(GuardName.PREFLIGHT_LABELS))

    def _comparisons(self, source: str) -> list[ComparisonRecord]:
        """One decision per document, chosen by its text alone, at most as many as configured."""
        if source.startswith(LABELING_PREFIX):
            labeling = self._context.clients.labeling
            if labeling is None:
                raise InvalidConfigError(
                    field="guards.preflight.comparisons",
                    problem="this trainer has no labeling service configured",
                )
            records = list(labeling.export_comparisons(batch=source.removeprefix(LABELING_PREFIX)))
        else:
            records = load_comparisons(source)
        by_document = {
            record.document: record
            for record in records
            if record.document and record.untied_pairs() and not record.is_superseded
        }
        chosen = sorted(by_document.values(), key=lambda record: _digest(record.document))
        return chosen[: self._config.preflight.max_comparisons]

    def _check_references(self, beta: float, state: Callable[[], StageState]) -> Finding | None:
        known = sorted(self._prompts.references.items())[: self._config.preflight.references]
        pairs: dict[str, list[Pair]] = {kind: [] for kind in SPOILED}
        for number, (index, reference) in enumerate(known):
            other = known[(number + 1) % len(known)][1]
            if len(reference) < SHORTEST_REFERENCE or other == reference:
                continue
            words = list(reference[:-1])
            random.Random(number).shuffle(words)
            spoiled = other, (*words, reference[-1]), cut_summary(reference, len(reference) // 2)
            for kind, text in zip(SPOILED, spoiled, strict=True):
                pairs[kind].append((self._prompts.prompts[index], (reference, text)))
        if not pairs[SPOILED[0]]:
            return None
        return check_references(
            {kind: self._first_is_better(of_kind, beta, state) for kind, of_kind in pairs.items()},
            threshold=self._threshold(GuardName.PREFLIGHT_REFERENCES),
        )

    def _first_is_better(
        self, pairs: Sequence[Pair], beta: float, state: Callable[[], StageState]
    ) -> NDArray[np.bool_]:
        """[pairs]: whether the first of each got the higher composed reward, without any KL."""
        groups = [PromptGroup(prompt=prompt, responses=responses) for prompt, responses in pairs]
        (rows,) = self._peers.together([lambda: self._scorers.scores(pairs)], state=state)
        lengths = torch.tensor([len(response) for group in groups for response in group.responses])
        silent = torch.zeros(len(lengths), int(lengths.max()))
        rollout = Rollout(
            responses=Responses(
                groups=tuple(groups),
                lengths=lengths,
                behaviour_logprobs=silent,
                ended_properly=torch.ones(len(lengths), dtype=torch.bool),
                model=self._collector.current,
            ),
            reference_logprobs=silent,
            scores=torch.tensor([score for row in rows for score in row]),
        )
        totals = self._evaluate(rollout, beta).rewards.sum(dim=1).view(-1, 2)
        better: NDArray[np.bool_] = (totals[:, 0] > totals[:, 1]).numpy()
        return better

    def _evaluate(self, rollout: Rollout, beta: float) -> Experience:
        silent = torch.zeros_like(rollout.reference_logprobs)
        return evaluate_rollout(rollout, silent, beta=beta, settings=self._reward_settings)

    def _service_errors(
        self, rollout: Rollout, reference: LocatedModel, reward_model: LocatedModel
    ) -> dict[str, float]:
        """By service, the mean difference between its answers and those of the model loaded here."""
        responses, device = rollout.responses, self._context.device
        width, mask = responses.mask.shape[1], responses.mask

        def logprobs_of(model: PreTrainedModel) -> Tensor:
            return read_policy(
                model,
                responses.groups,
                width=width,
                temperature=self._temperature,
                token_budget=self._token_budget,
            ).logprobs

        sampled = logprobs_of(self._policy)
        own_reference = load_causal_lm(reference.source, dtype="float32", device=device)
        expected = logprobs_of(own_reference)
        del own_reference
        gc.collect()
        scores = self._own_scores(responses, reward_model)
        score_error = (rollout.scores.double() - scores).abs().mean() / max(1.0, float(scores.std()))
        return {
            "policy": float((responses.behaviour_logprobs - sampled).abs()[mask].double().mean()),
            "reference": float((rollout.reference_logprobs - expected).abs()[mask].double().mean()),
            "reward model": float(score_error),
        }

    def _own_scores(self, responses: Responses, reward_model: LocatedModel) -> Tensor:
        """[R] float64: the reward model's normalised scores, as computed here."""
        scorer = load_scorer(reward_model.source, dtype="float32", device=self._context.device).eval()
        normalization = read_normalization(scorer)
        groups = [
            PromptGroup(
                prompt=group.prompt, responses=[self._collector.as_judged(row) for row in group.responses]
            )
            for group in responses.groups
        ]
        by_group: list[Tensor] = [torch.empty(0)] * len(groups)
        with torch.no_grad():
            for piece in plan_batches(groups, self._token_budget):
                raw = final_scores(scorer, pack([groups[index] for index in piece], scorer.device)).cpu()
                sizes = [len(groups[index].responses) for index in piece]
                for index, rows in zip(piece, torch.split(raw, sizes), strict=True):
                    by_group[index] = rows
        return normalization.gain * torch.cat(by_group).double() + normalization.bias

    def _threshold(self, guard: GuardName) -> float:
        return self._config.rule(guard).threshold


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
