"""How the PPO stage gets opinions on its samples that its own reward model has no part in.

A witness, another reward model, scores a slice of each update's responses for the guard ``hacking``; labelers
compare pairs of them for the guard ``people``. ``ppo_guards`` shows both to the guards. What is asked of whom
is decided here, what it means in ``services.trainer.guards.witness`` and ``people``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import structlog

from andon.modeling.sequences import PromptGroup
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError
from services.trainer.experience import Experience
from services.trainer.guards.config import GuardsConfig
from services.trainer.guards.guard import WitnessReading
from services.trainer.guards.on_policy import OnPolicyComparisons, Question, Submission
from services.trainer.guards.people import ScoredResponse, choose_pairs
from services.trainer.guards.readings import Slice
from services.trainer.guards.witness import FEWEST_PROMPTS
from services.trainer.guards.witness_model import Witness, WitnessModel, mean_by_prompt
from services.trainer.prompts import PromptSet
from services.trainer.rollout import RolloutCollector
from services.trainer.stages.context import StageContext, StageState

_log = structlog.stdlib.get_logger(__name__)


class SecondOpinions:
    """Witness and labelers of one PPO run, each where the configuration names them."""

    def __init__(
        self,
        config: GuardsConfig,
        context: StageContext,
        *,
        codec: TextCodec,
        prompts: PromptSet,
        collector: RolloutCollector,
        witness: Witness | None,
        seed: int,
    ) -> None:
        self._config = config
        self._context = context
        self._codec = codec
        self._prompts = prompts
        self._collector = collector
        self._witness = witness
        self._seed = seed
        self._people: OnPolicyComparisons | None = None
        self._witness_mean: float | None = None
        if config.people.pairs > 0:
            labeling = context.clients.labeling
            if labeling is None:
                raise InvalidConfigError(
                    field="guards.people.pairs", problem="this trainer has no labeling service configured"
                )
            self._people = OnPolicyComparisons(labeling, run_id=context.run_id, project=config.people.project)

    def look(
        self, experience: Experience, *, update: int, state: Callable[[], StageState]
    ) -> WitnessReading | None:
        """What reward model and witness say of a slice of the update; None when it is not the turn."""
        config = self._config.witness
        if self._witness is None or update % config.interval != 0:
            return None
        rollout = experience.rollout
        groups = rollout.responses.groups
        fewest = FEWEST_PROMPTS * max(len(group.responses) for group in groups)
        chosen = Slice.of(groups, responses=max(config.responses, fewest))
        judged = [
            PromptGroup(
                prompt=groups[index].prompt,
                responses=[self._collector.as_judged(response) for response in groups[index].responses],
            )
            for index in chosen.groups
        ]
        rows = self._witness.scores(judged, between_batches=lambda: self._context.obey(state))
        scores = iter(rollout.scores[list(chosen.rows)].tolist())
        training = [[next(scores) for _ in row] for row in rows]
        reading = WitnessReading(training=mean_by_prompt(training), witness=mean_by_prompt(rows))
        self._witness_mean = float(np.mean(reading.witness))
        return reading

    def exchange(self) -> None:
        """Send the labelers what waits for them, and take up what they answered. Does not wait."""
        if self._people is not None:
            self._people.exchange()

    def take(self) -> tuple[bool, ...] | None:
        """Whether labelers agreed, newly; None where nobody is asked."""
        return None if self._people is None else self._people.take()

    def ask(self, experience: Experience, *, update: int) -> None:
        """Choose pairs of the update's samples for the labelers, when it is the turn."""
        config = self._config.people
        if self._people is None or update % config.interval != 0:
            return
        responses = experience.rollout.responses
        places: dict[tuple[int, ...], int] = {}
        scores = iter(experience.rollout.scores.tolist())
        scored = [
            ScoredResponse(
                prompt=places.setdefault(tuple(group.prompt), len(places)),
                text=self._codec.decode(response),
                score=next(scores),
            )
            for group in responses.groups
            for response in group.responses
        ]
        pairs = choose_pairs(scored, pairs=config.pairs, seed=f"{self._seed}/people/{update}")
        if not pairs:
            _log.warning("people_without_pairs", run_id=self._context.run_id, update=update)
        documents = [self._prompts.documents[prompt] for prompt in places]
        self._people.ask(
            Submission(
                update=update,
                policy_version=str(responses.model) if responses.model.version > 0 else None,
                questions=tuple(
                    Question(
                        document=documents[pair.first.prompt],
                        first=pair.first.text,
                        second=pair.second.text,
                        prefers_first=pair.prefers_first,
                    )
                    for pair in pairs
                ),
            )
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the update reports of them."""
        witness = {} if self._witness_mean is None else {"witness_score_mean": self._witness_mean}
        return {**witness, **({} if self._people is None else self._people.metrics)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "people": None if self._people is None else self._people.state(),
            "witness_mean": self._witness_mean,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        if self._people is not None and state["people"] is not None:
            self._people.restore(state["people"])
        self._witness_mean = state["witness_mean"]


def load_witness(
    model: LocatedModel,
    *,
    reward_model: LocatedModel,
    batch_prompts: int,
    max_new_tokens: int,
    token_budget: int,
    codec: TextCodec,
    prompts: PromptSet,
    device: str,
) -> WitnessModel:
    """The witness that the configuration names. Raises InvalidConfigError for one that could say nothing."""
    field = "guards.witness.model"
    if model.version == reward_model.version:
        raise InvalidConfigError(
            field=field, problem="the reward model that the policy is trained on is no witness of itself"
        )
    if batch_prompts < FEWEST_PROMPTS:
        raise InvalidConfigError(
            field=field,
            problem=f"a witness looks at {FEWEST_PROMPTS} prompts; batch_prompts is {batch_prompts}",
        )
    return WitnessModel(
        model,
        policy_codec=codec,
        documents=prompts.documents,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
        device=device,
    )
