"""How an update gets its experience: the batch that was written for it, and what the trainer's own networks
say of it.

The PPO stage calls ``ExperienceMaker`` at the begin of an update. Values are always those of the critic that
the update begins with; where an earlier version wrote the batch, so are the proximal log-probabilities. Both
are computed part by part while the services are still asked about the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from andon.modeling.sequences import pack, plan_batches, unpack
from services.trainer.actor_critic import ActorCritic, statistics_and_values
from services.trainer.experience import Experience, Proximal, RewardSettings, evaluate_rollout
from services.trainer.peers import Peers
from services.trainer.rollout import Responses, RolloutCollector, stack_rows
from services.trainer.rollouts_ahead import RolloutsAhead
from services.trainer.stages.context import StageState


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnView:
    """What the trainer's networks say of some responses; [R, L] float32 on the CPU, 0 behind the end."""

    values: Tensor  # before each token
    logprobs: Tensor | None  # nats, at the sampling temperature; None where nobody asked


class ExperienceMaker:
    """Makes the experiences of one run."""

    def __init__(
        self,
        actor_critic: ActorCritic,
        *,
        ahead: RolloutsAhead,
        collector: RolloutCollector,
        peers: Peers,
        settings: RewardSettings,
        weight_limit: float,
        temperature: float,
        token_budget: int,
    ) -> None:
        self._actor_critic = actor_critic
        self._ahead = ahead
        self._collector = collector
        self._peers = peers
        self._settings = settings
        self._weight_limit = weight_limit
        self._temperature = temperature
        self._token_budget = token_budget

    def make(
        self,
        update: int,
        *,
        beta: float,
        timed: Callable[[str], AbstractContextManager[None]],
        state: Callable[[], StageState],
    ) -> Experience:
        """Wait for the update's batch and evaluate it. ``timed`` counts what a phase kept the trainer."""
        with timed("sample_seconds"):
            batch = self._ahead.batch(update, state=state)
        views: list[OwnView] = []
        for part in batch.parts:
            with timed("sample_seconds"):
                (responses,) = self._peers.wait_for([part.responses], state=state)
            with timed("score_seconds"):
                views.append(self._view(responses, with_logprobs=batch.staleness > 0))
        with timed("score_seconds"):
            rollout = self._collector.collect(batch.parts, state=state)
        logprobs = [view.logprobs for view in views if view.logprobs is not None]
        return evaluate_rollout(
            rollout,
            stack_rows([view.values for view in views]),
            beta=beta,
            settings=self._settings,
            proximal=Proximal(
                logprobs=stack_rows(logprobs), staleness=batch.staleness, weight_limit=self._weight_limit
            )
            if logprobs
            else None,
        )

    def _view(self, responses: Responses, *, with_logprobs: bool) -> OwnView:
        groups = responses.groups
        values: list[Tensor] = [torch.empty(0)] * len(groups)
        logprobs = list(values)
        with torch.no_grad():
            for piece in plan_batches(groups, self._token_budget):
                batch = pack([groups[index] for index in piece], self._actor_critic.policy.device)
                if with_logprobs:
                    statistics, flat_values = statistics_and_values(
                        self._actor_critic, batch, temperature=self._temperature
                    )
                    _scatter(statistics.logprobs, logprobs, responses, piece)
                else:
                    flat_values = self._actor_critic.values(batch)
                _scatter(flat_values, values, responses, piece)
        return OwnView(
            values=unpack(torch.cat(values), responses.lengths, 0.0),
            logprobs=unpack(torch.cat(logprobs), responses.lengths, 0.0) if with_logprobs else None,
        )


def _scatter(flat: Tensor, rows: list[Tensor], responses: Responses, piece: list[int]) -> None:
    """Put a packed batch's [T] numbers where their prompts stand."""
    sizes = [sum(map(len, responses.groups[index].responses)) for index in piece]
    for index, row in zip(piece, torch.split(flat.cpu(), sizes), strict=True):
        rows[index] = row
