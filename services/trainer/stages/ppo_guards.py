"""How the PPO stage asks its guards: what they are shown, when, and what becomes of their alarms.

Pre-flight comes before the first update and whenever a run is taken up again; what it looks at is gathered in
``ppo_preflight``. Afterwards every update is looked at between its last optimizer step and its publication.
Whether an alarm warns, holds or pulls the cord stands in the configuration; the run's context carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.client.values import ModelInfo
from andon.errors import AndonError
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from services.trainer.experience import Experience
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
from services.trainer.prompts import PromptSet
from services.trainer.rollout import Responses
from services.trainer.scorers import Scorers
from services.trainer.stages.context import StageContext, StageState
from services.trainer.stages.ppo_opinions import SecondOpinions
from services.trainer.stages.ppo_preflight import PpoPreflight

_log = structlog.stdlib.get_logger(__name__)

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
        scorers: Scorers,
        peers: Peers,
        preflight: PpoPreflight,
        opinions: SecondOpinions,
        temperature: float,
        token_budget: int,
        kl_target_nats: float | None,
    ) -> None:
        self._config = config
        self._context = context
        self._policy = policy
        self._scorers = scorers
        self._peers = peers
        self._preflight = preflight
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
        if not self._config.enabled or not self._config.preflight.enabled:
            return
        started_s = time.perf_counter()
        findings = self._preflight.findings(
            beta=beta, infos=infos, reference=reference, reward_model=reward_model, state=state
        )
        self._tell(findings, step, started_s, state=state)

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
