"""What guards measure themselves: some responses under the trainer's weights, and the frozen models' probe.

The passes here are the guards' own. They share the model's forward pass with training and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.forward import response_statistics
from andon.modeling.sequences import PromptGroup, pack, plan_batches, unpack
from services.trainer.guards.guard import ProbeReading, SamplerReading
from services.trainer.rollout import Responses

# Of |log pi_trainer - log pi_sampler|, as an update reports them: the largest and the mean.
SAMPLER_ERRORS = ("sampler_logprob_max_error", "sampler_logprob_mean_error")

PROBE_PROMPTS = 4
PROBE_TOKENS = 16  # of a prompt, read as if they were its summary: any text shows whether an answer changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Which responses of a rollout are looked at: whole prompts, spread evenly."""

    groups: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], *, responses: int) -> Slice:
        """At least this many responses, or all."""
        total = sum(len(group.responses) for group in groups)
        wanted = min(len(groups), -(-responses * len(groups) // max(total, 1)))
        chosen = sorted({number * len(groups) // max(wanted, 1) for number in range(wanted)})
        firsts, first = [], 0
        for group in groups:
            firsts.append(first)
            first += len(group.responses)
        rows = [firsts[index] + place for index in chosen for place in range(len(groups[index].responses))]
        return cls(groups=tuple(chosen), rows=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReading:
    """A policy's word on R responses; [R, L] float32 on the CPU, 0 behind the end."""

    logprobs: Tensor  # nats
    entropies: Tensor  # nats


def read_policy(
    policy: PreTrainedModel,
    groups: Sequence[PromptGroup],
    *,
    width: int,
    temperature: float,
    token_budget: int,
) -> PolicyReading:
    """Log-probability and entropy of every token of every response. ``width`` is L."""
    lengths = torch.tensor([len(response) for group in groups for response in group.responses])
    logprobs: list[Tensor] = [torch.empty(0)] * len(groups)
    entropies: list[Tensor] = [torch.empty(0)] * len(groups)
    with torch.no_grad():
        for piece in plan_batches(groups, token_budget):
            batch = pack([groups[index] for index in piece], policy.device)
            statistics = response_statistics(policy, batch, temperature=temperature, entropy=True)
            sizes = [sum(map(len, groups[index].responses)) for index in piece]
            for rows, values in ((logprobs, statistics.logprobs), (entropies, statistics.entropies)):
                if values is None:
                    raise RuntimeError("entropies were asked for")
                for index, row in zip(piece, torch.split(values.cpu(), sizes), strict=True):
                    rows[index] = row

    def padded(rows: list[Tensor]) -> Tensor:
        narrow = unpack(torch.cat(rows), lengths, 0.0)
        return torch.nn.functional.pad(narrow, (0, width - narrow.shape[1]))

    return PolicyReading(logprobs=padded(logprobs), entropies=padded(entropies))


def read_sampler(
    policy: PreTrainedModel, responses: Responses, *, size: int, temperature: float, token_budget: int
) -> SamplerReading:
    """Compare about ``size`` of the responses with what the policy, which must have written them, says."""
    chosen = Slice.of(responses.groups, responses=size)
    rows = torch.tensor(chosen.rows)
    reading = read_policy(
        policy,
        [responses.groups[index] for index in chosen.groups],
        width=responses.mask.shape[1],
        temperature=temperature,
        token_budget=token_budget,
    )
    return SamplerReading(
        behaviour_logprobs=responses.behaviour_logprobs[rows],
        logprobs=reading.logprobs,
        entropies=reading.entropies,
        mask=responses.mask[rows],
    )


def sampler_errors(readings: Sequence[SamplerReading]) -> dict[str, float]:
    """What an update reports of them; nothing where there are none."""
    if not readings:
        return {}
    largest = max(float(reading.errors_nats.max()) for reading in readings)
    mean = max(float(reading.errors_nats.mean()) for reading in readings)
    return dict(zip(SAMPLER_ERRORS, (largest, mean), strict=True))


def all_finite(model: torch.nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(parameter.detach().isfinite().all()) for parameter in model.parameters())


class FrozenModels(Protocol):
    """What the probe asks; ``services.trainer.scorers.Scorers`` is one."""

    def reference_logprobs(
        self, items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], *, temperature: float
    ) -> list[list[float]]:
        """One row per response, nats."""
        ...

    def scores(self, items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[float]]:
        """One row per item."""
        ...


class FrozenProbe:
    """The same few texts, put to the frozen models again and again."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], *, eos_token_id: int, temperature: float, models: FrozenModels
    ) -> None:
        self._items = [
            (tuple(prompt), ((*prompt[:PROBE_TOKENS], eos_token_id),)) for prompt in prompts[:PROBE_PROMPTS]
        ]
        self._temperature = temperature
        self._models = models
        self._logprobs: list[float] | None = None
        self._scores: list[float] | None = None

    def calls(self) -> list[Callable[[], list[list[float]]]]:
        """The two questions, to be asked at the same time; their answers go to ``compare`` in this order."""
        return [
            lambda: self._models.reference_logprobs(self._items, temperature=self._temperature),
            lambda: self._models.scores(self._items),
        ]

    def compare(self, answers: Sequence[list[list[float]]]) -> ProbeReading:
        """How far the answers are from the first ones, which are kept."""
        logprobs, scores = ([value for row in answer for value in row] for answer in answers)
        if self._logprobs is None or self._scores is None:
            self._logprobs, self._scores = logprobs, scores
        return ProbeReading(
            reference_error_nats=_largest_difference(logprobs, self._logprobs),
            score_error=_largest_difference(scores, self._scores),
        )

    def state(self) -> dict[str, Any]:
        """The first answers."""
        return {"logprobs": self._logprobs, "scores": self._scores}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._logprobs, self._scores = state["logprobs"], state["scores"]


def _largest_difference(now: Sequence[float], first: Sequence[float]) -> float:
    return max(abs(one - other) for one, other in zip(now, first, strict=True))
