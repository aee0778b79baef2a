"""Random responses with random advantages: the cost of an update does not depend on what they say."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from andon.modeling.sequences import PromptGroup, unpack
from andon.modeling.versions import ModelVersion
from benchmarks import shapes
from benchmarks.shapes import Shape
from services.trainer.experience import Experience, RewardSettings, evaluate_rollout
from services.trainer.rollout import Responses, Rollout

SETTINGS = RewardSettings(penalty=0.0, gamma=1.0, lam=0.95, whiten_rewards=False, whiten_advantages=True)


def random_experience(shape: Shape, prompts: Sequence[list[int]], *, samples: int, new: int) -> Experience:
    """``samples`` responses of ``new`` tokens to each prompt, which is given as words."""
    source = random.Random(0)
    groups = tuple(
        PromptGroup(
            shapes.token_ids(words),
            tuple(shapes.token_ids(shapes.random_words(source, new, shape)) for _ in range(samples)),
        )
        for words in prompts
    )
    count = len(groups) * samples
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((count,), new)

    def numbers() -> torch.Tensor:
        return unpack(torch.randn(count * new, generator=generator) * 0.1, lengths, 0.0)

    # About what a model with random weights says of any token.
    behaviour = numbers() - math.log(shape.vocab_size)
    rollout = Rollout(
        responses=Responses(
            groups=groups,
            lengths=lengths,
            behaviour_logprobs=behaviour,
            ended_properly=torch.ones(count, dtype=torch.bool),
            model=ModelVersion("policy", 1),
        ),
        reference_logprobs=behaviour + numbers(),
        scores=torch.randn(count, generator=generator),
    )
    return evaluate_rollout(rollout, numbers(), beta=0.05, settings=SETTINGS)
