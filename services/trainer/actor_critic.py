"""Which parameters PPO trains, and how a policy's statistics and a value estimate come out of one batch.

Two arrangements: a value network of its own that begins as the reward model (S20, I22, N+), or a value head
on the policy (Z19). Values are estimates of the normalised reward, so both begin on its scale. Used by the
PPO stage, on every rank, and by ``services.trainer.policy_optimizer``. Dropout is off throughout (S20, N+):
log-probabilities must not change by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from andon.modeling.forward import ResponseStatistics, response_statistics, token_values
from andon.modeling.loading import load_causal_lm, load_scorer, read_normalization
from andon.modeling.normalization import Normalization
from andon.modeling.sequences import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPart:
    """Parameters whose gradient is clipped as a whole."""

    name: str  # "policy", "value", or "policy" alone where both share one network
    parameters: tuple[nn.Parameter, ...]
    is_policy: bool  # which of the two learning rates applies


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one network gives of a batch."""

    statistics: ResponseStatistics | None  # None of a value network
    values: Tensor | None  # [T] float32; None of a policy without a value head


class ActorCritic(Protocol):
    """A policy and a value function."""

    @property
    def policy(self) -> PreTrainedModel:
        """The language model."""
        ...

    @property
    def parts(self) -> tuple[TrainedPart, ...]:
        """What is trained."""
        ...

    def values(self, batch: PackedBatch) -> Tensor:
        """[T] float32: the value before each response token."""
        ...

    def passes(self, batch: PackedBatch, *, temperature: float, entropy: bool) -> Iterator[Pass]:
        """One network after the other; what they give carries gradients.

        Whoever goes backward through one pass before asking for the next never holds the activations of both.
        """
        ...

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorCriticSource:
    """What an actor and a critic begin as."""

    policy: str  # a folder or a public name; between ranks whatever the model store finds it by
    scorer: str | None  # of the reward model that the value network begins as; None: a head on the policy


def statistics_and_values(
    actor_critic: ActorCritic, batch: PackedBatch, *, temperature: float
) -> tuple[ResponseStatistics, Tensor]:
    """Log-probabilities, and [T] float32 values, of all passes."""
    passes = list(actor_critic.passes(batch, temperature=temperature, entropy=False))
    (statistics,) = (one.statistics for one in passes if one.statistics is not None)
    (values,) = (one.values for one in passes if one.values is not None)
    return statistics, values


def load_actor_critic(source: ActorCriticSource, *, device: str) -> ActorCritic:
    """The same on every rank."""
    policy = load_causal_lm(source.policy, dtype="float32", device=device)
    if source.scorer is None:
        return SharedValueHead(policy)
    scorer = load_scorer(source.scorer, dtype="float32", device=device)
    return SeparateValueNetwork(policy, scorer, read_normalization(scorer))


class SeparateValueNetwork:
    """A policy, and a reward model's copy that learns to foresee the reward."""

    def __init__(
        self, policy: PreTrainedModel, scorer: PreTrainedModel, normalization: Normalization
    ) -> None:
        self._policy = policy.eval()
        self._scorer = scorer.eval()
        self._normalization = normalization

    @property
    def policy(self) -> PreTrainedModel:
        """The language model."""
        return self._policy

    @property
    def parts(self) -> tuple[TrainedPart, ...]:
        """Both networks."""
        return (
            TrainedPart(name="policy", parameters=_trainable(self._policy), is_policy=True),
            TrainedPart(name="value", parameters=_trainable(self._scorer), is_policy=False),
        )

    def values(self, batch: PackedBatch) -> Tensor:
        """The head's output on the scale of the normalised reward."""
        return self._normalization.gain * token_values(self._scorer, batch) + self._normalization.bias

    def passes(self, batch: PackedBatch, *, temperature: float, entropy: bool) -> Iterator[Pass]:
        """The policy's, then the value network's."""
        yield Pass(
            statistics=response_statistics(self._policy, batch, temperature=temperature, entropy=entropy),
            values=None,
        )
        yield Pass(statistics=None, values=self.values(batch))

    def state(self) -> dict[str, Any]:
        """Both networks' weights."""
        return {"policy": self._policy.state_dict(), "value": self._scorer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Both networks' weights."""
        self._policy.load_state_dict(state["policy"])
        self._scorer.load_state_dict(state["value"])


class SharedValueHead:
    """A policy with one more head on its last hidden state."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self._policy = policy.eval()
        # Zero: before it has learned anything it expects the mean of the normalised reward, which is 0.
        self._head = nn.Linear(policy.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)

    @property
    def policy(self) -> PreTrainedModel:
        """The language model."""
        return self._policy

    @property
    def parts(self) -> tuple[TrainedPart, ...]:
        """One part: the value loss moves the policy's trunk too."""
        parameters = (*_trainable(self._policy), *self._head.parameters())
        return (TrainedPart(name="policy", parameters=parameters, is_policy=True),)

    def values(self, batch: PackedBatch) -> Tensor:
        """A pass through the trunk alone."""
        hidden = self._policy.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layout=batch.layout.reading(batch.predict_index),
        ).last_hidden_state
        return self._from_hidden(hidden, batch)

    def passes(self, batch: PackedBatch, *, temperature: float, entropy: bool) -> Iterator[Pass]:
        """One: the value head reads the hidden state on its way to the language-model head."""
        with _last_hidden_state(self._policy) as captured:
            statistics = response_statistics(self._policy, batch, temperature=temperature, entropy=entropy)
        yield Pass(statistics=statistics, values=self._from_hidden(captured[0], batch))

    def state(self) -> dict[str, Any]:
        """The weights of the network and of the head."""
        return {"policy": self._policy.state_dict(), "head": self._head.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The weights of the network and of the head."""
        self._policy.load_state_dict(state["policy"])
        self._head.load_state_dict(state["head"])

    def _from_hidden(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """hidden: [1, N, D]. Returns [T] float32."""
        values: Tensor = self._head(
            hidden[0].index_select(0, batch.predict_index).to(self._head.weight.dtype)
        )
        return values[:, 0].float()


def _trainable(network: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for parameter in network.parameters() if parameter.requires_grad)


@contextmanager
def _last_hidden_state(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects what the trunk hands to the head, whatever the architecture calls its parts."""
    captured: list[Tensor] = []

    def capture(
        _module: nn.Module, _inputs: object, output: Any
    ) -> None:  # Any: each architecture's output class
        captured.append(output.last_hidden_state)

    handle = model.base_model.register_forward_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()
