"""A tiny policy, an experience of it, and an update: what tests of the policy optimizer work with."""

import random

import torch
from transformers import PreTrainedModel

from andon.modeling.forward import response_statistics
from andon.modeling.loading import new_causal_lm
from andon.modeling.sequences import PromptGroup, pack, unpack
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.versions import ModelVersion
from services.trainer.actor_critic import ActorCritic
from services.trainer.experience import Experience, RewardSettings
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.rollout import Responses, Rollout

TEMPERATURE = 0.8


def tiny_codec() -> TextCodec:
    return word_level_codec([f"w{number}" for number in range(12)])


def tiny_policy(codec: TextCodec) -> PreTrainedModel:
    torch.set_num_threads(1)
    architecture = {
        "model_type": "gpt_neox",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return new_causal_lm(architecture, codec, 0)


def settings(**changes: object) -> OptimizerSettings:
    values: dict[str, object] = {
        "epochs": 1,
        "minibatches": 1,
        "token_budget": 10_000,
        "temperature": TEMPERATURE,
        "clip_ratio": 0.2,
        "clip_value": 0.2,
        "value_coefficient": 0.1,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "adam_eps": 1e-5,
        "max_grad_norm": None,
        "seed": 3,
    }
    return OptimizerSettings(**{**values, **changes})  # type: ignore[arg-type]


def experience_of(policy: PreTrainedModel, *, advantage_sign: float = 1.0) -> Experience:
    chance = random.Random(1)
    groups = tuple(
        PromptGroup(
            prompt=[chance.randrange(4, 16) for _ in range(chance.randrange(2, 6))],
            responses=[[chance.randrange(4, 16) for _ in range(chance.randrange(1, 7))] for _ in range(2)],
        )
        for _ in range(6)
    )
    lengths = torch.tensor([len(response) for group in groups for response in group.responses])
    with torch.no_grad():
        logprobs = response_statistics(policy, pack(groups), temperature=TEMPERATURE).logprobs
    generator = torch.Generator().manual_seed(5)
    behaviour = unpack(logprobs, lengths, 0.0)
    mask = torch.arange(behaviour.shape[1])[None, :] < lengths[:, None]

    def noise() -> torch.Tensor:
        return torch.where(mask, torch.randn(behaviour.shape, generator=generator), torch.zeros(()))

    return Experience(
        rollout=Rollout(
            responses=Responses(
                groups=groups,
                lengths=lengths,
                behaviour_logprobs=behaviour,
                ended_properly=torch.ones(len(lengths), dtype=torch.bool),
                model=ModelVersion("policy", 1),
            ),
            reference_logprobs=behaviour,
            scores=torch.zeros(len(lengths)),
        ),
        values=noise() * 0.1,
        rewards=noise(),
        advantages=advantage_sign * noise(),
        returns=noise(),
        proximal_logprobs=behaviour,
        weights=mask.float(),
        weight_limit=1.0,
        staleness=0,
        metrics={},
        beta=0.05,
        settings=RewardSettings(
            penalty=-1.0, gamma=1.0, lam=0.95, whiten_rewards=False, whiten_advantages=True
        ),
    )


def train(actor_critic: ActorCritic, experience: Experience, chosen: OptimizerSettings) -> UpdateProgress:
    progress = UpdateProgress()
    PolicyOptimizer(actor_critic, chosen).update(
        experience, update=1, learning_rate_factor=1.0, progress=progress, between_steps=lambda: None
    )
    return progress
