"""The faults that are planted: each patches the source or a running object of the loop.

A fault is planted before the run begins or, with ``after_update``, in its middle. ``bad_from`` says which is
the first update, counted from the planting, whose weights come from faulty data: with 1 the very next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import andon.client.policy
import services.policy.sampling
import services.policy.weight_receiver
import services.reward.scorer
import services.trainer.actor_critic
import services.trainer.experience
import services.trainer.policy_optimizer
from andon.modeling.sequences import PackedBatch
from andon.modeling.weight_codec import load_weights
from benchmarks.guards.services import Services
from services.trainer.policy_optimizer import PolicyOptimizer

Plant = Callable[[Services], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of defect."""

    name: str
    what: str  # in one sentence
    plant: Plant
    after_update: int = 0  # 0: before the run begins
    bad_from: int = 1
    reward_model: str = "reward"  # the family that is trained against
    config: Mapping[str, Any] = field(default_factory=dict)  # of the run, beside the loop's own
    without_preflight: bool = True  # whether there is a second arm, in which pre-flight is off
    labelers: int = 0  # pairs of fresh samples per update that people compare in the second arm
    judged: bool = False  # bad is what the gold judge says is worse than the supervised model


# --- the trainer's code ---


@contextmanager
def _replaced(module: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    with patch.object(module, name, make(getattr(module, name))):
        yield


def _flip_reward(_: Services) -> AbstractContextManager[None]:
    def flip(real: Any) -> Any:
        return lambda scores, kl, mask, *, beta: real(-scores, kl, mask, beta=beta)

    return _replaced(services.trainer.experience, "compose_rewards", flip)


def _flip_kl(_: Services) -> AbstractContextManager[None]:
    def flip(real: Any) -> Any:
        return lambda policy, reference, mask: real(reference, policy, mask)

    return _replaced(services.trainer.experience, "token_kl", flip)


@contextmanager
def _flip_both(running: Services) -> Iterator[None]:
    with _flip_reward(running), _flip_kl(running):
        yield


def _flip_advantages(_: Services) -> AbstractContextManager[None]:
    def flip(real: Any) -> Any:
        def flipped(*arguments: Any, **options: Any) -> Any:
            estimate = real(*arguments, **options)
            return replace(estimate, advantages=-estimate.advantages)

        return flipped

    return _replaced(services.trainer.experience, "generalized_advantages", flip)


def _flip_loss(_: Services) -> AbstractContextManager[None]:
    def flip(real: Any) -> Any:
        return lambda new, old, advantages, mask, **options: real(new, old, -advantages, mask, **options)

    return _replaced(services.trainer.policy_optimizer, "policy_loss", flip)


def _reward_one_token_early(_: Services) -> AbstractContextManager[None]:
    def shift(real: Any) -> Any:
        def shifted(scores: Tensor, kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
            silent = torch.zeros_like(scores)
            penalties = real(silent, kl, mask, beta=beta)
            paid: Tensor = real(scores, torch.zeros_like(kl), mask, beta=beta)
            early: Tensor = penalties + paid.roll(-1, dims=1)
            return early

        return shifted

    return _replaced(services.trainer.experience, "compose_rewards", shift)


def _scale_rewards(_: Services) -> AbstractContextManager[None]:
    def scale(real: Any) -> Any:
        return lambda scores, kl, mask, *, beta: real(100 * scores, kl, mask, beta=beta)

    return _replaced(services.trainer.experience, "compose_rewards", scale)


def _trainer_temperature(_: Services) -> AbstractContextManager[None]:
    def change(real: Any) -> Any:
        return lambda model, batch, *, temperature, entropy: real(
            model, batch, temperature=1.5 * temperature, entropy=entropy
        )

    return _replaced(services.trainer.actor_critic, "response_statistics", change)


def _nan_in_the_loss(_: Services) -> AbstractContextManager[None]:
    def spoil(real: Any) -> Any:
        def spoiled(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            return replace(found, loss=found.loss * float("nan"))

        return spoiled

    return _replaced(services.trainer.policy_optimizer, "policy_loss", spoil)


def _after_the_steps(act: Callable[[PolicyOptimizer], None]) -> Plant:
    """Something happens to the weights between the last optimizer step and the guards."""

    def plant(_: Services) -> AbstractContextManager[None]:
        def wrap(real: Any) -> Any:
            def wrapped(self: PolicyOptimizer, *arguments: Any, **options: Any) -> None:
                real(self, *arguments, **options)
                act(self)

            return wrapped

        return _replaced(PolicyOptimizer, "update", wrap)

    return plant


def _policy_of(optimizer: PolicyOptimizer) -> Any:
    return optimizer._actor_critic.policy


@torch.no_grad()
def _damage(optimizer: PolicyOptimizer) -> None:
    """One matrix in the middle loses its order, as after a wrong copy."""
    matrices = [weight for weight in _policy_of(optimizer).parameters() if weight.dim() == 2]
    matrix = matrices[len(matrices) // 2]
    matrix.copy_(matrix.flatten().roll(1).view_as(matrix))


@torch.no_grad()
def _nan_weight(optimizer: PolicyOptimizer) -> None:
    next(_policy_of(optimizer).parameters()).view(-1)[0] = float("nan")


# --- the other services ---


def _served(running: Services, service: str) -> Any:
    """What a reward or reference service serves."""
    return running.services[service]._servicer._served


@contextmanager
def _changed_weights(model: Any, change: Callable[[Any], None]) -> Iterator[None]:
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        change(model)
    try:
        yield
    finally:
        model.load_state_dict(saved)


def _head_sign(running: Services) -> AbstractContextManager[None]:
    return _changed_weights(_served(running, "reward").model, lambda model: model.score.weight.neg_())


def _nan_in_the_reward_model(running: Services) -> AbstractContextManager[None]:
    return _changed_weights(
        _served(running, "reward").model, lambda model: model.score.weight.fill_(float("nan"))
    )


def _served_gain(running: Services) -> AbstractContextManager[None]:
    servicer = running.services["reward"]._servicer
    served = servicer._served
    larger = replace(served.normalization, gain=100 * served.normalization.gain)
    return patch.object(servicer, "_served", replace(served, normalization=larger))


def _reward_at_padding(_: Services) -> AbstractContextManager[None]:
    """Reads the position behind the last token, as padding on the right makes one do."""

    def shift(real: Any) -> Any:
        def shifted(model: Any, batch: PackedBatch) -> Tensor:
            behind = (batch.token_index + 1).clamp(max=batch.input_ids.shape[1] - 1)
            found: Tensor = real(model, replace(batch, token_index=behind))
            return found

        return shifted

    return _replaced(services.reward.scorer, "final_scores", shift)


def _other_reference(running: Services) -> AbstractContextManager[None]:
    """Other weights under the right name."""

    def disturb(model: Any) -> None:
        chance = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            if weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=chance)
                weight.add_(0.3 * float(weight.std()) * noise)

    return _changed_weights(_served(running, "reference").model, disturb)


def _reference_follows(running: Services) -> AbstractContextManager[None]:
    """The sampler's new weights reach the reference as well: it is not frozen, and every KL is 0."""

    def share(real: Any) -> Any:
        def shared(own: Any, ready: Any) -> None:
            real(own, ready)
            load_weights(_served(running, "reference").model, own)

        return shared

    return _replaced(services.policy.weight_receiver, "exchange_weights", share)


def _sampler_temperature(_: Services) -> AbstractContextManager[None]:
    def change(real: Any) -> Any:
        def changed(*, temperatures: Any, **options: Any) -> Any:
            return real(temperatures=temperatures * 1.5, **options)

        return changed

    return _replaced(services.policy.sampling.SamplingSettings, "of_rows", change)


def _frozen_sampler(_: Services) -> AbstractContextManager[None]:
    """New weights are received, checked, acknowledged with their digest, and not used."""

    def keep_the_old(_real: Any) -> Any:
        return lambda _own, _ready: None

    return _replaced(services.policy.weight_receiver, "exchange_weights", keep_the_old)


@contextmanager
def _damaged_on_the_wire(_: Services) -> Iterator[None]:
    """One byte of every hand-over is wrong; none goes through memory, where there is no wire."""
    real = andon.client.policy._weight_messages

    def damaged(header: Any, chunks: Any, **options: Any) -> Iterator[Any]:
        if header.memory is not None:
            header = replace(header, memory=replace(header.memory, process_id=1))
        for number, message in enumerate(real(header, chunks, **options)):
            if number == 1:
                data = bytearray(message.chunk.data)
                data[len(data) // 2] ^= 0x40
                message.chunk.data = bytes(data)
            yield message

    with patch.object(andon.client.policy, "_weight_messages", damaged):
        yield


@contextmanager
def _nothing(_: Services) -> Iterator[None]:
    yield


_MIDDLE = 3  # updates that go well before a fault of the middle

FAULTS: Sequence[Fault] = (
    Fault(
        name="reward_sign", what="the composed reward takes the score with the wrong sign", plant=_flip_reward
    ),
    Fault(
        name="kl_sign",
        what="the KL is reference minus policy",
        plant=_flip_kl,
        bad_from=2,  # in the first update the policy is the reference, and a KL of 0 has no sign
    ),
    Fault(name="both_signs", what="both, as in 2019", plant=_flip_both),
    Fault(name="advantage_sign", what="advantages have the wrong sign", plant=_flip_advantages),
    Fault(name="loss_sign", what="the policy loss has the wrong sign", plant=_flip_loss),
    Fault(
        name="reward_model_head_sign",
        what="the served reward model's head has the wrong sign",
        plant=_head_sign,
        labelers=16,
    ),
    Fault(
        name="reward_model_head_sign_midway",
        what=f"the same, from update {_MIDDLE + 1} on",
        plant=_head_sign,
        after_update=_MIDDLE,
        without_preflight=False,
    ),
    Fault(
        name="swapped_labels",
        what="the reward model learned with chosen and rejected exchanged",
        plant=_nothing,
        reward_model="swapped",
        labelers=16,
    ),
    Fault(
        name="reward_position",
        what="the score stands one token before the last",
        plant=_reward_one_token_early,
    ),
    Fault(
        name="reward_at_padding",
        what="the reward service reads behind the last token",
        plant=_reward_at_padding,
    ),
    Fault(
        name="temperature_of_sampler",
        what="the sampler draws at 1.5 times the temperature",
        plant=_sampler_temperature,
    ),
    Fault(
        name="temperature_of_trainer",
        what="the optimizer divides logits by 1.5 times the temperature",
        plant=_trainer_temperature,
    ),
    Fault(
        name="wrong_reference",
        what="the reference service holds other weights under the right name",
        plant=_other_reference,
    ),
    Fault(
        name="wrong_reference_midway",
        what=f"the same, from update {_MIDDLE + 1} on",
        plant=_other_reference,
        after_update=_MIDDLE,
        without_preflight=False,
    ),
    Fault(
        name="reference_follows",
        what="the reference is not frozen: it gets every new version of the policy",
        plant=_reference_follows,
        bad_from=2,  # in the first update it is still the right one
    ),
    Fault(name="reward_scale", what="the composed reward takes 100 times the score", plant=_scale_rewards),
    Fault(
        name="reward_scale_midway",
        what=f"the reward service multiplies scores by 100 from update {_MIDDLE + 1} on",
        plant=_served_gain,
        after_update=_MIDDLE,
        without_preflight=False,
    ),
    Fault(
        name="hackable_reward_model",
        what="the reward model learned from people who count words, and nothing holds the policy back",
        plant=_nothing,
        reward_model="hackable",
        config={
            "updates": 16,
            "kl": {"kind": "fixed", "beta": 0.0},
            "schedule": "constant",
            "max_new_tokens": 48,  # room to ramble
            "batch_prompts": 64,  # each a word of the witness
            "samples_per_prompt": 1,
            "store_interval": 1,  # so that each can be judged
            # What learned from sound labels is the best witness there is of what did not.
            "guards": {"witness": {"model": "reward@latest"}},
        },
        judged=True,
    ),
    Fault(
        name="frozen_sampler",
        what="the sampler acknowledges new weights and keeps the old ones",
        plant=_frozen_sampler,
        bad_from=2,  # the first update's samples still come from the right weights
    ),
    Fault(
        name="corrupted_weights",
        what="a matrix is shifted by one place in the trainer's memory, after the last step",
        plant=_after_the_steps(_damage),
    ),
    Fault(
        name="corrupted_on_the_wire",
        what="a byte of every hand-over of weights is wrong",
        plant=_damaged_on_the_wire,
    ),
    Fault(name="nan_loss", what="the policy loss is no number", plant=_nan_in_the_loss),
    Fault(name="nan_reward", what="the reward model gives no number", plant=_nan_in_the_reward_model),
    Fault(
        name="nan_weights",
        what="a weight is no number after the last step",
        plant=_after_the_steps(_nan_weight),
    ),
)

BY_NAME = {fault.name: fault for fault in FAULTS}
