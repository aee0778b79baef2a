"""How the PPO stage asks its guards: what they are shown, when, and what becomes of their alarms.

Pre-flight comes before the first update and whenever a run is taken up again; afterwards every update is
looked at between its last optimizer step and its publication. Whether an alarm warns, holds or pulls the cord
stands in the configuration; the run's context carries it out.
"""

from __future__ import annotations

import gc
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from andon.client.values import ModelInfo
from andon.corpus.loaders import load_comparisons
from andon.corpus.records import ComparisonRecord
from andon.errors import AndonError
from andon.modeling.forward import final_scores
from andon.modeling.loading import load_causal_lm, load_scorer, read_normalization
from andon.modeling.sequences import PromptGroup, pack, plan_batches
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError
from services.trainer.experience import Experience, RewardSettings, evaluate_rollout
from services.trainer.guards.board import GuardBoard
from services.trainer.guards.config import GuardsConfig
from services.trainer.guards.guard import (
    Alarm,
    Finding,
    GuardName,
    SamplerReading,
    SliceReading,
    UpdateFacts,
    find,
)
from services.trainer.guards.preflight import (
    Ranking,
    check_composition,
    check_labels,
    check_models,
    check_references,
    check_settings,
)
from services.trainer.guards.readings import (
    SAMPLER_ERRORS,
    FrozenProbe,
    PolicyReading,
    Slice,
    all_finite,
    read_policy,
    read_sampler,
    sampler_errors,
)
from services.trainer.peers import Peers
from services.trainer.precision import precision_now
from services.trainer.prompts import PromptSet
from services.trainer.rollout import Responses, Rollout, RolloutCollector
from services.trainer.scorers import Scorers
from services.trainer.stages.comparisons import LABELING_PREFIX, cut_summary
from services.trainer.stages.context import StageContext, StageState
from services.trainer.stages.ppo_opinions import SecondOpinions

_log = structlog.stdlib.get_logger(__name__)

Pair: TypeAlias = tuple[
    Sequence[int], tuple[Sequence[int], Sequence[int]]
]  # a prompt, the better and the worse

SPOILED = ("another document's reference", "their own words in another order", "their own first half")
SHORTEST_REFERENCE = 6  # tokens; of fewer no half is left

# Errors of the trainer and the other services that say that something is no number.
NOT_FINITE_REASONS = frozenset(
    {"NOT_FINITE", "SCORES_NOT_FINITE", "LOGPROBS_NOT_FINITE", "LOGITS_NOT_FINITE", "WEIGHTS_NOT_FINITE"}
)


class PpoGuards:
    """The guards of one PPO run."""

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
        opinions: SecondOpinions,
        temperature: float,
        token_budget: int,
        kl_target_nats: float | None,
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
        self._opinions = opinions
        self._temperature = temperature
        self._token_budget = token_budget
        self._board = GuardBoard(config, kl_target_nats=kl_target_nats)
        self._probe = FrozenProbe(
            prompts.prompts, eos_token_id=codec.eos_token_id, temperature=temperature, models=scorers
        )
        self._slice: Slice | None = None
        self._before: tuple[Tensor, Tensor] | None = None  # the slice's log-probabilities and entropies
        self._sampler_errors: dict[str, float] = {}  # of what was sampled ahead during the last update
        self._memory_before: dict[str, Any] | None = None  # while an update is looked at, and held

    # --- before the first update ---------------------------------------------------------------------------

    def preflight(
        self,
        *,
        step: int,
        beta: float,
        infos: Mapping[str, ModelInfo],
        reference: LocatedModel,
        reward_model: LocatedModel,
        state: Callable[[], StageState],
    ) -> None:
        """Look at what stands between a labeler's choice and a token's reward; hold the run if it is wrong.

        ``step``: updates done so far. ``infos``: what each service says of its model, by a name for messages.
        """
        config = self._config.preflight
        if not self._config.enabled or not config.enabled:
            return
        started_s = time.perf_counter()
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
        self._tell([finding for finding in findings if finding is not None], step, started_s, state=state)

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

    # --- every update --------------------------------------------------------------------------------------

    def before_update(self, experience: Experience) -> None:
        """Read the slice with the weights that wrote it."""
        if not self._config.enabled:
            return
        groups = experience.rollout.responses.groups
        self._slice = Slice.of(groups, responses=self._config.slice_responses)
        reading = self._read(experience.rollout.responses, self._slice)
        self._before = (reading.logprobs, reading.entropies)

    def after_update(
        self,
        experience: Experience,
        *,
        update: int,
        metrics: Mapping[str, float],
        written_ahead: Sequence[Responses],
        as_published: Callable[[], AbstractContextManager[None]],
        state: Callable[[], StageState],
        keep_last_good: Callable[[], None],
    ) -> None:
        """Examine an update whose weights are not published yet.

        Returns when they may be: nothing holds, the cord neither, or a person overruled what does. Raises as
        ``obey`` does.
        ``written_ahead`` are batches for later updates, by the weights that the policy has ``as_published``.
        ``keep_last_good`` is called when an alarm holds, before the run stands still.
        """
        if not self._config.enabled or self._slice is None or self._before is None:
            self._context.obey(state)
            return
        started_s = time.perf_counter()
        self._opinions.exchange()
        # A run that is cut off while it is held looks at this update once more: with the memory of before.
        self._memory_before = self._memory()
        probe = self._probe.compare(self._peers.together(self._probe.calls(), state=state))
        facts = UpdateFacts(
            update=update,
            experience=experience,
            reading=SliceReading(
                rows=torch.tensor(self._slice.rows),
                logprobs_before=self._before[0],
                entropies_before=self._before[1],
                logprobs_after=self._read(experience.rollout.responses, self._slice).logprobs,
            ),
            probe=probe,
            metrics=metrics,
            weights_finite=all_finite(self._policy),
            ahead=self._read_ahead(written_ahead, as_published),
            settings_differences=(
                *experience.rollout.responses.settings_differences,
                *(told for responses in written_ahead for told in responses.settings_differences),
                *self._scorers.settings_differences,
            ),
            witness=self._opinions.look(experience, update=update, state=state),
            people=self._opinions.take(),
        )
        findings = self._board.examine(facts)
        self._tell(findings, update, started_s, state=state, keep_last_good=keep_last_good)
        self._context.obey(state)  # a cord that was pulled while the guards looked keeps these weights back
        self._opinions.ask(experience, update=update)
        self._memory_before = None
        self._slice = self._before = None

    def with_sampler_errors(self, metrics: Mapping[str, float], *, staleness: int) -> dict[str, float]:
        """The update's metrics, where it was stale with the errors of what was sampled during it.

        An update that nothing was sampled during, as the last one, has none.
        """
        if staleness == 0:
            return dict(metrics)
        return {name: value for name, value in metrics.items() if name not in SAMPLER_ERRORS} | (
            self._sampler_errors
        )

    def not_finite(self, error: AndonError, *, done: int) -> None:
        """The run ends because something is no number: tell it as the guard ``numbers`` would.

        ``done``: updates done before.
        """
        if not self._config.enabled or error.reason not in NOT_FINITE_REASONS:
            return
        finding = find(
            GuardName.NUMBERS,
            float("inf"),
            self._threshold(GuardName.NUMBERS),
            f"{error.reason}: {error.message}",
        )
        self._context.guards_checked([finding], seconds=0.0)
        self._context.alarm(self._board.alarms([finding], step=done + 1))

    def _read_ahead(
        self, batches: Sequence[Responses], as_published: Callable[[], AbstractContextManager[None]]
    ) -> tuple[SamplerReading, ...]:
        """What the weights that wrote them say of a slice of each batch."""
        readings: list[SamplerReading] = []
        if batches:
            with as_published():
                readings += [
                    read_sampler(
                        self._policy,
                        responses,
                        size=self._config.slice_responses,
                        temperature=self._temperature,
                        token_budget=self._token_budget,
                    )
                    for responses in batches
                ]
        self._sampler_errors = sampler_errors(readings)
        return tuple(readings)

    def _read(self, responses: Responses, chosen: Slice) -> PolicyReading:
        return read_policy(
            self._policy,
            [responses.groups[index] for index in chosen.groups],
            width=responses.mask.shape[1],
            temperature=self._temperature,
            token_budget=self._token_budget,
        )

    def _tell(
        self,
        findings: Sequence[Finding],
        step: int,
        started_s: float,
        *,
        state: Callable[[], StageState],
        keep_last_good: Callable[[], None] | None = None,
    ) -> None:
        self._context.guards_checked(findings, seconds=time.perf_counter() - started_s)
        alarms: list[Alarm] = self._board.alarms(findings, step=step)
        if not alarms:
            return
        holds = any(alarm.action.holds for alarm in alarms)
        if holds and keep_last_good is not None:
            keep_last_good()
        self._context.alarm(alarms)
        if holds:
            self._context.obey(state)
            _log.warning("guards_overruled", run_id=self._context.run_id, step=step)
            self._board.acknowledge()

    def _threshold(self, guard: GuardName) -> float:
        return self._config.rule(guard).threshold

    # --- checkpoints ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Memories, and the reading of an update in progress."""
        reading = None
        if self._slice is not None and self._before is not None:
            reading = {
                "groups": list(self._slice.groups),
                "rows": list(self._slice.rows),
                "logprobs": self._before[0],
                "entropies": self._before[1],
            }
        return {
            **(self._memory() if self._memory_before is None else self._memory_before),
            "probe": self._probe.state(),
            "sampler_errors": dict(self._sampler_errors),
            "reading": reading,
        }

    def _memory(self) -> dict[str, Any]:
        return {"board": self._board.state(), "opinions": self._opinions.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self._board.restore(state["board"])
        self._opinions.restore(state["opinions"])
        self._probe.restore(state["probe"])
        self._sampler_errors = dict(state["sampler_errors"])
        reading = state["reading"]
        if reading is not None:
            self._slice = Slice(groups=tuple(reading["groups"]), rows=tuple(reading["rows"]))
            self._before = (reading["logprobs"], reading["entropies"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
