"""How one update moves the weights: epochs over the experience, minibatches, one optimizer step each.

A minibatch is a share of the update's prompts with all their responses, passed through in packed batches
within the token budget; the pieces' losses are weighted so that their sum is the minibatch's masked mean,
whatever the pieces. With several ranks each passes its share of the minibatch's prompts through, gradients
and numbers are summed over all, and every rank takes the same step with the same bits. Called by the PPO
stage, which may be told to stop between any two steps, and by the followers of rank 0: everything that
happened so far in the update is in ``UpdateProgress``, and the order of minibatches depends on seed, update
and epoch alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from andon.modeling.sequences import PackedBatch, flatten, pack, plan_batches
from services.trainer.actor_critic import ActorCritic, Pass, TrainedPart
from services.trainer.errors import NotFiniteError
from services.trainer.experience import Experience
from services.trainer.ppo.losses import PolicyLoss, ValueLoss, policy_loss, value_loss
from services.trainer.ppo.noise_scale import NoiseScaleAverage, noise_scale
from services.trainer.ranks import Ranks

# What the loss functions report: shares of means over the minibatch's tokens.
LOSSES = ("policy_loss", "value_loss", "policy_clip_ratio", "value_clip_ratio", "approx_kl_nats")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """What an update does."""

    epochs: int
    minibatches: int
    token_budget: int
    temperature: float
    clip_ratio: float
    clip_value: float | None
    value_coefficient: float
    learning_rate: float
    value_learning_rate: float
    adam_eps: float
    max_grad_norm: float | None
    seed: int


@dataclass(slots=True, kw_only=True)
class UpdateProgress:
    """How far an update has come."""

    steps_done: int = 0
    step_metrics: list[dict[str, float]] = field(default_factory=list)  # one per optimizer step
    entropy_nats_sum: float = 0.0  # over the tokens of the first epoch
    entropy_tokens: int = 0
    # |log pi_trainer - log pi_sampler| before the first step. For stale samples, that the trainer's weights
    # cannot agree with, of this pass against the one that gave the proximal log-probabilities.
    sampler_logprob_max_error: float = 0.0
    sampler_logprob_mean_error: float = 0.0
    ratio_min: float = 1.0  # of a token's probability now over the one before the update, over all steps
    ratio_max: float = 1.0
    gradient_noise_scale: float | None = None  # episodes, averaged over updates; None while it has no sense

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in self.__slots__}

    def metrics(self) -> dict[str, float]:
        """Means over the update's optimizer steps."""
        names = self.step_metrics[0] if self.step_metrics else {}
        means = {name: _mean([step[name] for step in self.step_metrics]) for name in names}
        if self.gradient_noise_scale is not None:
            means["gradient_noise_scale_episodes"] = self.gradient_noise_scale
        return means | {
            "entropy_nats": self.entropy_nats_sum / max(self.entropy_tokens, 1),
            "sampler_logprob_max_error": self.sampler_logprob_max_error,
            "sampler_logprob_mean_error": self.sampler_logprob_mean_error,
            "ratio_min": self.ratio_min,
            "ratio_max": self.ratio_max,
            "optimizer_steps": float(len(self.step_metrics)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Learn:
    """What rank 0 tells the others at the begin of an update, or of what is left of one."""

    experience: Experience
    update: int
    learning_rate_factor: float
    steps_done: int


class PolicyOptimizer:
    """Trains an actor and a critic on one experience after the other."""

    def __init__(
        self, actor_critic: ActorCritic, settings: OptimizerSettings, ranks: Ranks | None = None
    ) -> None:
        """On each of the ``ranks`` there is one, with the same state; None: there is no other."""
        self._ranks = Ranks() if ranks is None else ranks
        self._actor_critic = actor_critic
        self._settings = settings
        self._parts = actor_critic.parts
        self._peak_rates = [
            settings.learning_rate if part.is_policy else settings.value_learning_rate for part in self._parts
        ]
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(part.parameters), "lr": rate}
                for part, rate in zip(self._parts, self._peak_rates, strict=True)
            ],
            eps=settings.adam_eps,
            fused=True,
        )
        self._noise = NoiseScaleAverage()

    def update(
        self,
        experience: Experience,
        *,
        update: int,
        learning_rate_factor: float,
        progress: UpdateProgress,
        between_steps: Callable[[], None],
    ) -> None:
        """Do what is left of an update. ``between_steps`` is called after each step; it may raise to leave.

        Raises NotFiniteError, before the step that would spread it, when a gradient is not finite, and
        RanksDisagreeError when the ranks' weights differ in the end.
        """
        self._ranks.tell(
            Learn(
                experience=experience,
                update=update,
                learning_rate_factor=learning_rate_factor,
                steps_done=progress.steps_done,
            )
        )
        for group, rate in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * learning_rate_factor
        minibatches = self._minibatches(experience, update)
        while progress.steps_done < len(minibatches):
            with self._ranks.one_step():
                prompts = minibatches[progress.steps_done]
                metrics = self._step(experience, prompts, update=update, progress=progress)
                if progress.steps_done + 1 == len(minibatches):
                    self._ranks.require_same(list(self._parameters(self._parts)), step=update)
            progress.step_metrics.append(metrics)
            progress.steps_done += 1
            between_steps()

    def state(self) -> dict[str, Any]:
        """What the coming updates depend on, for a checkpoint."""
        return {
            "adam": self._optimizer.state_dict(),
            "gradient_sq_norm": self._noise.gradient_sq_norm,
            "noise_trace": self._noise.noise_trace,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self._optimizer.load_state_dict(state["adam"])
        self._noise = NoiseScaleAverage(
            gradient_sq_norm=state["gradient_sq_norm"], noise_trace=state["noise_trace"]
        )

    def _minibatches(self, experience: Experience, update: int) -> list[list[int]]:
        """The prompts of every step of the update, in order."""
        count = len(experience.rollout.responses.groups)
        parts = min(self._settings.minibatches, count)
        steps: list[list[int]] = []
        for epoch in range(self._settings.epochs):
            order = list(range(count))
            random.Random(f"{self._settings.seed}/{update}/{epoch}").shuffle(order)
            steps += [order[count * part // parts : count * (part + 1) // parts] for part in range(parts)]
        return steps

    def _step(
        self, experience: Experience, prompts: Sequence[int], *, update: int, progress: UpdateProgress
    ) -> dict[str, float]:
        settings = self._settings
        slices = ExperienceSlices(experience, device=self._actor_critic.policy.device)
        groups = experience.rollout.responses.groups
        num_tokens = slices.count_tokens(prompts)
        in_first_epoch = progress.steps_done < min(settings.minibatches, len(groups))
        tally = _Tally()
        halves = [prompts]
        if progress.steps_done == 0 and len(prompts) > 1:
            # The first half's gradient beside the whole one's tells how noisy gradients are.
            halves = [prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]]
        sq_norm_of_first_half = 0.0
        for half in halves:
            own = self._ranks.share_of(half)
            for piece in plan_batches([groups[prompt] for prompt in own], settings.token_budget):
                part = slices.of([own[index] for index in piece])
                for one in self._actor_critic.passes(
                    part.batch, temperature=settings.temperature, entropy=in_first_epoch
                ):
                    if one.statistics is not None and progress.steps_done == 0:
                        tally.count_mismatch(
                            (one.statistics.logprobs.detach() - part.proximal_logprobs).abs()
                        )
                    self._backward(part, one, num_tokens, tally)
            if half is halves[0] and len(halves) == 2:
                share = slices.count_tokens(half) / num_tokens
                sq_norm_of_first_half = self._policy_sq_norm_of_all() / share**2
        self._sum_gradients(self._parts)
        if len(halves) == 2:
            progress.gradient_noise_scale = self._observe_noise(
                sq_norm_of_first_half,
                small=sum(len(groups[prompt].responses) for prompt in halves[0]),
                big=sum(len(groups[prompt].responses) for prompt in prompts),
            )
        tally = tally.over(self._ranks)
        tally.report(progress)
        return tally.losses() | self._apply_gradients(update)

    def _parameters(self, parts: Iterable[TrainedPart]) -> Iterable[nn.Parameter]:
        return (parameter for part in parts for parameter in part.parameters)

    def _sum_gradients(self, parts: Iterable[TrainedPart]) -> None:
        """Make every rank's gradients those of all ranks."""
        if self._ranks.size == 1:
            return
        gradients: list[Tensor] = []
        for parameter in self._parameters(parts):
            if parameter.grad is None:  # where this rank's share is empty
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._ranks.add_up(gradients)

    def _policy_sq_norm_of_all(self) -> float:
        """In the middle of a minibatch: squared norm of the gradients that all ranks have gathered so far."""
        policy = [part for part in self._parts if part.is_policy]
        self._sum_gradients(policy)
        sq_norm = self._policy_sq_norm()
        if not self._ranks.leads:  # from here on the sum is in rank 0's hands alone, or it would count again
            for parameter in self._parameters(policy):
                parameter.grad = None
        return sq_norm

    def _policy_sq_norm(self) -> float:
        """Squared norm of the gradients that the policy has gathered."""
        policy = [part for part in self._parts if part.is_policy]
        gradients = [parameter.grad for parameter in self._parameters(policy) if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients)) ** 2

    def _observe_noise(self, sq_norm_small: float, *, small: int, big: int) -> float | None:
        """The noise scale with this update counted in; None unless both its parts are positive."""
        observed = noise_scale(
            sq_norm_small=sq_norm_small, sq_norm_big=self._policy_sq_norm(), small=small, big=big
        )
        self._noise = self._noise.after(observed)
        if self._noise.gradient_sq_norm > 0 and self._noise.noise_trace > 0:
            return self._noise.batch_size
        return None

    def _backward(self, part: ExperienceSlice, one: Pass, num_tokens: int, tally: _Tally) -> None:
        """Add the gradients of what one pass gave."""
        settings = self._settings
        # A packed batch holds nothing that does not count.
        mask = torch.ones_like(part.weights, dtype=torch.bool)[None]
        policy = value = None
        losses: list[Tensor] = []
        if one.statistics is not None:
            policy = policy_loss(
                one.statistics.logprobs[None],
                part.proximal_logprobs[None],
                part.advantages[None],
                mask,
                weights=part.weights[None],
                clip_ratio=settings.clip_ratio,
                num_tokens=num_tokens,
            )
            losses.append(policy.loss)
        if one.values is not None:
            value = value_loss(
                one.values[None],
                part.old_values[None],
                part.returns[None],
                mask,
                clip_value=settings.clip_value,
                num_tokens=num_tokens,
            )
            losses.append(settings.value_coefficient * value.loss)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        if policy is not None:
            tally.count_policy(policy)
        if value is not None:
            tally.count_value(value)
        if one.statistics is not None and one.statistics.entropies is not None:
            tally.count_entropies(one.statistics.entropies.detach())

    def _apply_gradients(self, update: int) -> dict[str, float]:
        limit = self._settings.max_grad_norm
        norms: dict[str, float] = {}
        for part in self._parts:
            norm = float(nn.utils.clip_grad_norm_(part.parameters, math.inf if limit is None else limit))
            if not math.isfinite(norm):
                raise NotFiniteError(quantity=f"the {part.name} gradient's norm", step=update)
            norms[f"{part.name}_grad_norm"] = norm
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norms


class _Tally:
    """What is counted in an optimizer step: sums and largest values, of this rank or of all."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(
            (*LOSSES, "entropy_nats", "entropy_tokens", "mismatch_nats", "mismatch_tokens"), 0.0
        )
        self._largest = {"mismatch_nats": 0.0, "ratio_max": 1.0, "-ratio_min": -1.0}

    def count_policy(self, loss: PolicyLoss) -> None:
        """A pass's shares."""
        self._sums["policy_loss"] += float(loss.loss.detach())
        self._sums["policy_clip_ratio"] += float(loss.clip_fraction)
        self._sums["approx_kl_nats"] += float(loss.approx_kl)
        self._raise_to("ratio_max", float(loss.ratio_max))
        self._raise_to("-ratio_min", -float(loss.ratio_min))

    def count_value(self, loss: ValueLoss) -> None:
        """A pass's shares."""
        self._sums["value_loss"] += float(loss.loss.detach())
        self._sums["value_clip_ratio"] += float(loss.clip_fraction)

    def count_entropies(self, entropies: Tensor) -> None:
        """entropies: [T] float32, nats."""
        self._sums["entropy_nats"] += float(entropies.sum())
        self._sums["entropy_tokens"] += len(entropies)

    def count_mismatch(self, errors: Tensor) -> None:
        """errors: [T] float32, nats."""
        self._sums["mismatch_nats"] += float(errors.double().sum())
        self._sums["mismatch_tokens"] += len(errors)
        self._raise_to("mismatch_nats", float(errors.max()))

    def _raise_to(self, name: str, value: float) -> None:
        if not value <= self._largest[name]:  # NaN counts as larger than all
            self._largest[name] = value

    def over(self, ranks: Ranks) -> _Tally:
        """The whole minibatch's."""
        whole = _Tally()
        whole._sums = dict(zip(self._sums, ranks.totals(list(self._sums.values())), strict=True))
        whole._largest = dict(zip(self._largest, ranks.largest(list(self._largest.values())), strict=True))
        return whole

    def losses(self) -> dict[str, float]:
        """Means over the minibatch's tokens."""
        return {name: self._sums[name] for name in LOSSES}

    def report(self, progress: UpdateProgress) -> None:
        """Enter what is not reported step by step."""
        progress.entropy_nats_sum += self._sums["entropy_nats"]
        progress.entropy_tokens += int(self._sums["entropy_tokens"])
        if self._sums["mismatch_tokens"] > 0:
            progress.sampler_logprob_max_error = self._largest["mismatch_nats"]
            progress.sampler_logprob_mean_error = self._sums["mismatch_nats"] / self._sums["mismatch_tokens"]
        progress.ratio_max = max(progress.ratio_max, self._largest["ratio_max"])
        progress.ratio_min = min(progress.ratio_min, -self._largest["-ratio_min"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceSlice:
    """Some prompts' share of an experience, packed. T response tokens, in the batch's order."""

    batch: PackedBatch
    proximal_logprobs: Tensor  # [T] float32, like the others
    weights: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class ExperienceSlices:
    """Cuts packed batches out of an experience."""

    def __init__(self, experience: Experience, *, device: torch.device | str) -> None:
        self._experience = experience
        self._device = device
        groups = experience.rollout.responses.groups
        first, self._rows = 0, list[range]()
        for group in groups:
            self._rows.append(range(first, first + len(group.responses)))
            first += len(group.responses)

    def count_tokens(self, prompts: Sequence[int]) -> int:
        """Response tokens of these prompts."""
        groups = self._experience.rollout.responses.groups
        return sum(len(response) for prompt in prompts for response in groups[prompt].responses)

    def of(self, prompts: Sequence[int]) -> ExperienceSlice:
        """These prompts with all their responses."""
        responses = self._experience.rollout.responses
        rows = torch.tensor([row for prompt in prompts for row in self._rows[prompt]])
        lengths = responses.lengths[rows]

        def flat(padded: Tensor) -> Tensor:
            return flatten(padded[rows, : int(lengths.max())], lengths).to(self._device)

        return ExperienceSlice(
            batch=pack([responses.groups[prompt] for prompt in prompts], self._device),
            proximal_logprobs=flat(self._experience.proximal_logprobs),
            weights=flat(self._experience.weights),
            old_values=flat(self._experience.values),
            advantages=flat(self._experience.advantages),
            returns=flat(self._experience.returns),
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
