"""Updates as guards see them, made of random responses through the production path."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from andon.modeling.sequences import PromptGroup
from andon.modeling.versions import ModelVersion
from services.trainer.experience import Experience, RewardSettings, evaluate_rollout
from services.trainer.guards.guard import ProbeReading, SliceReading, UpdateFacts
from services.trainer.rollout import Responses, Rollout

SETTINGS = RewardSettings(penalty=-1.0, gamma=1.0, lam=0.95, whiten_rewards=False, whiten_advantages=True)


@dataclass
class Update:
    """Ingredients of one update; change some before ``facts``."""

    number: int
    experience: Experience
    before: Tensor
    entropies: Tensor
    after: Tensor
    probe: ProbeReading = field(
        default_factory=lambda: ProbeReading(reference_error_nats=0.0, score_error=0.0)
    )
    metrics: dict[str, float] = field(default_factory=dict)
    weights_finite: bool = True
    settings_differences: tuple[str, ...] = ()

    @property
    def facts(self) -> UpdateFacts:
        return UpdateFacts(
            update=self.number,
            experience=self.experience,
            reading=SliceReading(
                rows=torch.arange(len(self.before)),
                logprobs_before=self.before,
                entropies_before=self.entropies,
                logprobs_after=self.after,
            ),
            probe=self.probe,
            metrics=self.metrics,
            weights_finite=self.weights_finite,
            settings_differences=self.settings_differences,
        )


@pytest.fixture
def make_update() -> Callable[..., Update]:
    """``make_update(seed)``: 16 prompts with 4 responses of 2 to 12 tokens over 50 words.

    Tokens are really drawn from the distribution whose log-probabilities are given, and the step of the
    update follows the advantages with some noise: a healthy update.
    """

    def make(
        seed: int = 0,
        *,
        number: int = 1,
        beta: float = 0.1,
        score_mean: float = 0.0,
        score_std: float = 1.0,
        kl_shift: float = 0.01,
        step: float = 0.02,
        settings: RewardSettings = SETTINGS,
        responses: list[list[int]] | None = None,
    ) -> Update:
        chance = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 13, (64,), generator=chance)
        if responses is not None:
            lengths = torch.tensor([len(row) for row in responses])
        rows, width = len(lengths), int(lengths.max())
        logits = torch.randn(rows, width, 50, generator=chance)
        logprobs_all = logits.log_softmax(-1)
        tokens = torch.multinomial(logprobs_all.exp().view(-1, 50), 1, generator=chance).view(rows, width)
        mask = torch.arange(width)[None] < lengths[:, None]
        logprobs = logprobs_all.gather(-1, tokens[..., None])[..., 0] * mask
        entropies = -(logprobs_all.exp() * logprobs_all).sum(-1) * mask
        texts = responses or [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
        groups = tuple(
            PromptGroup(prompt=[1, 2, 3], responses=texts[first : first + 4]) for first in range(0, rows, 4)
        )
        noise = torch.randn(rows, width, generator=chance)
        rollout = Rollout(
            responses=Responses(
                groups=groups,
                lengths=lengths,
                behaviour_logprobs=logprobs,
                ended_properly=torch.rand(rows, generator=chance) < 0.9,
                model=ModelVersion("policy", 1),
            ),
            reference_logprobs=(logprobs - kl_shift - 0.05 * noise) * mask,
            scores=score_mean + score_std * torch.randn(rows, generator=chance),
        )
        values = 0.1 * torch.randn(rows, width, generator=chance) * mask
        experience = evaluate_rollout(rollout, values, beta=beta, settings=settings)
        moved = step * (experience.advantages + torch.randn(rows, width, generator=chance)) * mask
        return Update(
            number=number,
            experience=experience,
            before=logprobs,
            entropies=entropies,
            after=logprobs + moved,
        )

    return make


@pytest.fixture
def changed_experience() -> Callable[..., Experience]:
    """``changed_experience(experience, advantages=...)`` is a copy with other tensors."""
    from dataclasses import replace

    def change(experience: Experience, **changes: Any) -> Experience:
        return replace(experience, **changes)

    return change
