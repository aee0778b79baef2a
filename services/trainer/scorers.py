"""How the PPO stage asks the frozen models: the reference for log-probabilities, the reward model for scores.

Both answer only as the version that the run began with; a service that restarted without it is told to load
it. Called from the rollout's threads.
"""

from __future__ import annotations

import math
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
        tokenizer_fingerprint: str,
        peers: Peers,
        timeout_s: float,
    ) -> None:
        """``tokenizer_fingerprint``: of the vocabulary that token ids are written in."""
        self._reference = reference
        self._reference_model = reference_model
        self._reward = reward
        self._reward_model = reward_model
        self._peers = peers
        self._timeout_s = timeout_s
        self._fingerprint = tokenizer_fingerprint
        self._differences: set[str] = set()

    @property
    def settings_differences(self) -> tuple[str, ...]:
        """Where an answer so far was not given as it was asked for, by the service's own word."""
        return tuple(sorted(self._differences))

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
        if not math.isclose(answer.applied_temperature, temperature, rel_tol=1e-6):
            self._differences.add(
                f"the reference divided by temperature {answer.applied_temperature:g}, not {temperature:g}"
            )
        self._compare_tokenizer("reference", answer.tokenizer_fingerprint)
        return [list(row) for item in answer.items for row in item]

    def scores(self, items: Sequence[Item]) -> list[list[float]]:
        """One row per item, one score per response, as the service normalises them."""
        answer = self._peers.patiently(
            f"reward at {self._reward.target}",
            lambda: self._reward.score(items, required_model=self._reward_model, timeout_s=self._timeout_s),
            restore=self._load_reward,
        )
        self._compare_tokenizer("reward model", answer.tokenizer_fingerprint)
        return [[score.score for score in row] for row in answer.items]

    def _compare_tokenizer(self, peer: str, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            self._differences.add(f"the {peer} read token ids with another tokenizer or prompt template")

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
