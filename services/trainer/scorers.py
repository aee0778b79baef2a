"""How the PPO stage asks the frozen models: the reference for log-probabilities, the reward model for scores.

Both answer only as the version that the run began with; a service that restarted without it is told to load
it. Called from the rollout's threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.values import ModelInfo
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import check_required_model
from services.trainer.peers import Peers

Item = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt and its responses


class Scorers:
    """The two frozen models of one run."""

    def __init__(
        self,
        *,
        reference: ReferenceClient,
        reference_model: ModelVersion,
        reward: RewardClient,
        reward_model: ModelVersion,
        peers: Peers,
        timeout_s: float,
    ) -> None:
        self._reference = reference
        self._reference_model = reference_model
        self._reward = reward
        self._reward_model = reward_model
        self._peers = peers
        self._timeout_s = timeout_s

    def reference_ready(self) -> ModelInfo:
        """Have the reference service use the right version, and describe it."""
        return self._peers.patiently(
            f"reference at {self._reference.target}",
            lambda: self._expect(self._reference.model_info(), self._reference_model),
            restore=self._load_reference,
        )

    def reward_ready(self) -> ModelInfo:
        """Have the reward service use the right version, and describe it."""
        return self._peers.patiently(
            f"reward at {self._reward.target}",
            lambda: self._expect(self._reward.model_info().info, self._reward_model),
            restore=self._load_reward,
        )

    def reference_logprobs(self, items: Sequence[Item], *, temperature: float) -> list[list[float]]:
        """One row per response, in nats, in the order of the items."""
        answer = self._peers.patiently(
            f"reference at {self._reference.target}",
            lambda: self._reference.logprobs(
                items,
                temperature=temperature,
                required_model=self._reference_model,
                timeout_s=self._timeout_s,
            ),
            restore=self._load_reference,
        )
        return [list(row) for item in answer.items for row in item]

    def scores(self, items: Sequence[Item]) -> list[list[float]]:
        """One row per item, one score per response, as the service normalises them."""
        answer = self._peers.patiently(
            f"reward at {self._reward.target}",
            lambda: self._reward.score(items, required_model=self._reward_model, timeout_s=self._timeout_s),
            restore=self._load_reward,
        )
        return [[score.score for score in row] for row in answer.items]

    def _load_reference(self) -> None:
        self._reference.load_model(loadable_name(self._reference_model), timeout_s=self._timeout_s)

    def _load_reward(self) -> None:
        self._reward.load_model(loadable_name(self._reward_model), timeout_s=self._timeout_s)

    def _expect(self, info: ModelInfo, required: ModelVersion) -> ModelInfo:
        check_required_model(required, info.model)
        return info


def loadable_name(model: ModelVersion) -> str:
    """What LoadModel takes: "sft/1", or the folder or public name of a model from outside the store."""
    return str(model) if model.version > 0 else model.family
